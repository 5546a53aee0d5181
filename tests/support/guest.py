"""A guest that boots in seconds: Debian's cloud kernel, busybox, a web page that says who serves it."""

from __future__ import annotations

import contextlib
import re
import socket
from dataclasses import dataclass
from pathlib import Path

from support import cache, initramfs, netns, payload, xml
from support.payload import ANSWERED
from support.proc import run

SOON = 0.5
"""Seconds to wait for a connection where none is expected, or where a loop tries again."""
KERNEL_PACKAGE = "linux-image-cloud-amd64"


@dataclass(frozen=True)
class Assets:
    """Where the guest's kernel and initramfs are."""

    kernel: Path
    initrd: Path


def assets() -> Assets:
    """Return kernel and initramfs; nothing is installed for them."""
    folder = cache.kept(f"guest-{initramfs.digest()}", _fetch, f"the guest's kernel, out of {KERNEL_PACKAGE}")
    return Assets(folder / "vmlinuz", folder / "initrd.img")


def _fetch(folder: Path) -> None:
    depends = run(["apt-cache", "depends", KERNEL_PACKAGE]).out
    package = re.search(r"Depends: (linux-image-\S+)", depends)
    assert package, f"{KERNEL_PACKAGE} depends on no kernel:\n{depends}"
    scratch = folder / "scratch"
    scratch.mkdir()
    run(["apt-get", "download", "-qq", package[1]], cwd=scratch, timeout=300)
    run(["dpkg", "-x", next(scratch.glob("*.deb")), scratch], timeout=120)
    next(scratch.glob("boot/vmlinuz-*")).rename(folder / "vmlinuz")
    (folder / "initrd.img").write_bytes(initramfs.build(scratch))
    run(["rm", "-r", scratch])


@dataclass(frozen=True)
class Guest:
    """A guest to be defined: its name, how it gets its addresses, what its metadata says."""

    name: str = "web"
    metadata: str = ""
    mac: str = netns.GUEST_MAC
    ip4: str | None = None
    ip6: str | None = f"{netns.GUEST6}/64"
    lease4: str = netns.GUEST4
    interface: str = f"<interface type='bridge'>@<source bridge='{netns.BRIDGE}'/></interface>"

    @property
    def uuid(self) -> str:
        return xml.uuid_of(self.name)

    @property
    def page(self) -> str:
        return f"guest {self.name}"

    def addresses(self) -> list[str]:
        """Return where its host reaches it; without ``ip4`` that is what DHCP is going to say."""
        return [word.split("/")[0] for word in (self.ip4 or self.lease4, self.ip6) if word]

    def cmdline(self) -> str:
        """Write the kernel's words: without an address of its own the guest asks by DHCP."""
        words = ["console=ttyS0", "quiet", "panic=-1", "random.trust_cpu=on", f"vf.name={self.name}"]
        if self.ip6:
            words += [f"vf.ip6={self.ip6}", f"vf.gw6={netns.GATEWAY6}"]
        if self.ip4:
            words += [f"vf.ip4={self.ip4}", f"vf.gw4={netns.GATEWAY4}"]
        return " ".join(words)

    def domain(self, boot: Assets, console: Path) -> str:
        """Write the domain as a person would define it."""
        nic = self.interface.replace("@", f"<mac address='{self.mac}'/><model type='virtio'/>")
        inside = f"<metadata>{self.metadata}</metadata>" if self.metadata else ""
        return f"""\
<domain type='qemu'>
  <name>{self.name}</name>
  <uuid>{self.uuid}</uuid>
  {inside}
  <memory unit='MiB'>96</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>{boot.kernel}</kernel>
    <initrd>{boot.initrd}</initrd>
    <cmdline>{self.cmdline()}</cmdline>
  </os>
  <features><acpi/></features>
  <on_reboot>restart</on_reboot>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='usb' model='none'/>
    {nic}
    <serial type='file'><source path='{console}'/></serial>
    <memballoon model='none'/>
  </devices>
</domain>
"""


def fetch(
    ns: Path, host: str, port: int, path: str = "/", *, source: str | None = None, wait: float = ANSWERED
) -> str | None:
    """Fetch a page from the namespace at ``ns``: its text, or None where nobody takes the connection."""
    with contextlib.suppress(OSError), payload.socket_in(ns, payload.family_of(host)) as web:
        web.settimeout(wait)
        if source:
            web.bind((source, 0))
        web.connect((host, port))
        # An emulated guest answers when it gets to it; that it took the connection is what was quick.
        web.settimeout(ANSWERED)
        web.sendall(f"GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
        head, _, body = _all(web).partition(b"\r\n\r\n")
        return body.decode().strip() if b" 200 " in head.split(b"\r\n")[0] else None
    return None


def _all(web: socket.socket) -> bytes:
    got = b""
    while more := web.recv(65536):
        got += more
    return got
