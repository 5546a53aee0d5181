"""A real host in namespaces: this machine's networkd and libvirtd, with files and a network of their own.

Nothing of the machine is touched: /etc, /var and /usr/local are overlaid, /run is empty at the start, and all
of it goes when the host's first process does.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lab import guest, netns
from lab.guest import Guest
from lab.netns import HOST4, HOST6
from lab.proc import REPO, Background, Done, eventually, run

HERE = Path(__file__).parent

NETDEV = """\
[NetDev]
Name=virbr0
Kind=bridge
MACAddress=52:54:00:9a:8a:d1
"""
NETWORK = f"""\
[Match]
Name=virbr0
[Network]
Address={netns.GATEWAY4}/24
Address={netns.GATEWAY6}/64
DHCPServer=yes
IPForward=yes
ConfigureWithoutCarrier=yes
[DHCPServer]
PoolOffset=20
PoolSize=100
DNS=1.1.1.1
[DHCPServerStaticLease]
MACAddress={netns.GUEST_MAC}
Address={netns.GUEST4}
"""
# What a person has: drops by default, and the one line that lets our forwards in.
NFTABLES = """\
flush ruleset
table inet nat {
  chain postrouting { type nat hook postrouting priority srcnat;
    iifname virbr0 ip saddr 10.10.0.0/24 oifname { wlan0, enp1s0 } masquerade
  }
}
table inet filter {
  chain input { type filter hook input priority filter; policy drop;
    ct state established,related accept
    iifname != enp1s0 accept
    meta l4proto { icmp, ipv6-icmp } accept
  }
  chain forward { type filter hook forward priority filter; policy drop;
    ct state established,related accept
    ct label 100 accept
    iifname virbr0 oifname { wlan0, enp1s0 } accept
  }
}
include "/run/virt-forward/*.nft"
"""
LIBVIRTD = """\
auth_unix_rw = "none"
log_outputs = "2:file:/run/lab/libvirtd.log"
"""
QEMU = """\
user = "root"
group = "root"
security_driver = "none"
namespaces = [ ]
cgroup_controllers = [ ]
stdio_handler = "file"
remember_owner = 0
"""
FILES = {
    "etc/systemd/network/98-virbr0.netdev": NETDEV,
    "etc/systemd/network/98-virbr0.network": NETWORK,
    "etc/nftables.conf": NFTABLES,
    "etc/libvirt/libvirtd.conf": LIBVIRTD,
    "etc/libvirt/qemu.conf": QEMU,
}


class Host:
    """A running host; made and undone by :func:`host`."""

    def __init__(self, undo: contextlib.ExitStack, lab: netns.Lab, files: Mapping[str, str]) -> None:
        self._undo = undo
        self.lab, self.client, self.ns = lab, lab.client, lab.host
        self.dir = lab.dir / "host"
        for path, text in {**FILES, **files}.items():
            (self.dir / "files" / path).parent.mkdir(parents=True, exist_ok=True)
            (self.dir / "files" / path).write_text(text)
        (self.dir / "over").mkdir()
        self.init = self._boot()
        eventually(lambda: self.run(["test", "-e", "/run/lab/ready"], check=False).status == 0, "host set up")

    def _boot(self) -> int:
        argv = ["ip", "netns", "exec", self.ns.name, "unshare", "--mount", "--pid", "--fork", "--mount-proc"]
        argv += [
            "--propagation",
            "private",
            "--kill-child=SIGKILL",
            "bash",
            str(HERE / "host.sh"),
            str(self.dir),
        ]
        outer = self._undo.enter_context(Background(argv, self.dir / "boot.log"))
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
        outer.wait_for(children.read_text, "first process of the host")
        init = int(children.read_text())
        # Its end is the end of the whole process namespace.
        self._undo.callback(os.kill, init, signal.SIGKILL)
        return init

    def run(
        self, argv: Sequence[str | Path], *, stdin: str = "", timeout: float = 20, check: bool = True
    ) -> Done:
        """Run a command as root on this host, in its own file system."""
        enter = ["nsenter", f"--target={self.init}", "--mount", "--net", "--pid", "--wd=/"]
        clean = {**netns.HOOK_ENV, "VIRSH_DEFAULT_CONNECT_URI": "qemu:///system"}
        return run([*enter, *argv], stdin=stdin, timeout=timeout, check=check, env=clean)

    def virsh(self, *words: str, check: bool = True, timeout: float = 30) -> Done:
        return self.run(["virsh", "-q", *words], check=check, timeout=timeout)

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

    def traces_of_guests(self) -> list[str]:
        """Return what stands in our table and records for guests."""
        chains = re.findall(r"chain (guest-\S+)", self.our_table())
        records = self.run(["find", "/run/virt-forward", "-path", "*guest*", "-type", "f"], check=False).out
        return chains + records.split()

    def explain(self) -> str:
        """Return all that tells why a forward does not work."""
        parts = (
            self.run(["nft", "list", "ruleset"]).out,
            self.run(["sh", "-c", "head -n 50 $(find /run/virt-forward -type f)"], check=False).out,
            self.run(["conntrack", "-L"], check=False).out,
            self.log(),
        )
        return "\n".join(parts)

    def start_libvirtd(self) -> None:
        self.run(["libvirtd", "--daemon"])
        eventually(lambda: self.virsh("uri", check=False).status == 0, "libvirtd answers", timeout=15)

    def stop_libvirtd(self) -> None:
        pid = self.read("/run/libvirtd.pid").strip()
        self.run(["kill", pid])
        eventually(lambda: self.run(["kill", "-0", pid], check=False).status, "libvirtd ends", timeout=15)

    def restart_libvirtd(self) -> None:
        self.stop_libvirtd()
        self.start_libvirtd()

    def install(self) -> None:
        """Put the package and both hooks in place, as ``install.sh`` would."""
        target = "/usr/local/lib/virt-forward"
        self.run(["mkdir", "-p", target])
        self.run(["cp", "-a", REPO / "lib/virt_forward", target])
        for name in ("qemu", "network"):
            self.run(["install", "-m", "0755", REPO / "hooks" / name, f"/etc/libvirt/hooks/{name}"])

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

    def fetch(self, port: int, *, host: str = HOST4, path: str = "/", timeout: float = 0.5) -> str | None:
        """Fetch a page of this host from the client outside."""
        return guest.fetch(self.client.path, host, port, path, timeout=timeout)

    def fetch6(self, port: int, path: str = "/") -> str | None:
        return self.fetch(port, host=HOST6, path=path)

    def wait_booted(self, wanted: Guest, timeout: float = 40) -> None:
        """Wait until the guest serves its page to its host; no forward has a part in that."""
        try:
            eventually(lambda: self.serves(wanted), f"guest {wanted.name} is up", timeout, 0.1)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.console(wanted)}\n{self.log()}") from None

    def serves(self, wanted: Guest) -> bool:
        return all(guest.fetch(self.ns.path, ip, 80) == wanted.page for ip in wanted.addresses())

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


@contextlib.contextmanager
def host(files: Mapping[str, str] | None = None, *, installed: bool = True) -> Iterator[Host]:
    """Bring up networkd, a hand-written ruleset and libvirtd; ``files`` replaces or adds files by path.

    libvirtd looks for hooks as it starts, so that they have to be there before.
    """
    with contextlib.ExitStack() as undo:
        lab = undo.enter_context(netns.lab(bridge=False))
        made = Host(undo, lab, files or {})
        made.nft_reload()
        eventually(lambda: "virbr0" in made.run(["ip", "-br", "addr"]).out, "networkd makes the bridge")
        if installed:
            made.install()
        made.start_libvirtd()
        yield made
