"""What a host of namespaces and a whole Debian in a container have in common: commands, guests, pages."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from support import guest, netns
from support.guest import Guest
from support.netns import HOST4, HOST6
from support.proc import HUNG, Background, Done, eventually, run

COMMAND = "/usr/local/bin/virt-forward"
BOOT = 120.0
"""Seconds after which a guest counts as one that does not boot: emulated beside others, it needs many."""
DUMP_STATE = """\
import sqlite3
print(*sqlite3.connect("file:/run/virt-forward/state.db?mode=ro", uri=True).iterdump(), sep="\\n")
"""


def lay_out(folder: Path, files: Mapping[str, str]) -> None:
    """Write files under a folder by the paths they have under the root."""
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)


def first_process(outer: Background, undo: contextlib.ExitStack) -> int:
    """Wait until a container has its first process, and return that one's number."""
    ours = Path("/proc/self/ns/pid").readlink()
    found: list[int] = []

    def look() -> list[int]:
        for child in map(int, Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()):
            with contextlib.suppress(OSError):
                found.extend([child] if Path(f"/proc/{child}/ns/pid").readlink() != ours else [])
        return found

    outer.wait_for(look, "first process of the container")
    # Its end is the end of the whole process namespace.
    undo.callback(_kill, found[0])
    return found[0]


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


