"""Details of sockets that /proc/net does not have, from sock_diag(7).

ss(8) is no alternative: without the kernel's diag module for a protocol it silently falls back to
/proc, and takes all ports of net.ipv4.ip_local_port_range for autobound ones, WireGuard's 51820
included. Here such a protocol has no details, and its sockets count as servers.
"""

import socket
import struct
from collections.abc import Iterator

from virt_forward.claims.sockets import Details

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
NLM_F_REQUEST_DUMP = 0x301
NLMSG_ERROR, NLMSG_DONE = 2, 3
INET_DIAG_SKV6ONLY = 11
LISTENING = 1 << 7 | 1 << 10
"""TCP_CLOSE, which an unconnected UDP socket shows, and TCP_LISTEN."""

AUTOBOUND = struct.pack("=HHBBH", 8, 1, 6, 4, 8)
"""INET_DIAG_REQ_BYTECODE with INET_DIAG_BC_AUTO: only sockets without SOCK_BINDPORT_LOCK."""

_HEADER = struct.Struct("=IHHII")
_MESSAGE = struct.Struct("=40xI24xI")
"""struct inet_diag_msg: of all its fields, idiag_if and idiag_inode."""

TIMEOUT = 5.0


def details() -> Details:
    """Return the details of the host's listening TCP and unconnected UDP sockets."""
    families, protocols = (socket.AF_INET, socket.AF_INET6), (socket.IPPROTO_TCP, socket.IPPROTO_UDP)
    found = [item for family in families for protocol in protocols for item in _dump(family, protocol)]
    autobound = [item for family in families for item in _dump(family, socket.IPPROTO_UDP, AUTOBOUND)]
    return Details(
        frozenset(inode for inode, _, v6only in found if inode and v6only),
        frozenset(inode for inode, _, _ in autobound if inode),
        {inode: device for inode, device, _ in found if inode and device},
    )


def _dump(family: int, protocol: int, bytecode: bytes = b"") -> list[tuple[int, int, bool]]:
    """Return inode, index of the bound device (0: none), and IPV6_V6ONLY of each socket; none on an error."""
    request = struct.pack("=BBBxI48x", family, protocol, 0, LISTENING) + bytecode
    header = _HEADER.pack(_HEADER.size + len(request), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST_DUMP, 1, 0)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as kernel:
            kernel.settimeout(TIMEOUT)
            kernel.send(header + request)
            return list(_receive(kernel))
    except OSError:
        return []


def _receive(kernel: socket.socket) -> Iterator[tuple[int, int, bool]]:
    while True:
        data = kernel.recv(1 << 16)
        while data:
            length, kind, *_ = _HEADER.unpack_from(data)
            if kind == NLMSG_DONE:
                return
            if kind == NLMSG_ERROR or length < _HEADER.size + _MESSAGE.size:
                raise OSError("the kernel has no sock_diag for this protocol")
            yield _socket(data[_HEADER.size : length])
            data = data[length + 3 & ~3 :]


def _socket(message: bytes) -> tuple[int, int, bool]:
    device, inode = _MESSAGE.unpack_from(message)
    attributes = message[_MESSAGE.size :]
    v6only = False
    while len(attributes) >= 4:
        length, kind = struct.unpack_from("=HH", attributes)
        if kind == INET_DIAG_SKV6ONLY:
            v6only = attributes[4:5] != b"\0"
        attributes = attributes[max(length, 4) + 3 & ~3 :]
    return inode, device, v6only
