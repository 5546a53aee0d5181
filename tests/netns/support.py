"""Guests declared in a few words and started as libvirt would start them; the addresses of both families."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from support import netns, xml
from support.netns import Lab, Ns
from support.payload import Server
from support.proc import Done

BRIDGE_SYSCTLS = Path("/proc/sys/net/bridge")
GUESTS = {"web": 200, "db": 201, "app": 202}
PHASES: dict[str, tuple[str, xml.Phase]] = {
    "prepare": ("begin", "prepare"),
    "start": ("begin", "prepare"),
    "started": ("begin", "started"),
    "reconnect": ("begin", "started"),
    "restore": ("begin", "prepare"),
    "stopped": ("end", "stopped"),
    "release": ("end", "stopped"),
}


@dataclass(frozen=True)
class Family:
    """The addresses of the lab in one family; ``second`` are those of the other uplink and its client."""

    version: int
    host: str
    client: str
    second_host: str
    second_client: str
    gateway: str
    extra: str
    loopback: str
    guests: str
    any: str
    lan: str

    def guest(self, number: int) -> str:
        return f"{self.guests}{number}"

    def more(self, number: int) -> str:
        """Return another address in the client's subnet."""
        return f"{self.client[:-1]}{number}"

    @property
    def third(self) -> str:
        return self.more(3)

    @property
    def fourth(self) -> str:
        return self.more(4)

    def __str__(self) -> str:
        return f"v{self.version}"


V4 = Family(
    4, netns.HOST4, netns.CLIENT4, netns.SECOND_HOST4, netns.SECOND_CLIENT4, netns.GATEWAY4,
    "192.0.2.9", "127.0.0.1", "10.10.0.", "0.0.0.0/0", "192.0.2.0/24",
)  # fmt: skip
V6 = Family(
    6, netns.HOST6, netns.CLIENT6, netns.SECOND_HOST6, netns.SECOND_CLIENT6, netns.GATEWAY6,
    "2001:db8:1::9", "::1", "fd10:10::", "::/0", "2001:db8:1::/64",
)  # fmt: skip
FAMILIES = (V4, V6)
PROTOS = ("tcp", "udp", "sctp")


def mac_of(number: int) -> str:
    return f"52:54:00:00:00:{number:02x}"


def has_br_netfilter() -> bool:
    return BRIDGE_SYSCTLS.exists()


def bridge_netfilter(host: Ns, on: bool) -> None:
    """Say whether frames that a bridge of this namespace passes on go through the IP hooks."""
    if has_br_netfilter():
        for name in ("iptables", "ip6tables"):
            host.sysctl(f"net.bridge.bridge-nf-call-{name}", int(on))


