"""The host's listening sockets, as the kernel and /proc have them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from virt_forward.claims import sockets
from virt_forward.host.files import list_directory, read_text
from virt_forward.namedtuple import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Literal


def listeners() -> Iterator[sockets.Listener]:
    """Yield the listening sockets of this network namespace."""
    from virt_forward.host import sockdiag

    tcp = sockdiag.tcp_listeners()
    yield from _listed("tcp") if tcp is None else tcp
    yield from _listed("udp")
    yield from sockets.parse_sctp(read_text("/proc/net/sctp/eps"))


def _listed(proto: Literal["tcp", "udp"]) -> Iterator[sockets.Listener]:
    """Yield the listening sockets in /proc/net."""
    for name in (proto, f"{proto}6"):
        yield from sockets.parse(proto, read_text(f"/proc/net/{name}"))


def socket_details() -> sockets.Details:
    """Return what the kernel tells of sockets beyond /proc."""
    from virt_forward.host import sockdiag

    return sockdiag.details()


def socket_owners() -> dict[int, str]:
    """Return by inode of a socket the name of the first process found that has it open (proc_pid_fd(5))."""
    found: dict[int, str] = {}
    for pid in filter(str.isdigit, list_directory("/proc")):
        new = [inode for inode in _open_sockets(pid) if inode not in found]
        if new:
            found |= dict.fromkeys(new, read_text(f"/proc/{pid}/comm").strip())
    return found


def _open_sockets(pid: str) -> Iterator[int]:
    for fd in list_directory(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            kind, _, inode = os.readlink(f"/proc/{pid}/fd/{fd}").partition(":")
            if kind == "socket":
                yield int(inode[1:-1])


def device_indexes(dev: str) -> frozenset[int]:
    """Return the interface indexes of a device and of the VRF it is in; empty if it does not exist."""
    import socket

    with contextlib.suppress(OSError):
        master = read_text(f"/sys/class/net/{dev}/master/ifindex").strip()
        return frozenset((socket.if_nametoindex(dev), int(master or 0)))
    return frozenset()
