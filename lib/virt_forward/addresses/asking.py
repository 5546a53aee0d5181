"""Guests whose address nothing tells: what to ask their NICs, and what is answered, as it is on the wire."""

import struct
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

from virt_forward.addresses.attachments import Facts, places
from virt_forward.model import Address, Guest, Network, Sighting, Subnet, fits

Heard = Mapping[str, tuple[Sighting, ...]]
"""Addresses that were just asked for or given out, by bridge, the newest last."""

LARGEST = 1024
"""The most addresses of a subnet that are asked for one by one."""

ETHERNET, IPV4, UDP, REPLY = 1, 0x0800, 17, 2
DHCP_SERVER, DHCP_REPLY, DHCP_MESSAGE_TYPE, DHCP_ACK = 67, 2, 53, 5
DHCP_COOKIE = b"\x63\x82\x53\x63"
"""RFC 826; RFC 951, RFC 2131 and RFC 2132 (section 9.6)."""


class Question(NamedTuple):
    """Which address of ``subnet`` the NIC with ``mac`` on ``bridge`` has; ``own`` is the host's there."""

    bridge: str
    mac: str
    subnet: Subnet
    own: Address


def questions(guest: Guest, networks: Iterable[Network]) -> Iterator[Question]:
    """Yield what is to be asked of a guest that runs: a question for each NIC and family without a seat."""
    seated = {(seat.mac, seat.bridge, seat.ip.version) for seat in guest.seats}
    for place in places(guest.nics, Facts(tuple(networks))):
        subnets = dict.fromkeys(subnet for subnet, bridge in guest.lans if bridge == place.bridge)
        for subnet in subnets:
            own = next((ip for ip in guest.gateways if ip in subnet), None)
            known = (place.nic.mac, place.bridge, subnet.version) in seated
            if own and not known and _wanted(guest, place.nic.mac, subnet.version):
                yield Question(place.bridge, place.nic.mac, subnet, own)


def listened(questions: Iterable[Question]) -> set[str]:
    """Return the bridges where one has to listen for answers; IPv6 addresses are learned by the kernel."""
    return {question.bridge for question in questions if question.own.version == 4}


def _wanted(guest: Guest, mac: str, version: int) -> bool:
    return any(forward.mac in (None, mac) and fits(forward, version) for forward in guest.forwards)


def arp_requests(question: Question, own_mac: bytes) -> Iterator[bytes]:
    """Yield an ARP request (RFC 826) for each address the NIC may have; none where there are too many."""
    subnet, own = question.subnet, question.own
    if not isinstance(subnet, IPv4Network) or subnet.num_addresses > LARGEST:
        return
    sender = own_mac + own.packed
    target = bytes.fromhex(question.mac.replace(":", ""))
    for ip in subnet.hosts():
        if ip != own:
            yield struct.pack("!HHBBH", ETHERNET, IPV4, 6, 4, 1) + sender + target + ip.packed


def arp_answer(data: bytes) -> Sighting | None:
    """Return who has which address, from an ARP reply; None for anything else."""
    if len(data) < 28 or struct.unpack_from("!HHBBH", data) != (ETHERNET, IPV4, 6, 4, REPLY):
        return None
    return Sighting(IPv4Address(data[14:18]), data[8:14].hex(":"), "probed")


def dhcp_answer(data: bytes) -> Sighting | None:
    """Return the lease in an IPv4 packet with a DHCPACK (RFC 2131); None for anything else."""
    header = (data[0] & 15) * 4 if data else 0
    if header < 20 or len(data) < header + 8 or data[9] != UDP:
        return None
    if struct.unpack_from("!H", data, header)[0] != DHCP_SERVER:
        return None
    return _acknowledged(data[header + 8 :])


def _acknowledged(message: bytes) -> Sighting | None:
    if len(message) < 240 or message[236:240] != DHCP_COOKIE:
        return None
    if (message[0], message[1], message[2]) != (DHCP_REPLY, ETHERNET, 6):
        return None
    if _options(message[240:]).get(DHCP_MESSAGE_TYPE) != bytes([DHCP_ACK]):
        return None
    # To a DHCPINFORM, which asks for options alone, the answer gives no address.
    ip = IPv4Address(message[16:20])
    return None if ip.is_unspecified else Sighting(ip, message[28:34].hex(":"), "leased")


def _options(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = 0
    while at + 1 < len(data) and data[at] != 255:
        length = data[at + 1] if data[at] else -1
        if data[at]:
            found.setdefault(data[at], data[at + 2 : at + 2 + length])
        at += 2 + length
    return found