class Testbed:
    """A lab whose guests are known by name; each is started and stopped by the real hook."""

    __test__ = False  # pytest collects what is named Test…

    def __init__(self, lab: Lab, *, br_netfilter: bool = False) -> None:
        self.lab = lab
        self.host, self.client = lab.host, lab.client
        bridge_netfilter(self.host, br_netfilter)
        self._numbers: dict[str, int] = {}
        self._bridges: dict[str, str] = {}
        self._metadata: dict[str, str] = {}
        self._seen: dict[str, None] = {}

    def guest(self, name: str, number: int, *, v4: bool = True, v6: bool = True) -> Ns:
        """Plug a guest into the bridge; its addresses end in ``number`` and stand in its metadata."""
        self._numbers[name], self._bridges[name] = number, netns.BRIDGE
        ip4, ip6 = (f.guest(number) if on else None for f, on in ((V4, v4), (V6, v6)))
        self._hosts(name, ip4, ip6)
        return self.lab.guest(name, ip4, ip6, mac_of(number))

    def far_guest(self, name: str, number: int, bridge: str = "virbr1") -> Ns:
        """Plug a guest into another bridge of the host, with subnets of its own."""
        self.lab.add_bridge(bridge, "10.20.0.1/24", "fd20:20::1/64")
        self._numbers[name], self._bridges[name] = number, bridge
        ip4, ip6 = f"10.20.0.{number}", f"fd20:20::{number}"
        self._hosts(name, ip4, ip6)
        return self.lab.guest(
            name, ip4, ip6, mac_of(number), bridge=bridge, gateway4="10.20.0.1", gateway6="fd20:20::1"
        )

    def _hosts(self, name: str, *addresses: str | None) -> None:
        self._metadata[name] = "".join(xml.host_ip(ip) for ip in addresses if ip)

    @contextlib.contextmanager
    def declaring(self, name: str, hosts: str | None) -> Iterator[None]:
        """Have a guest's metadata say ``hosts`` in place of its own addresses, where given."""
        before = self._metadata[name]
        self._metadata[name] = before if hosts is None else hosts
        try:
            yield
        finally:
            self._metadata[name] = before

    @contextlib.contextmanager
    def at_mac(self, name: str, number: int) -> Iterator[None]:
        """Have a guest's XML say the hardware address of the guest with a number."""
        before, self._numbers[name] = self._numbers[name], number
        try:
            yield
        finally:
            self._numbers[name] = before

    def xml(self, name: str, *children: str, attributes: str = "", phase: xml.Phase = "started") -> str:
        metadata = xml.forwards(self._metadata[name], *children, attributes=attributes)
        nic = xml.Nic(self._bridges[name], mac_of(self._numbers[name]))
        return xml.domain(name, metadata, [nic], phase)

    def event(
        self, name: str, operation: str, *children: str, attributes: str = "", check: bool = True
    ) -> Done:
        """Run the qemu hook for one event, with the XML that libvirt has for it."""
        sub, phase = PHASES[operation]
        self._seen[name] = None
        text = self.xml(name, *children, attributes=attributes, phase=phase)
        return self.lab.hook("qemu", name, operation, sub, xml=text, check=check)

    def start(self, name: str, *children: str, attributes: str = "") -> None:
        for operation in ("prepare", "started"):
            self.event(name, operation, *children, attributes=attributes)

    def stop(self, name: str, *children: str) -> None:
        for operation in ("stopped", "release"):
            self.event(name, operation, *children)

    def refused(self, name: str, *children: str) -> str:
        """Prepare a guest that must not start, and return what virsh would show."""
        done = self.event(name, "prepare", *children, check=False)
        assert done.status == 1, done
        assert done.out == ""
        return done.err

    def reset(self) -> None:
        """Stop every guest that was ever mentioned, and forget connections and configuration."""
        for name in self._seen:
            if (self.lab.run_dir / "guests" / xml.uuid_of(name)).exists():
                self.event(name, "stopped")
        self._seen.clear()
        self.lab.config.unlink(missing_ok=True)
        self.host.run(["conntrack", "-F"], check=False)
        assert self.table() == ""

    def table(self) -> str:
        """List our table without counters; empty where there is none."""
        done = self.host.run(["nft", "-s", "list", "table", "inet", "virt-forward"], check=False)
        return done.out

    def routed(self) -> Ns:
        """Add the second uplink; both clients know every way through the host. Return the second client."""
        other = self.lab.second_client()
        for ns, gateways in ((self.client, (V4.host, V6.host)), (other, (V4.second_host, V6.second_host))):
            ns.ip(f"route add default via {gateways[0]}", f"route add ::/0 via {gateways[1]}")
        return other

    def second_addresses(self) -> None:
        """Give the host one more uplink address of each family, and the client some, too."""
        # Of equals, the kernel would speak from the IPv6 address that came last.
        self.host.ip(
            f"address add {V4.extra} dev {netns.UPLINK}",
            f"address add {V6.extra} dev {netns.UPLINK} preferred_lft 0",
        )
        self.client.ip(
            *(f"address add {V4.more(n)} dev eth0" for n in (3, 4, 5)),
            *(f"address add {V6.more(n)} dev eth0 preferred_lft 0" for n in (3, 4, 5)),
        )


class Servers:
    """Servers that count together what reaches any of them."""

    def __init__(self, servers: Iterable[Server] = ()) -> None:
        self.servers = [*servers]

    def serve(
        self, ns: Ns, ports: tuple[int, ...], *, name: str = "", protos: tuple[str, ...] = PROTOS,
        address: str | None = None,
    ) -> None:  # fmt: skip
        name = name or ns.name.rpartition("-")[2]
        self.servers += [ns.serve(proto, *ports, name=name, address=address) for proto in protos]

    def requests(self) -> int:
        """Return how many requests have reached any of them by now."""
        for server in self.servers:
            server.settle()
        return sum(len(server.asked) for server in self.servers)


def told(
    ns: Ns, address: str, port: int, proto: str = "tcp", *, source: str | None = None
) -> tuple[str, str, int]:
    """Ask, and return who answered, whom he saw, and on which port he was asked."""
    answer = ns.ask(address, port, proto, source=source)
    assert answer is not None, f"nobody answered on {address} {proto}/{port}"
    return answer.name, answer.source, answer.port


def who(ns: Ns, address: str, port: int, proto: str = "tcp", *, source: str | None = None) -> str | None:
    """Ask, and return only who answered; None for a refusal: use silent() to prove silence."""
    answer = ns.ask(address, port, proto, source=source)
    return answer.name if answer else None


def silent(
    ns: Ns, address: str, port: int, proto: str, servers: Servers, *, source: str | None = None
) -> bool:
    """Ask, and tell whether nobody answered and none of the servers was even reached."""
    before = servers.requests()
    return ns.unanswered(address, port, proto, source=source) and servers.requests() == before


class Topology:
    """The namespaces of a network that is built once a module; every guest serves the same ports."""

    PORTS = (80, 81, 5000, 5005, 5555, 5800, 5999, 6000, 6005, 6500)

    def __init__(self, testbed: Testbed) -> None:
        self.testbed = testbed
        testbed.second_addresses()
        self.client, self.host, self.client2 = testbed.client, testbed.host, testbed.routed()
        self.web, self.db, self.app = (testbed.guest(name, n) for name, n in GUESTS.items())
        self.far = testbed.far_guest("far", 5)
        self.servers = Servers()
        for ns in (self.web, self.db, self.app, self.far):
            self.servers.serve(ns, self.PORTS, protos=("tcp", "udp"))

    def silent(self, ns: Ns, address: str, port: int, proto: str = "tcp", source: str | None = None) -> bool:
        return silent(ns, address, port, proto, self.servers, source=source)
