"""The host's network interfaces, their addresses, and the routes that lead to them, from rtnetlink(7)."""

from __future__ import annotations

import struct
import sys

# The module socket takes 5 ms to import, and builds on this one.
from _socket import AF_INET, AF_INET6, if_indextoname, if_nameindex
from collections.abc import Iterable
from functools import cache
from ipaddress import IPv4Interface, IPv6Interface, ip_network

from virt_forward.claims.sockets import Interfaces
from virt_forward.errors import VirtForwardError
from virt_forward.host import netlink
from virt_forward.model import Address, Subnet

NETLINK_ROUTE = 0
RTM_GETADDR, RTM_GETROUTE = 22, 26
IFA_ADDRESS, IFA_LOCAL = 1, 2
RTA_DST, RTA_OIF = 1, 4
RTM_F_FIB_MATCH = 0x2000
"""linux/netlink.h, linux/rtnetlink.h, linux/if_addr.h."""

_MESSAGE = struct.Struct("=BB2xI")
"""struct ifaddrmsg: of all its fields, ifa_family, ifa_prefixlen and ifa_index."""

_ROUTE = struct.Struct("=BB6xI")
"""struct rtmsg: of all its fields, rtm_family, rtm_dst_len and rtm_flags."""


def device_names() -> frozenset[str]:
    """Return the names of all interfaces."""
    return frozenset(name for _, name in if_nameindex())


def read_interfaces() -> Interfaces:
    """Return the addresses of each interface that has any. Raises VirtForwardError where it fails."""
    try:
        return parse_addresses(netlink.dump(NETLINK_ROUTE, RTM_GETADDR, bytes(_MESSAGE.size)))
    except (OSError, struct.error, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise VirtForwardError(f"rtnetlink: the host's addresses cannot be read: {reason}") from None


def parse_addresses(messages: Iterable[bytes]) -> Interfaces:
    """Return by name of the interface what the payloads of RTM_NEWADDR messages have.

    An interface that has been removed since is left out, as are families other than IPv4 and IPv6.
    Raises struct.error or ValueError for anything but such messages.
    """
    found: dict[str, list[IPv4Interface | IPv6Interface]] = {}
    name_of = cache(_name)
    for message in messages:
        family, prefix, index = _MESSAGE.unpack_from(message)
        given = dict(netlink.attributes(message[_MESSAGE.size :]))
        # On a link to a single peer, IFA_ADDRESS is the peer's.
        address = given.get(IFA_LOCAL) or given.get(IFA_ADDRESS)
        if family in (AF_INET, AF_INET6) and address and (name := name_of(index)):
            kind = IPv4Interface if family == AF_INET else IPv6Interface
            found.setdefault(name, []).append(kind((address, prefix)))
    return {name: tuple(addresses) for name, addresses in found.items()}


def route(ip: Address) -> tuple[Subnet, str] | None:
    """Return the destination and the interface of the kernel's route to an address.

    None for a default route, one that leads nowhere or by several interfaces, and where there is none.
    """
    family = AF_INET if ip.version == 4 else AF_INET6
    request = _ROUTE.pack(family, ip.max_prefixlen, RTM_F_FIB_MATCH) + netlink.attribute(RTA_DST, ip.packed)
    try:
        return parse_route(netlink.get(NETLINK_ROUTE, RTM_GETROUTE, request))
    except (OSError, struct.error, ValueError):
        return None


def parse_route(message: bytes) -> tuple[Subnet, str] | None:
    """Return what ``route`` does, from the payload of an RTM_NEWROUTE message.

    Raises struct.error or ValueError for anything but such a message.
    """
    _, prefix, _ = _ROUTE.unpack_from(message)
    given = dict(netlink.attributes(message[_ROUTE.size :]))
    index = int.from_bytes(given.get(RTA_OIF, b""), sys.byteorder)
    name = _name(index) if index else ""
    return (ip_network((given[RTA_DST], prefix)), name) if prefix and name and RTA_DST in given else None


def _name(index: int) -> str:
    """Return the name of an interface; empty where it does not exist."""
    try:
        return if_indextoname(index)
    except OSError:
        return ""
