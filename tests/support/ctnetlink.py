"""Tracked connections as the kernel gives them by ctnetlink: struct nfgenmsg and attributes."""

from __future__ import annotations

import struct
from ipaddress import ip_address

from virt_forward.host.netlink import attribute

PROTOS = {"icmp": 1, "tcp": 6, "udp": 17, "sctp": 132}
NFGENMSG_SIZE = 4
NESTED = 0x8000
CTA_STATUS, CTA_ID = 3, 12
IPS_CONFIRMED, IPS_DST_NAT = 0x8, 0x20


def connection(
    source: str, asked: tuple[str, int], answering: tuple[str, int], proto: str = "tcp", sport: int = 40000
) -> bytes:
    """Return a connection: ``source`` asked one address and port, another answers."""
    original = _tuple(1, (source, sport), asked, proto)
    reply = _tuple(2, answering, (source, sport), proto)
    status = IPS_CONFIRMED | (IPS_DST_NAT if asked != answering else 0)
    rest = attribute(CTA_STATUS, struct.pack(">I", status)) + attribute(CTA_ID, struct.pack(">I", 7))
    family = 2 if ip_address(source).version == 4 else 10
    return struct.pack("=BBH", family, 0, 0) + original + reply + rest


def _tuple(kind: int, src: tuple[str, int], dst: tuple[str, int], proto: str) -> bytes:
    addresses = [ip_address(ip).packed for ip, _ in (src, dst)]
    first = 1 if len(addresses[0]) == 4 else 3
    ips = b"".join(attribute(first + number, packed) for number, packed in enumerate(addresses))
    ports = b"".join(
        attribute(2 + number, struct.pack(">H", port)) for number, (_, port) in enumerate((src, dst))
    )
    protocol = attribute(1, bytes([PROTOS[proto]])) + ports
    return attribute(kind | NESTED, attribute(1 | NESTED, ips), attribute(2 | NESTED, protocol))


def is_translated(message: bytes) -> bool:
    """Tell whether a connection made here has IPS_DST_NAT."""
    return bool(message[-9] & IPS_DST_NAT)
