"""A whole Debian host in a container: systemd, units, packages, all that the installer finds in the world."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from support import cache, cgroups, guest, netns
from support.base_host import BaseHost, first_process, lay_out
from support.host import FILES
from support.proc import HUNG, REPO, Background, eventually, run

HERE = Path(__file__).parent
SUITES = tuple(os.environ.get("VIRT_FORWARD_TEST_SUITES", "trixie").split())
MIRROR = "http://deb.debian.org/debian"
SOURCE = "/usr/src/virt-forward"
PACKAGES = (
    "systemd-sysv", "dbus", "kmod", "procps", "iproute2", "nftables", "iptables", "conntrack",
    "python3-lxml", "python3-libvirt", "libvirt-daemon-system", "libvirt-clients", "dnsmasq-base",
    "qemu-system-x86", "busybox-static",
)  # fmt: skip
ENABLED = ("systemd-networkd", "nftables", "libvirtd")
# Nothing here has a terminal, a clock of its own, or packages to update.
MASKED = (
    "console-getty.service", "getty.target", "systemd-timesyncd.service", "apt-daily.timer",
    "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "fstrim.timer", "e2scrub_all.timer",
    "libvirt-guests.service", "systemd-networkd-wait-online.service",
)  # fmt: skip
OWN_FILES = {
    "etc/systemd/networkd.conf": "[Network]\nIPv4Forwarding=yes\nIPv6Forwarding=yes\n",
    "etc/tmpfiles.d/lab.conf": "d /run/lab 0755\n",
}


def rootfs(suite: str) -> Path:
    """Return the root file system of a suite, made when it is first wanted."""
    return cache.kept(f"debian-{suite}", lambda folder: _bootstrap(suite, folder), f"a Debian {suite} host")


class Layer(NamedTuple):
    """Packages on top of a suite; ``disabled`` are the units that do not start at boot."""

    name: str
    packages: tuple[str, ...]
    disabled: tuple[str, ...]


# What the documentation uses; a test starts the firewall that it is about.
PROGRAMS = Layer(
    "programs",
    ("curl", "docker.io", "firewalld", "sudo", "ufw", "virtinst"),
    ("docker.service", "docker.socket", "containerd.service", "ufw.service", "firewalld.service"),
)


def layer(suite: str, wanted: Layer) -> Path:
    """Return the directory that a layer puts over the root file system of a suite."""
    what = f"a Debian {suite} with {', '.join(wanted.packages)}"
    return cache.kept(f"{wanted.name}-{suite}", lambda folder: _add(suite, wanted, folder), what) / "upper"


def _add(suite: str, wanted: Layer, folder: Path) -> None:
    own: list[str | Path] = ["unshare", "--mount", "--propagation=private", "bash", HERE / "layer.sh"]
    run([*own, rootfs(suite), folder, ",".join(wanted.disabled), *wanted.packages], timeout=600)


def _bootstrap(suite: str, folder: Path) -> None:
    left_out = ("doc", "man", "locale", "info")
    words = ["mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory", "--quiet"]
    words += ["--aptopt=APT::Install-Recommends false", "--dpkgopt=force-unsafe-io"]
    words += [f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in left_out]
    words += [f"--include={','.join(PACKAGES)}", suite, str(folder), MIRROR]
    run(words, timeout=900)
    offline = ["systemctl", f"--root={folder}"]
    run([*offline, "enable", *ENABLED])
    run([*offline, "mask", *MASKED])


class Machine(BaseHost):
    """A booted Debian; made and undone by :func:`machine`."""

    namespaces = ("--mount", "--net", "--pid", "--uts", "--ipc", "--cgroup")

    def __init__(
        self,
        undo: contextlib.ExitStack,
        lab: netns.Lab,
        suite: str,
        files: Mapping[str, str],
        layers: Sequence[Layer],
    ) -> None:
        super().__init__(lab)
        self.disk = ":".join(map(str, (*(layer(suite, wanted) for wanted in layers), rootfs(suite))))
        self.dir = lab.dir / "machine"
        lay_out(self.dir / "files", {**FILES, **OWN_FILES, **files})
        (self.dir / "over").mkdir()
        undo.callback(cgroups.remove, lab.tag)
        self.boot = undo.enter_context(Background(self._argv(), self.dir / "boot.log"))
        self.init = first_process(self.boot, undo)

    def _argv(self) -> list[str | Path]:
        groups = ",".join(map(str, cgroups.named(self.lab.tag)))
        kernel = guest.assets().kernel.parent
        return [
            "unshare", "--mount", "--propagation=private",
            "bash", HERE / "machine.sh", self.dir, self.disk, groups,
            f"--network-namespace-path={self.ns.path}", f"--bind-ro={kernel}", f"--bind-ro={REPO}:{SOURCE}",
        ]  # fmt: skip

    def systemctl(self, *words: str, timeout: float = HUNG) -> str:
        return self.run(["systemctl", *words], timeout=timeout).out

    def restart_libvirtd(self) -> None:
        # It waits up to 30 s for its workers as it stops: finishTimer in libvirt's src/rpc/virnetdaemon.c.
        self.systemctl("restart", "libvirtd", timeout=90)

    def journal(self, *words: str) -> str:
        return self.run(["journalctl", "--no-pager", "-o", "cat", *words]).out

    def booted(self) -> bool:
        done = self.run(["systemctl", "is-system-running"], check=False)
        return done.out.strip() in {"running", "degraded"}

    def wait_up(self) -> None:
        try:
            eventually(self.booted, "systemd has started everything", timeout=120, pause=0.2)
            eventually(lambda: self.virsh("uri", check=False).status == 0, "libvirtd answers")
        except AssertionError as error:
            jobs = self.run(["systemctl", "--failed", "list-jobs"], check=False)
            raise AssertionError(f"{error}\n{jobs}\n{self.boot.text()}") from None

    def install(self, *words: str) -> str:
        """Run ``install.sh`` from the read-only checkout."""
        return self.run([f"{SOURCE}/install.sh", *words], timeout=120).out

    def log(self) -> str:
        return self.journal("-n", "200")


@contextlib.contextmanager
def machine(
    suite: str = SUITES[0], files: Mapping[str, str] | None = None, layers: Sequence[Layer] = ()
) -> Iterator[Machine]:
    """Boot a Debian of that suite with the files of section 1 in it; every boot starts from the same disk."""
    with contextlib.ExitStack() as undo:
        lab = undo.enter_context(netns.lab(bridge=False))
        made = Machine(undo, lab, suite, files or {}, layers)
        made.wait_up()
        yield made
