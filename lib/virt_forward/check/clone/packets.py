"""Probe packets as Ethernet frames: the first of a connection, the guest's answer, and what comes back.

Each probe has an identifier that no translation changes: the sequence number of a TCP SYN, the data of a
UDP datagram, the initiate tag of an SCTP INIT. Formats: RFC 791, 8200, 9293, 768, 9260, 792, 4443.
"""

import struct
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Literal, NamedTuple

from virt_forward.model import Address, Proto

Kind = Literal["first", "answer", "reset", "error"]

NUMBERS: dict[Proto, int] = {"tcp": 6, "udp": 17, "sctp": 132}
PROTOCOLS: dict[int, Proto] = {number: proto for proto, number in NUMBERS.items()}
ETH_P_IP, ETH_P_IPV6 = 0x0800, 0x86DD
ICMP, ICMPV6 = 1, 58
UNREACHABLE, UNREACHABLE6 = 3, 1
SYN, RST, ACK = 0x02, 0x04, 0x10
INIT, INIT_ACK, ABORT = 1, 2, 6
QUESTION, ANSWER = b"virt-forward?", b"virt-forward!"


class Packet(NamedTuple):
    """What a frame carries: ``kind`` is the first packet of a probe, an answer to it, or a refusal.

    ``src``, ``dst`` and the ports are those of the packet itself; for an ICMP error, those of the packet
    that it is about.
    """

    kind: Kind
    identifier: int
    proto: Proto
    src: Address
    dst: Address
    sport: int
    dport: int


class Flow(NamedTuple):
    """Where a packet goes: hardware addresses, IP addresses of one version, protocol and ports."""

    src_mac: str
    dst_mac: str
    proto: Proto
    src: Address
    dst: Address
    sport: int
    dport: int


def first_frame(flow: Flow, identifier: int) -> bytes:
    """Return the frame that opens a connection."""
    if flow.proto == "tcp":
        payload = _tcp(flow, identifier, 0, SYN)
    elif flow.proto == "udp":
        payload = _udp(flow, QUESTION + struct.pack("!I", identifier))
    else:
        payload = _sctp(flow, 0, INIT, identifier)
    return _frame(flow, payload)


def answer_frame(frame: bytes) -> bytes | None:
    """Return the frame by which a server accepts the connection that ``frame`` opens."""
    packet = parse(frame)
    if packet is None or packet.kind != "first":
        return None
    macs = _mac_text(frame[0:6]), _mac_text(frame[6:12])
    flow = Flow(*macs, packet.proto, packet.dst, packet.src, packet.dport, packet.sport)
    if packet.proto == "tcp":
        payload = _tcp(flow, packet.identifier ^ 0x5A5A5A5A, packet.identifier + 1, SYN | ACK)
    elif packet.proto == "udp":
        payload = _udp(flow, ANSWER + struct.pack("!I", packet.identifier))
    else:
        payload = _sctp(flow, packet.identifier, INIT_ACK, packet.identifier ^ 0x5A5A5A5A)
    return _frame(flow, payload)


def parse(frame: bytes) -> Packet | None:
    """Return the packet in a frame, or None if it is of no probe."""
    kind = int.from_bytes(frame[12:14])
    try:
        if kind == ETH_P_IP:
            return _parse_ipv4(frame[14:])
        return _parse_ipv6(frame[14:]) if kind == ETH_P_IPV6 else None
    except (struct.error, ValueError, IndexError):
        return None


def _parse_ipv4(data: bytes, *, inner: bool = False) -> Packet | None:
    rest = data[(data[0] & 15) * 4 :]
    if data[9] == ICMP and not inner:
        return _refused(_parse_ipv4(rest[8:], inner=True)) if rest[0] == UNREACHABLE else None
    return _parse_transport(data[9], ip_address(data[12:16]), ip_address(data[16:20]), rest)


def _parse_ipv6(data: bytes, *, inner: bool = False) -> Packet | None:
    rest = data[40:]
    if data[6] == ICMPV6 and not inner:
        return _refused(_parse_ipv6(rest[8:], inner=True)) if rest[0] == UNREACHABLE6 else None
    return _parse_transport(data[6], ip_address(data[8:24]), ip_address(data[24:40]), rest)


def _refused(packet: Packet | None) -> Packet | None:
    return packet and packet._replace(kind="error")


