"""Typed values out of attribute text. Each function returns the value or raises Bad with what is right."""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from virt_forward.model import MAX_PORT, PROTOS, Address, Proto, Subnet
from virt_forward.namedtuple import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

_PORT = re.compile(r"[1-9][0-9]{0,4}", re.ASCII)
_MAC = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}", re.ASCII)
# dev_valid_name() in the kernel's net/core/dev.c, without what nft gives a meaning of its own.
_DEV = re.compile(r"[A-Za-z0-9_.@+-]{1,15}", re.ASCII)
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_PREFIX = re.compile(r"0|[1-9][0-9]{0,2}", re.ASCII)
_IP = re.compile(r"[0-9A-Fa-f:.]+", re.ASCII)


class Bad(ValueError):  # noqa: N818 - raised and caught as a word: not an error of the program
    """The text is not such a value; the message says what would be."""


def uuid(text: str) -> str:
    """Return a UUID as libvirt prints it."""
    if not _UUID.fullmatch(text):
        raise Bad("use a UUID, as in 3e1f8a52-8b8e-4c6e-9a25-0d2f4b5a6c7d")
    return text


def proto(text: str) -> Proto:
    """Return a transport protocol's name."""
    for name in PROTOS:
        if text == name:
            return name
    raise Bad("use tcp, udp or sctp")


def port(text: str) -> int:
    """Return a port number, 1 to 65535."""
    if not _PORT.fullmatch(text) or int(text) > MAX_PORT:
        raise Bad("use a port number from 1 to 65535")
    return int(text)


def yes_no(text: str) -> bool:
    """Return libvirt's spelling of a truth value."""
    if text not in ("yes", "no"):
        raise Bad("use yes or no")
    return text == "yes"


def mac(text: str) -> str:
    """Return a MAC address in lower case."""
    if not _MAC.fullmatch(text):
        raise Bad("use six pairs of hexadecimal digits, as in 52:54:00:a0:8f:2c")
    return text.lower()


def is_mac(text: str) -> bool:
    """Tell whether a text is a MAC address in lower case."""
    return bool(_MAC.fullmatch(text)) and text == text.lower()


def dev(text: str) -> str:
    """Return the name of a network interface."""
    if not is_dev(text):
        raise Bad("use the name of a network interface, as in enp1s0")
    return text


def is_dev(text: str) -> bool:
    """Tell whether a text is the name of a network interface."""
    return bool(_DEV.fullmatch(text)) and text not in (".", "..")


def listen_address(text: str) -> Address:
    """Return an address of the host to listen on."""
    found = address(text)
    if found.is_unspecified:
        raise Bad("leave the attribute out to listen on every address")
    if isinstance(found, IPv6Address) and found.is_loopback:
        raise Bad("the kernel cannot forward ::1; use 127.0.0.1 with localhost = true, or another address")
    if found.is_multicast or found.is_link_local or found == IPv4Address("255.255.255.255"):
        raise Bad("use a unicast address of this host that is not link-local")
    return found


def guest_address(text: str) -> Address:
    """Return an address that a guest can have."""
    found = address(text)
    if found.is_unspecified or found.is_loopback or found.is_multicast or found.is_link_local:
        raise Bad("use the guest's own unicast address, not a loopback, link-local or multicast one")
    if found == IPv4Address("255.255.255.255"):
        raise Bad("use the guest's own unicast address, not the broadcast address")
    return found


def source(text: str) -> Subnet:
    """Return one address or a network in CIDR notation."""
    head, slash, prefix = text.partition("/")
    first = address(head)
    if slash and not _PREFIX.fullmatch(prefix):
        raise Bad("use an address or a network in CIDR notation, as in 192.168.1.0/24")
    try:
        network = ip_network(f"{first}{slash}{prefix}", strict=False)
    except ValueError:
        raise Bad(
            f"the prefix length of an IPv{first.version} network is 0 to {first.max_prefixlen}"
        ) from None
    if network.network_address != first:
        raise Bad(f"the address has bits set beyond the prefix; use {network} or {first}")
    return network


def address(text: str) -> Address:
    """Return an address: no zone index, and no IPv4 address dressed up as IPv6."""
    try:
        if not _IP.fullmatch(text):
            raise ValueError
        found = ip_address(text)
    except ValueError:
        raise Bad("use an IPv4 or IPv6 address") from None
    if isinstance(found, IPv6Address) and found.ipv4_mapped:
        raise Bad(f"use the IPv4 address itself, {found.ipv4_mapped}")
    return found


LIMITS: dict[str, Callable[[str], Any]] = {"address": listen_address, "dev": dev, "source": source}
"""The attributes of ``<portForward>`` that limit which packets a forward takes, and what reads their values.

They are fields of PortForward and of Forward under the same names.
"""
