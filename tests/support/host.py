"""A real host in namespaces: this machine's networkd and libvirtd, with files and a network of their own.

Nothing of the machine is touched: /etc, /var and /usr/local are overlaid, /run is empty at the start, and all
of it goes when the host's first process does.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from support import netns
from support.base_host import COMMAND, BaseHost, first_process, lay_out
from support.proc import REPO, Background, eventually, run

HERE = Path(__file__).parent

NETDEV = """\
[NetDev]
Name=virbr0
Kind=bridge
MACAddress=52:54:00:9a:8a:d1
"""
SYSTEMD = int(run(["systemctl", "--version"]).out.split()[1])
# systemd 256 has other words for it, and check tells of the old ones.
FORWARDING = "IPForward=yes" if SYSTEMD < 256 else "IPv4Forwarding=yes\nIPv6Forwarding=yes"
NETWORK = f"""\
[Match]
Name=virbr0
[Network]
Address={netns.GATEWAY4}/24
Address={netns.GATEWAY6}/64
DHCPServer=yes
{FORWARDING}
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


class Host(BaseHost):
    """A running host; made and undone by :func:`host`."""

    def __init__(self, undo: contextlib.ExitStack, lab: netns.Lab, files: Mapping[str, str]) -> None:
        super().__init__(lab)
        self._undo = undo
        self.dir = lab.dir / "host"
        # networkd's DHCP makes its identifiers of it, and fails where a machine has none yet.
        identity = {"etc/machine-id": f"{uuid.uuid4().hex}\n"}
        lay_out(self.dir / "files", {**FILES, **identity, **files})
        (self.dir / "over").mkdir()
        self.init = self._boot()
        eventually(lambda: self.run(["test", "-e", "/run/lab/ready"], check=False).status == 0, "host set up")

    def _boot(self) -> int:
        enter = f"ip netns exec {self.ns.name} unshare --mount --pid --fork --mount-proc"
        ends = ["--propagation=private", "--kill-child=SIGKILL"]
        argv: list[str | Path] = [*enter.split(), *ends, "bash", HERE / "host.sh", self.dir]
        outer = self._undo.enter_context(Background(argv, self.dir / "boot.log"))
        return first_process(outer, self._undo)

    def start_libvirtd(self) -> None:
        self.run(["libvirtd", "--daemon"])
        eventually(lambda: self.virsh("uri", check=False).status == 0, "libvirtd answers")

    def stop_libvirtd(self) -> None:
        pid = self.read("/run/libvirtd.pid").strip()
        self.run(["kill", pid])
        try:
            eventually(lambda: self._ended(pid), "libvirtd ends", timeout=15)
        except AssertionError:
            # libvirtd 11.3 can hang when it is stopped just after a start; systemd would kill it then.
            hooks = self.run(["pgrep", "-af", "libvirt/hooks"], check=False).out
            assert not hooks, f"libvirtd does not end while a hook runs:\n{hooks}"
            self.run(["kill", "-9", pid])
            eventually(lambda: self._ended(pid), "libvirtd is killed")

    def _ended(self, pid: str) -> bool:
        return self.run(["kill", "-0", pid], check=False).status != 0

    def restart_libvirtd(self) -> None:
        """Restart it, and wait until it has found every guest again, which it does after it answers."""
        running = self._running()
        self.stop_libvirtd()
        self.start_libvirtd()
        eventually(lambda: self._running() >= running, f"libvirtd finds {running} again")

    def _running(self) -> set[str]:
        return set(self.virsh("list", "--name").out.split())

    def install(self) -> None:
        """Put the package, the command and both hooks in place, as ``install.sh`` would."""
        target = "/usr/local/lib/virt-forward"
        self.run(["mkdir", "-p", target])
        self.run(["cp", "-a", REPO / "lib/virt_forward", target])
        self.run(["install", "-D", "-m", "0755", f"{target}/virt_forward/data/launcher", COMMAND])
        for name in ("qemu", "network"):
            self.run(["install", "-m", "0755", REPO / "hooks" / name, f"/etc/libvirt/hooks/{name}"])


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