class BaseHost:
    """A host with libvirt on it, a client outside, and a first process whose namespaces it is."""

    namespaces: tuple[str, ...] = ("--mount", "--net", "--pid")

    def __init__(self, lab: netns.Lab) -> None:
        self.lab, self.client, self.ns = lab, lab.client, lab.host
        self.init = 0
        self._without_br_netfilter()

    def _without_br_netfilter(self) -> None:
        """Have it off, as on a host that has not loaded the module; where it is loaded, it is on at first."""
        for name in ("iptables", "ip6tables"):
            if Path(f"/proc/sys/net/bridge/bridge-nf-call-{name}").exists():
                self.ns.sysctl(f"net.bridge.bridge-nf-call-{name}", 0)

    def run(
        self, argv: Sequence[str | Path], *, stdin: str = "", timeout: float = HUNG, check: bool = True
    ) -> Done:
        """Run a command as root on this host, in its own file system."""
        enter = ["nsenter", f"--target={self.init}", *self.namespaces, "--wdns=/"]
        clean = {**netns.HOOK_ENV, "VIRSH_DEFAULT_CONNECT_URI": "qemu:///system"}
        return run([*enter, *argv], stdin=stdin, timeout=timeout, check=check, env=clean)

    def virsh(self, *words: str, check: bool = True, timeout: float = HUNG) -> Done:
        return self.run(["virsh", "-q", *words], check=check, timeout=timeout)

    def command(self, *words: str, check: bool = True) -> Done:
        """Run the installed ``virt-forward``."""
        return self.run([COMMAND, *words], check=check)

    def forwards(self) -> list[dict[str, object]]:
        """Return what ``virt-forward list --json`` tells, one forward a row."""
        told = json.loads(self.command("list", "--json").out)
        assert told["version"] == 1
        rows: list[dict[str, object]] = told["forwards"]
        return rows

    def read(self, path: str) -> str:
        return self.run(["cat", path], check=False).out

    def write(self, path: str, text: str, *, mode: str = "0644") -> None:
        self.run(["install", "-D", "-m", mode, "/dev/stdin", path], stdin=text)

    def nft_reload(self) -> None:
        """Do what ``systemctl reload nftables`` does."""
        self.run(["nft", "-f", "/etc/nftables.conf"])

    def ruleset_but_ours(self) -> str:
        """List all tables but ours, as text to compare byte for byte."""
        tables = self.run(["nft", "list", "tables"]).out.splitlines()
        theirs = [line.split()[1:] for line in tables if line != "table inet virt-forward"]
        return "".join(self.run(["nft", "-s", "list", "table", *words]).out for words in theirs)

    def our_table(self) -> str:
        """List our table; nothing where there is none."""
        return self.run(["nft", "-s", "list", "table", "inet", "virt-forward"], check=False).out

    def sql(self, statement: str) -> str:
        """Return the rows that a statement reads from our state, or what it changes there, as one text."""
        code = (
            "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); "
            "print(*db.execute(sys.argv[2])); db.commit()"
        )
        return self.run(["python3", "-c", code, "/run/virt-forward/state.db", statement]).out

    def traces_of_guests(self) -> list[str]:
        """Return what stands in our table and records for guests."""
        chains = re.findall(r"chain (guest-\S+)", self.our_table())
        records = self.run(["find", "/run/virt-forward", "-path", "*guest*", "-type", "f"], check=False).out
        return chains + records.split()

    def explain(self) -> str:
        """Return all that tells why a forward does not work."""
        parts = (
            self.run(["nft", "list", "ruleset"]).out,
            self.run(["/usr/bin/python3", "-c", DUMP_STATE], check=False).out,
            self.run(["conntrack", "-L"], check=False).out,
            self.log(),
        )
        return "\n".join(parts)

    def domain(self, wanted: Guest) -> str:
        return wanted.domain(guest.assets(), Path(f"/run/lab/{wanted.name}.console"))

    def define(self, wanted: Guest) -> None:
        self.run(["virsh", "-q", "define", "/dev/stdin"], stdin=self.domain(wanted))

    def start(self, wanted: Guest) -> None:
        """Define a guest and start it."""
        self.define(wanted)
        self.virsh("start", wanted.name)

    def console(self, wanted: Guest) -> str:
        return self.read(f"/run/lab/{wanted.name}.console")

    def fetch(self, port: int, *, host: str = HOST4, path: str = "/") -> str | None:
        """Fetch a page of this host from the client outside, which must be there by now."""
        return guest.fetch(self.client.path, host, port, path)

    def closed(self, port: int, *, host: str = HOST4) -> bool:
        """Tell whether the client outside does not get in."""
        return guest.fetch(self.client.path, host, port, wait=guest.SOON) is None

    def wait_page(self, port: int, page: str, why: str, timeout: float = 30, *, host: str = HOST4) -> None:
        """Wait until the client outside is served a page."""
        soon = functools.partial(guest.fetch, self.client.path, host, port, wait=guest.SOON)
        eventually(lambda: soon() == page, why, timeout)

    def shows(self, pages: Sequence[str | None], ports: Sequence[int], *, host: str = HOST4) -> bool:
        """Tell whether each port serves its page to the client outside, and is closed where that is None."""
        return all(
            self.fetch(port, host=host) == page if page else self.closed(port, host=host)
            for page, port in zip(pages, ports, strict=True)
        )

    def fetch6(self, port: int, path: str = "/") -> str | None:
        return self.fetch(port, host=HOST6, path=path)

    def wait_lease(self, wanted: Guest, timeout: float = BOOT) -> str:
        """Wait until DHCP has given the guest an address, whichever; return it."""
        given = re.compile(r"vf: address (\S+)")
        eventually(lambda: given.search(self.console(wanted)), f"{wanted.name} has a lease", timeout, 0.1)
        return str(given.findall(self.console(wanted))[-1])

    def wait_booted(self, wanted: Guest, timeout: float = BOOT) -> None:
        """Wait until the guest serves its page to its host; no forward has a part in that."""
        try:
            eventually(lambda: self.serves(wanted), f"guest {wanted.name} is up", timeout, 0.1)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.console(wanted)}\n{self.log()}") from None

    def serves(self, wanted: Guest) -> bool:
        soon = functools.partial(guest.fetch, self.ns.path, port=80, wait=guest.SOON)
        return all(soon(address) == wanted.page for address in wanted.addresses())

    def state(self, wanted: Guest) -> str:
        return self.virsh("domstate", wanted.name).out.strip()

    def qemu_pid(self, wanted: Guest) -> str:
        return self.read(f"/run/libvirt/qemu/{wanted.name}.pid").strip()

    def log(self) -> str:
        """Return what the daemons said: for the words of a failed assertion."""
        return self.read("/run/lab/libvirtd.log") + self.read("/run/lab/networkd.log")

    def forget_all(self) -> None:
        """Destroy and undefine every guest and every libvirt network."""
        for name in self.virsh("list", "--all", "--name").out.split():
            self.virsh("destroy", name, check=False)
            self.virsh("managedsave-remove", name, check=False)
            self.virsh("undefine", name, check=False)
        for name in self.virsh("net-list", "--all", "--name").out.split():
            self.virsh("net-destroy", name, check=False)
            self.virsh("net-undefine", name, check=False)
