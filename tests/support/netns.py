"""The layout most people run, in fresh network namespaces of its own for every test.

    client 192.0.2.2 ---- enp1s0 192.0.2.1  host  virbr0 10.10.0.1 ---- guest 10.10.0.200
      2001:db8:1::2         2001:db8:1::1           fd10:10::1            fd10:10::200

The client knows the host and nothing behind it: what it reaches there, it reached through a forward.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from support import payload
from support.payload import Answer, Conversation, Server
from support.proc import HUNG, REPO, Background, Done, run

BRIDGE, UPLINK, UPLINK2 = "virbr0", "enp1s0", "enp2s0"
HOST4, HOST6 = "192.0.2.1", "2001:db8:1::1"
CLIENT4, CLIENT6 = "192.0.2.2", "2001:db8:1::2"
SECOND_HOST4, SECOND_HOST6 = "198.51.100.1", "2001:db8:2::1"
SECOND_CLIENT4, SECOND_CLIENT6 = "198.51.100.2", "2001:db8:2::2"
GATEWAY4, GATEWAY6 = "10.10.0.1", "fd10:10::1"
GUEST4, GUEST6, GUEST_MAC = "10.10.0.200", "fd10:10::200", "52:54:00:a0:8f:2c"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
HOOK_ENV = {"LC_ALL": "C", "PATH": PATH, "HOME": "/root", "USER": "root", "LOGNAME": "root"}
PREFIX = f"vf-{os.getpid()}-"

_numbers = itertools.count(1)


class Ns:
    """A network namespace of ours."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = Path("/run/netns", name)
        self._undo = contextlib.ExitStack()
        run(["ip", "netns", "add", name])
        try:
            self._prepare()
        except BaseException:
            self.remove()
            raise

    def _prepare(self) -> None:
        # Duplicate address detection makes an IPv6 address unusable for its first second.
        for key in ("all", "default"):
            self.sysctl(f"net.ipv6.conf.{key}.accept_dad", 0)
        self.ip("link set lo up")

    def run(
        self, argv: Sequence[str | Path], *, stdin: str = "", timeout: float = HUNG, check: bool = True,
        env: Mapping[str, str] | None = None,
    ) -> Done:  # fmt: skip
        """Run a command in here (with its own view of /sys, as ``ip netns exec`` gives it)."""
        words = ["ip", "netns", "exec", self.name, *argv]
        return run(words, stdin=stdin, timeout=timeout, check=check, env=env)

    def ip(self, *commands: str) -> None:
        """Apply ``ip`` commands, all in one process."""
        run(["ip", "-n", self.name, "-batch", "-"], stdin="\n".join(commands) + "\n")

    def nft(self, text: str) -> None:
        self.run(["nft", "-f", "-"], stdin=text)

    def ruleset(self, *what: str) -> str:
        """List the ruleset without counters, or one part of it (``"table", "inet", "filter"``)."""
        return self.run(["nft", "-s", "list", *(what or ("ruleset",))]).out

    def theirs(self) -> str:
        """List the ruleset without our table, byte for byte."""
        return re.sub(r"(?ms)^table inet virt-forward \{\n.*?^\}\n", "", self.ruleset())

    def sysctl(self, key: str, value: object) -> None:
        path = Path("/proc/sys", key.replace(".", "/"))
        payload.inside(self.path, lambda: path.write_text(str(value)))

    def serve(self, proto: str, *ports: int, name: str = "", address: str | None = None) -> Server:
        """Start a server that ends with the namespace."""
        server = Server(self.path, name or self.name.removeprefix(PREFIX), proto, ports, address)
        self._undo.callback(server.close)
        return server

    def background(self, argv: Sequence[str | Path], log: Path) -> Background:
        """Start a process in here that ends with the namespace."""
        return self._undo.enter_context(Background(["ip", "netns", "exec", self.name, *argv], log))

    def ask(
        self, host: str, port: int, proto: str = "tcp", *, source: str | None = None, sport: int = 0
    ) -> Answer | None:
        """Ask where an answer, or a refusal (None), is expected; a late one counts, too."""
        return payload.ask(self.path, host, port, proto, source=source, sport=sport)

    def unanswered(self, host: str, port: int, proto: str = "tcp", *, source: str | None = None) -> bool:
        """Ask where silence, or a refusal, is expected: tell whether no answer comes soon."""
        try:
            return payload.ask(self.path, host, port, proto, source=source, wait=payload.SILENCE) is None
        except TimeoutError:
            return True

    def knock(self, host: str, port: int, proto: str = "tcp", *, source: str | None = None) -> None:
        """Send what a client sends first; whether anybody answers is not asked."""
        self.unanswered(host, port, proto, source=source)

    def conversation(self, host: str, port: int, proto: str = "tcp", *, sport: int = 0) -> Conversation:
        """Open a flow that stays open; it ends with the namespace if nobody closes it before."""
        return self._undo.enter_context(Conversation(self.path, host, port, proto, sport=sport))

    def remove(self) -> None:
        self._undo.close()
        run(["ip", "netns", "del", self.name])


