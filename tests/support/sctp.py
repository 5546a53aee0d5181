"""SCTP spoken over raw sockets, for kernels that forward and translate SCTP but offer no SCTP sockets.

One association set-up is enough to see where a packet went: the client sends INIT, the server answers
INIT ACK with its words in the state cookie. Conntrack and NAT treat both as they treat a real endpoint's.
"""

from __future__ import annotations

import struct

IPPROTO_SCTP = 132
INIT, INIT_ACK = 1, 2
STATE_COOKIE = 7
_TAG = 0x76667766


def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ 0x82F63B78 if byte & 1 else byte >> 1  # noqa: PLW2901
        table.append(byte)
    return tuple(table)


_TABLE = _crc_table()


def crc32c(data: bytes) -> int:
    value = 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ _TABLE[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF


def _packet(source: int, target: int, tag: int, chunk: bytes) -> bytes:
    head = struct.pack("!HHI", source, target, tag)
    return head + struct.pack("<I", crc32c(head + bytes(4) + chunk)) + chunk


def _chunk(kind: int, parameters: bytes = b"") -> bytes:
    body = struct.pack("!IIHHI", _TAG, 65536, 1, 1, 1) + parameters
    return struct.pack("!BBH", kind, 0, len(body) + 4) + body + bytes(-len(body) % 4)


def init(source: int, target: int) -> bytes:
    """Build the packet that opens an association; its verification tag is zero by the protocol."""
    return _packet(source, target, 0, _chunk(INIT))


def init_ack(source: int, target: int, words: bytes) -> bytes:
    parameter = struct.pack("!HH", STATE_COOKIE, len(words) + 4) + words
    return _packet(source, target, _TAG, _chunk(INIT_ACK, parameter))


def parse(packet: bytes) -> tuple[int, int, int, bytes] | None:
    """Return source port, target port, chunk type and cookie; None for a wrong checksum."""
    if len(packet) < 32:
        return None
    source, target = struct.unpack("!HH", packet[:4])
    (checksum,) = struct.unpack("<I", packet[8:12])
    if checksum != crc32c(packet[:8] + bytes(4) + packet[12:]):
        return None
    length = struct.unpack("!H", packet[34:36])[0] if len(packet) >= 36 else 4
    return source, target, packet[12], packet[36 : 32 + length]


def payload(datagram: bytes, family_is_v4: bool) -> bytes:
    """Strip what a raw socket hands over besides SCTP: IPv4 comes with its header, IPv6 without."""
    return datagram[(datagram[0] & 15) * 4 :] if family_is_v4 else datagram