def _parse_transport(number: int, src: Address, dst: Address, data: bytes) -> Packet | None:
    proto = PROTOCOLS.get(number)
    if proto is None:
        return None
    sport, dport = struct.unpack("!HH", data[:4])
    parsers = {"tcp": _tcp_identity, "udp": _udp_identity, "sctp": _sctp_identity}
    found = parsers[proto](data)
    return Packet(*found, proto, src, dst, sport, dport) if found else None


def _tcp_identity(data: bytes) -> tuple[Kind, int] | None:
    # An ICMP error has the first eight bytes only: the ports and the sequence number.
    (sequence,) = struct.unpack("!I", data[4:8])
    flags = data[13] if len(data) > 13 else SYN
    if not flags & ACK:
        return ("first", sequence) if flags & SYN else None
    (acknowledged,) = struct.unpack("!I", data[8:12])
    return ("reset" if flags & RST else "answer"), (acknowledged - 1) & 0xFFFFFFFF


def _udp_identity(data: bytes) -> tuple[Kind, int] | None:
    mark, number = data[8 : 8 + len(QUESTION)], data[8 + len(QUESTION) :][:4]
    kinds: dict[bytes, Kind] = {QUESTION: "first", ANSWER: "answer"}
    return (kinds[mark], int.from_bytes(number)) if mark in kinds else None


def _sctp_identity(data: bytes) -> tuple[Kind, int] | None:
    tag = int.from_bytes(data[4:8])
    if data[12] == INIT:
        return "first", int.from_bytes(data[16:20])
    kinds: dict[int, Kind] = {INIT_ACK: "answer", ABORT: "reset"}
    return (kinds[data[12]], tag) if data[12] in kinds else None


def _tcp(flow: Flow, sequence: int, acknowledged: int, flags: int) -> bytes:
    options = b"\x02\x04\x05\xb4"  # the maximum segment size, 1460
    words = (flow.sport, flow.dport, sequence, acknowledged & 0xFFFFFFFF, 6 << 4, flags, 64240, 0, 0)
    return _with_checksum(flow, struct.pack("!HHIIBBHHH", *words) + options, 16)


def _udp(flow: Flow, data: bytes) -> bytes:
    return _with_checksum(flow, struct.pack("!HHHH", flow.sport, flow.dport, 8 + len(data), 0) + data, 6)


def _sctp(flow: Flow, tag: int, chunk: int, initiate_tag: int) -> bytes:
    # One outgoing and one incoming stream; an INIT ACK has a state cookie.
    cookie = struct.pack("!HHI", 7, 8, initiate_tag) if chunk == INIT_ACK else b""
    body = struct.pack("!IIHHI", initiate_tag, 65536, 1, 1, initiate_tag) + cookie
    head = struct.pack("!HHI", flow.sport, flow.dport, tag)
    rest = struct.pack("!BBH", chunk, 0, 4 + len(body)) + body
    return head + struct.pack("<I", crc32c(head + bytes(4) + rest)) + rest


def _with_checksum(flow: Flow, segment: bytes, position: int) -> bytes:
    pseudo = flow.src.packed + flow.dst.packed
    number = NUMBERS[flow.proto]
    pseudo += struct.pack("!BBH" if flow.src.version == 4 else "!xxHI", *_lengths(flow, number, len(segment)))
    value = checksum(pseudo + segment) or 0xFFFF
    return segment[:position] + struct.pack("!H", value) + segment[position + 2 :]


def _lengths(flow: Flow, number: int, length: int) -> tuple[int, ...]:
    return (0, number, length) if flow.src.version == 4 else (length, number)


def checksum(data: bytes) -> int:
    """Return the Internet checksum of RFC 1071."""
    padded = data + b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def crc32c(data: bytes) -> int:
    """Return the CRC32c of RFC 9260, appendix A."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def _frame(flow: Flow, payload: bytes) -> bytes:
    src, dst, number = flow.src, flow.dst, NUMBERS[flow.proto]
    if isinstance(src, IPv4Address):
        words = (0x45, 0, 20 + len(payload), 0, 0x4000, 64, number, 0, src.packed, dst.packed)
        head = struct.pack("!BBHHHBBH4s4s", *words)
        head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
        kind = ETH_P_IP
    else:
        assert isinstance(src, IPv6Address)
        head = struct.pack("!IHBB16s16s", 6 << 28, len(payload), number, 64, src.packed, dst.packed)
        kind = ETH_P_IPV6
    return _mac(flow.dst_mac) + _mac(flow.src_mac) + struct.pack("!H", kind) + head + payload


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _mac_text(data: bytes) -> str:
    return data.hex(":")
