"""Ethernet frames as somebody on the wire may send them, right or forged, and raw sockets to send them by.

Addresses are words (``"52:54:00:00:00:02"``, ``"10.10.0.201"``); every function returns bytes. The addresses
of the frame and those of its payload are separate arguments: in a forged frame they do not belong together.
"""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv6Address, ip_address

from support import payload
from support.netns import Ns

BROADCAST, ALL_NODES = "ff:ff:ff:ff:ff:ff", "ff02::1"
ETH_P_IP, ETH_P_ARP, ETH_P_IPV6 = 0x0800, 0x0806, 0x86DD
REQUEST, REPLY = 1, 2
SOLICITATION, ADVERTISEMENT = 135, 136
SOURCE_ADDRESS, TARGET_ADDRESS = 1, 2
DHCP_COOKIE = b"\x63\x82\x53\x63"
NOWHERE4 = "0.0.0.0"
"""linux/if_ether.h; RFC 826; RFC 4861 (sections 4.3, 4.4, 4.6.1); RFC 2131."""


def octets(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def ethernet(source: str, target: str, kind: int, data: bytes) -> bytes:
    return octets(target) + octets(source) + struct.pack("!H", kind) + data


def arp(
    operation: int, sender: tuple[str, str], target: tuple[str, str], *, source: str | None = None,
    to: str | None = None,
) -> bytes:  # fmt: skip
    """Write an ARP frame; ``sender``, ``target`` are (MAC, IPv4), ``source``, ``to`` the frame's own MACs."""
    body = struct.pack("!HHBBH", 1, ETH_P_IP, 6, 4, operation)
    body += b"".join(octets(mac) + ip_address(ip).packed for mac, ip in (sender, target))
    return ethernet(source or sender[0], to or target[0], ETH_P_ARP, body + bytes(18))


def gratuitous(sender: tuple[str, str], *, source: str | None = None) -> bytes:
    """Write an ARP announcement (RFC 5227): a request to all for the sender's own address."""
    return arp(REQUEST, sender, ("00:00:00:00:00:00", sender[1]), source=source, to=BROADCAST)


def neighbour(
    kind: int, sender: tuple[str, str], *, target: str, to: tuple[str, str], option: str
) -> bytes:  # fmt: skip
    """Write a neighbour solicitation or advertisement.

    ``sender`` is the (MAC, IPv6) of frame and packet, ``to`` where it goes, ``target`` the address it is
    about, and ``option`` the link-layer address in its option.
    """
    flags = 0x60000000 if kind == ADVERTISEMENT else 0
    where = TARGET_ADDRESS if kind == ADVERTISEMENT else SOURCE_ADDRESS
    message = struct.pack("!BBHI", kind, 0, 0, flags) + ip_address(target).packed
    message += struct.pack("!BB", where, 1) + octets(option)
    return ethernet(sender[0], to[0], ETH_P_IPV6, _ipv6(sender[1], to[1], message))


def _ipv6(source: str, target: str, message: bytes) -> bytes:
    addresses = ip_address(source).packed + ip_address(target).packed
    pseudo = addresses + struct.pack("!II", len(message), socket.IPPROTO_ICMPV6)
    message = message[:2] + struct.pack("!H", checksum(pseudo + message)) + message[4:]
    return struct.pack("!IHBB", 6 << 28, len(message), socket.IPPROTO_ICMPV6, 255) + addresses + message


def checksum(data: bytes) -> int:
    """Return the internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def udp(source: tuple[str, int], target: tuple[str, int], data: bytes) -> bytes:
    """Write an IPv4 packet with a UDP datagram; the datagram has no checksum, as RFC 768 allows."""
    head = struct.pack("!BBHHHBBH", 0x45, 0, 28 + len(data), 0, 0, 64, socket.IPPROTO_UDP, 0)
    addresses = ip_address(source[0]).packed + ip_address(target[0]).packed
    head = head[:10] + struct.pack("!H", checksum(head + addresses)) + addresses
    return head + struct.pack("!HHHH", source[1], target[1], 8 + len(data), 0) + data


def dhcp_ack(mac: str, ip: str, server: str) -> bytes:
    """Write the DHCPACK (RFC 2131) by which ``server`` gives ``ip`` to ``mac``: a datagram's content."""
    fixed = struct.pack("!BBBBIHH", 2, 1, 6, 0, 0x1234, 0, 0)
    addresses = b"".join(ip_address(word).packed for word in (NOWHERE4, ip, server, NOWHERE4))
    options = DHCP_COOKIE + b"\x35\x01\x05" + b"\x36\x04" + ip_address(server).packed
    return fixed + addresses + octets(mac) + bytes(10 + 64 + 128) + options + b"\x33\x04\0\0\x0e\x10\xff"


def dhcp_request(mac: str, ip: str, server: str) -> bytes:
    """Write the DHCPREQUEST for ``ip`` of a client that calls itself ``mac``, to be answered to all."""
    fixed = struct.pack("!BBBBIHH", 1, 1, 6, 0, 0x1234, 0, 0x8000)
    options = DHCP_COOKIE + b"\x35\x01\x03" + b"\x36\x04" + ip_address(server).packed
    options += b"\x32\x04" + ip_address(ip).packed + b"\xff"
    return fixed + bytes(16) + octets(mac) + bytes(10 + 64 + 128) + options


def derived(prefix: str, mac: str) -> str:
    """Return the address that a NIC derives from its MAC in a /64 (EUI-64, RFC 4291, appendix A)."""
    word = octets(mac)
    suffix = bytes([word[0] ^ 2]) + word[1:3] + b"\xff\xfe" + word[3:]
    return str(IPv6Address(ip_address(prefix).packed[:8] + suffix))


def send(place: Ns, *sent: bytes, device: str = "eth0") -> None:
    """Put frames on the wire as they are."""

    def work() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind((device, 0))
            for frame in sent:
                raw.send(frame)

    payload.inside(place.path, work)


def send_udp(place: Ns, target: tuple[str, int], data: bytes, *, sport: int, source: str = NOWHERE4) -> None:
    """Send a datagram by the kernel, from a port of choice."""

    def work() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sender.bind((source, sport))
            sender.sendto(data, target)

    payload.inside(place.path, work)
