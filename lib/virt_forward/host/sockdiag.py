"""The host's sockets from sock_diag(7): TCP listeners, and details that /proc/net does not have.

To find the listeners in /proc/net/tcp, the kernel walks its table of all connections, which takes 5 ms even
if it is empty; here it walks those that listen.

ss(8) is no alternative: without the kernel's diag module for a protocol it silently falls back to
/proc, and takes all ports of net.ipv4.ip_local_port_range for autobound ones, WireGuard's 51820
included. Here such a protocol has no details, and its sockets count as servers.
"""

from __future__ import annotations

import struct

# The module socket takes 5 ms to import, and builds on this one.
from _socket import AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP
from ipaddress import ip_address

from virt_forward.claims.sockets import Details, Listener, unmapped
from virt_forward.host import netlink
from virt_forward.namedtuple import NamedTuple

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
INET_DIAG_SKV6ONLY = 11
LISTENING = 1 << 7 | 1 << 10
"""TCP_CLOSE, which an unconnected UDP socket shows, and TCP_LISTEN."""

AUTOBOUND = struct.pack("=HHBBH", 8, 1, 6, 4, 8)
"""INET_DIAG_REQ_BYTECODE with INET_DIAG_BC_AUTO: only sockets without SOCK_BINDPORT_LOCK."""

_MESSAGE = struct.Struct("=4x2s2x16s16xI24xI")
"""struct inet_diag_msg: of all its fields, idiag_sport, idiag_src, idiag_if and idiag_inode."""


class _Socket(NamedTuple):
    """A socket: port and address in network byte order, index of the bound device (0: none)."""

    port: bytes
    address: bytes
    device: int
    inode: int
    v6only: bool


def tcp_listeners() -> list[Listener] | None:
    """Return the listening TCP sockets of this network namespace; None if the kernel does not tell."""
    found = []
    for family, size in ((AF_INET, 4), (AF_INET6, 16)):
        sockets = _dump(family, IPPROTO_TCP)
        if sockets is None:
            return None
        for item in sockets:
            address = unmapped(ip_address(item.address[:size]))
            found.append(Listener("tcp", address, int.from_bytes(item.port), item.inode))
    return found


def details() -> Details:
    """Return the details of the host's listening TCP and unconnected UDP sockets."""
    kinds = [(family, protocol) for family in (AF_INET, AF_INET6) for protocol in (IPPROTO_TCP, IPPROTO_UDP)]
    found = [item for family, protocol in kinds for item in _dump(family, protocol) or () if item.inode]
    autobound = [
        item for family in (AF_INET, AF_INET6) for item in _dump(family, IPPROTO_UDP, AUTOBOUND) or ()
    ]
    return Details(
        frozenset(item.inode for item in found if item.v6only),
        frozenset(item.inode for item in autobound if item.inode),
        {item.inode: item.device for item in found if item.device},
    )


def _dump(family: int, protocol: int, bytecode: bytes = b"") -> list[_Socket] | None:
    """Return the sockets that listen or are not connected; None on an error."""
    request = struct.pack("=BBBxI48x", family, protocol, 0, LISTENING) + bytecode
    try:
        return [_socket(message) for message in netlink.dump(NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY, request)]
    except (OSError, struct.error):
        return None


def _socket(message: bytes) -> _Socket:
    port, address, device, inode = _MESSAGE.unpack_from(message)
    attributes = dict(netlink.attributes(message[_MESSAGE.size :]))
    v6only = attributes.get(INET_DIAG_SKV6ONLY, b"\0")[:1] != b"\0"
    return _Socket(port, address, device, inode, v6only)
