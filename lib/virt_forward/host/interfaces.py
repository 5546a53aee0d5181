"""The host's network interfaces and their addresses, from rtnetlink(7)."""

from __future__ import annotations

import struct

# The module socket takes 5 ms to import, and builds on this one.
from _socket import AF_INET, AF_INET6, if_indextoname, if_nameindex
from collections.abc import Iterable
from functools import cache
from ipaddress import IPv4Interface, IPv6Interface

from virt_forward.claims.sockets import Interfaces
from virt_forward.errors import VirtForwardError
from virt_forward.host import netlink

NETLINK_ROUTE = 0
RTM_GETADDR = 22
IFA_ADDRESS, IFA_LOCAL = 1, 2
"""linux/netlink.h, linux/rtnetlink.h, linux/if_addr.h."""

_MESSAGE = struct.Struct("=BB2xI")
"""struct ifaddrmsg: of all its fields, ifa_family, ifa_prefixlen and ifa_index."""


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


def _name(index: int) -> str:
    """Return the name of an interface; empty where it does not exist."""
    try:
        return if_indextoname(index)
    except OSError:
        return ""
