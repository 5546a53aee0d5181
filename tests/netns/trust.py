"""Guests on one bridge and a client outside, and two ways to follow them: ``sync`` alone, and the service.

``web`` is the guest whose forward others want, ``db`` the one that tries, ``app`` a bystander whose address
is declared. Every guest serves its page at port 80 of whatever address it has.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from netns.support import PHASES, mac_of, who
from support.netns import BRIDGE, GATEWAY4, GATEWAY6, HOST4, Lab, Ns
from support.proc import Done, eventually
from support.watching import Service, TestDriver
from support.xml import Nic, domain, forwards, host_ip, port_forward

NUMBERS = {"web": 1, "db": 2, "app": 3}
MACS = {name: mac_of(number) for name, number in NUMBERS.items()}
PORTS = {"web": 8080, "db": 8081, "app": 8082}
WEB4, DB4, APP4, OTHER4, TRAP4 = (f"10.10.0.{number}" for number in (50, 201, 203, 60, 66))
WEB6, DB6 = "fd10:10::50", "fd10:10::201"
PAGE = {name: port_forward(f"{port}:80") for name, port in PORTS.items()}
UDP = port_forward("5000", "68", proto="udp")
_markers = itertools.count(20000)


class Guests:
    """The three guests, none of them with an address or started yet."""

    def __init__(self, lab: Lab, configuration: str = "") -> None:
        self.lab, self.host, self.client = lab, lab.host, lab.client
        self.driver = TestDriver(lab, configuration)
        self.web, self.db, self.app = (self._plug(name) for name in NUMBERS)
        self.bridge_mac = self.host.run(["cat", f"/sys/class/net/{BRIDGE}/address"]).out.strip()
        self.service: Service | None = None

    def _plug(self, name: str) -> Ns:
        made = self.lab.guest(name, None, None, MACS[name])
        # An address that a guest gets later is known at once, without its asking who else has it.
        made.serve("tcp", 80, name=name)
        made.serve("udp", 68, 5000, name=name)
        return made

    def address(self, guest: Ns, ip4: str | None = None, ip6: str | None = None) -> None:
        """Give a guest these addresses and no others."""
        self.lab.readdress(guest, ip4, ip6)

    def start(self, name: str, *hosts: str, also: str = "", check: bool = True) -> Done:
        """Start a guest with its page's forward, its declared addresses, and what else its metadata says."""
        metadata = forwards(*map(host_ip, hosts), PAGE[name], also)
        nic = Nic(BRIDGE, MACS[name])
        done = self._hook(name, "prepare", metadata, nic, check=check)
        if done.status == 0:
            self.driver.has(name, metadata, (nic,))
            self._hook(name, "started", metadata, nic)
        return done

    def declare(self, name: str, *hosts: str) -> None:
        """Edit the metadata of a guest that runs; the service sees it, else ``sync`` does."""
        self.driver.has(name, forwards(*map(host_ip, hosts), PAGE[name]), (Nic(BRIDGE, MACS[name]),))
        if self.service:
            self.service.look()

    def _hook(self, name: str, operation: str, metadata: str, nic: Nic, *, check: bool = True) -> Done:
        sub, phase = PHASES[operation]
        text = domain(name, metadata, [nic], phase)
        return self.lab.hook("qemu", name, operation, sub, xml=text, check=check)

    def page(self, name: str = "web", host: str = HOST4) -> str | None:
        """Ask from outside for a guest's page, and return whose came; None for nobody's."""
        return who(self.client, host, PORTS[name])

    def leads(self, name: str = "web", version: int = 4) -> set[str]:
        """Return the addresses of one family that a guest's forward leads to, by the kernel's table."""
        listed = self.host.run(["nft", "-s", "list", "table", "inet", "virt-forward"], check=False).out
        chain = re.search(rf"chain guest-{name}-\S+ {{(.*?)\n\t}}", listed, re.DOTALL)
        to = {4: r"dnat ip to ([0-9.]+)", 6: r"dnat ip6 to \[?([0-9a-f:]+[0-9a-f])"}[version]
        return set(re.findall(to, chain[1] if chain else ""))

    def speak(self, guest: Ns, source: str) -> None:
        """Let a guest speak to its host from one of its addresses, so that the kernel knows it by that."""
        gateway = GATEWAY6 if ":" in source else GATEWAY4
        assert guest.ask(gateway, 9, source=source) is None  # a refusal: what it said has arrived

    def knows(self, ip: str) -> str:
        """Return at which MAC the host's neighbour table has an address."""
        line = self.host.run(["ip", "neighbour", "show", ip, "dev", BRIDGE]).out
        found = re.search(r"lladdr (\S+)", line)
        return found[1] if found else ""

    def confirm(self, ip: str) -> str | None:
        """Let the host find out who has an address, and return whose page is there."""
        self.host.run(["ip", "neighbour", "del", ip, "dev", BRIDGE], check=False)
        return who(self.host, ip, 80)

    def follow(self, what: Callable[[], object], why: str, timeout: float = 20) -> None:
        """Wait until the service has made ``what()`` true; without the service ``sync`` has to."""
        if self.service:
            try:
                eventually(what, why, timeout)
            except AssertionError as error:
                raise AssertionError(f"{error}\n{self.explain()}") from None
            return
        self.lab.command("sync")
        assert what(), f"after sync: {why}\n{self.explain()}"

    def settle(self) -> None:
        """Return once whatever was on the wire before has been acted upon.

        The bystander gets a new forward: the service sees to it after what came before.
        """
        if not self.service:
            self.lab.command("sync")
            return
        for _ in range(2):
            self._mark(str(next(_markers)))
            time.sleep(0.2)

    def _mark(self, port: str) -> None:
        metadata = forwards(host_ip(APP4), PAGE["app"], port_forward(f"{port}:80"))
        self.driver.has("app", metadata, (Nic(BRIDGE, MACS["app"]),))
        if self.service:
            self.service.look()
        eventually(lambda: port in self.lab.command("rules").out, "the service looks")

    def explain(self) -> str:
        """Return all that tells why a forward leads where it does."""
        parts = [self.host.run(["ip", "neighbour"]).out, self.lab.command("list", check=False).out]
        return "\n".join([*parts, self.service.log() if self.service else "no service"])


@contextlib.contextmanager
def repeated(work: Callable[[], None]) -> Iterator[None]:
    """Do something again and again for as long as the block lasts, and at least once."""
    ended = threading.Event()

    def run() -> None:
        while True:
            work()
            if ended.wait(0.05):
                return

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run)
        try:
            yield
        finally:
            ended.set()
        running.result()


def pages(guests: Guests, host: str = HOST4, count: int = 5) -> set[str | None]:
    """Ask for the page of ``web`` some times, and return whose pages came."""
    return {guests.page("web", host) for _ in range(count)}