class Lab:
    """One host with its client and its guests; made and undone by :func:`lab`."""

    def __init__(self, undo: contextlib.ExitStack, *, bridge: bool = True) -> None:
        self._undo = undo
        self.tag = f"{PREFIX}{next(_numbers)}"
        self.dir = Path(tempfile.mkdtemp(prefix=f"{self.tag}-", dir="/tmp"))
        undo.callback(shutil.rmtree, self.dir)
        self.guests: dict[str, Ns] = {}
        self.host, self.client = self._ns("host"), self._ns("client")
        self.run_dir, self.config = self.dir / "run", self.dir / "config.toml"
        self.env = {"VIRT_FORWARD_RUN_DIR": str(self.run_dir), "VIRT_FORWARD_CONFIG": str(self.config)}
        self._forwarding()
        if bridge:
            self.add_bridge(BRIDGE, f"{GATEWAY4}/24", f"{GATEWAY6}/64")
        self.wire_client(self.client, UPLINK, (HOST4, HOST6), (CLIENT4, CLIENT6))

    def _ns(self, name: str) -> Ns:
        made = Ns(f"{self.tag}-{name}")
        self._undo.callback(made.remove)
        return made

    def _forwarding(self) -> None:
        self.host.sysctl("net.ipv4.ip_forward", 1)
        self.host.sysctl("net.ipv6.conf.all.forwarding", 1)

    def wire_client(self, client: Ns, uplink: str, ours: tuple[str, str], theirs: tuple[str, str]) -> None:
        """Join a client to the host by an uplink; each side has an IPv4 /24 and an IPv6 /64 address."""
        self.host.ip(
            f"link add {uplink} type veth peer name eth0 netns {client.name}",
            f"address add {ours[0]}/24 dev {uplink}",
            f"address add {ours[1]}/64 dev {uplink}",
            f"link set {uplink} up",
        )
        client.ip(
            f"address add {theirs[0]}/24 dev eth0", f"address add {theirs[1]}/64 dev eth0", "link set eth0 up"
        )

    def second_client(self) -> Ns:
        """Add uplink enp2s0 (198.51.100.1, 2001:db8:2::1) with a client of its own."""
        client = self._ns("client2")
        self.wire_client(client, UPLINK2, (SECOND_HOST4, SECOND_HOST6), (SECOND_CLIENT4, SECOND_CLIENT6))
        return client

    def add_bridge(self, name: str, *networks: str) -> None:
        """Make a bridge on the host, with the host's address in each network (``"10.20.0.1/24"``)."""
        self.host.ip(
            f"link add {name} type bridge forward_delay 0",
            *(f"address add {network} dev {name}" for network in networks),
            f"link set {name} up",
        )

    def guest(
        self, name: str = "web", ip4: str | None = GUEST4, ip6: str | None = GUEST6, mac: str = GUEST_MAC,
        *, bridge: str = BRIDGE, gateway4: str = GATEWAY4, gateway6: str = GATEWAY6,
    ) -> Ns:  # fmt: skip
        """Add a guest: a namespace on the bridge, its tap named vnetN as libvirt's are."""
        guest = self._ns(name)
        tap = f"vnet{len(self.guests)}"
        self.guests[name] = guest
        self.host.ip(
            # As libvirt does: never the lowest address, which the bridge would take for its own.
            f"link add {tap} address fe{mac[2:]} type veth peer name eth0 address {mac} netns {guest.name}",
            f"link set {tap} master {bridge} up",
        )
        guest.ip("link set eth0 up")
        self.readdress(guest, ip4, ip6, gateway4=gateway4, gateway6=gateway6)
        return guest

    def readdress(
        self, guest: Ns, ip4: str | None, ip6: str | None,
        *, gateway4: str = GATEWAY4, gateway6: str = GATEWAY6,
    ) -> None:  # fmt: skip
        """Give a guest these addresses and no others."""
        commands = ["address flush dev eth0 scope global"]
        if ip4:
            commands += [f"address add {ip4}/24 dev eth0", f"route add default via {gateway4}"]
        if ip6:
            commands += [f"address add {ip6}/64 dev eth0", f"route add ::/0 via {gateway6}"]
        guest.ip(*commands)

    def hook(
        self, program: str, name: str, operation: str, sub: str = "begin",
        *, extra: str = "-", xml: str = "", env: Mapping[str, str] | None = None, check: bool = True,
        timeout: float = HUNG,
    ) -> Done:  # fmt: skip
        """Run a hook as libvirt would: ``lab.hook("qemu", "web", "started", xml=domain("web", …))``."""
        argv = [str(REPO / "hooks" / program), name, operation, sub, extra]
        clean = {**HOOK_ENV, **self.env, **(env or {})}
        return self.host.run(argv, stdin=xml, env=clean, check=check, timeout=timeout)

    def command(self, *words: str, env: Mapping[str, str] | None = None, check: bool = True) -> Done:
        """Run the ``virt-forward`` command on the host, straight from the checkout."""
        argv = ["/usr/bin/python3", "-m", "virt_forward.cli", *words]
        clean = {**HOOK_ENV, **self.env, "PYTHONPATH": str(REPO / "lib"), **(env or {})}
        return self.host.run(argv, env=clean, check=check)

    def configure(self, text: str) -> None:
        """Write config.toml."""
        self.config.write_text(text)


@contextlib.contextmanager
def lab(*, bridge: bool = True) -> Iterator[Lab]:
    """Build the layout; everything in it is undone at the end, whatever happened."""
    with contextlib.ExitStack() as undo:
        yield Lab(undo, bridge=bridge)
