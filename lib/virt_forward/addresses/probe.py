"""Guests whose address nothing tells: what to ask their NICs, and what is answered, as it is on the wire."""

import struct
from collections.abc import Collection, Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_network
from typing import NamedTuple

from virt_forward.addresses.attachments import Attachment, Facts, attached
from virt_forward.model import Address, Guest, Network, Sighting, Subnet, fits

Heard = Mapping[str, tuple[Sighting, ...]]
"""Addresses that were just asked for or given out, by bridge, the newest last."""

LARGEST = 1024
"""The most addresses of a subnet that are asked for one by one."""

MOST_HEARD = 16
"""The most sightings of one NIC that are kept until they are worked on."""

ETHERNET, IPV4, UDP, REPLY = 1, 0x0800, 17, 2
ETH_P_ARP, ETH_P_IPV6 = 0x0806, 0x86DD
DHCP_SERVER, DHCP_CLIENT, DHCP_REPLY, DHCP_MESSAGE_TYPE, DHCP_ACK = 67, 68, 2, 53, 5
DHCP_COOKIE = b"\x63\x82\x53\x63"
ICMPV6, ECHO_REQUEST, ECHO_REPLY = 58, 128, 129
"""RFC 826; RFC 951, RFC 2131 and RFC 2132 (section 9.6); RFC 4443."""

HEADER = 14
"""Bytes of an Ethernet header: destination, source, type."""

EVERYBODY = b"\xff" * 6
LIMITED_BROADCAST = IPv4Address("255.255.255.255")


class Question(NamedTuple):
    """Which address of ``subnet`` the NIC with ``mac`` on ``bridge`` has.

    ``own`` is the host's address in that subnet, ``others`` are its further ones of that family there.
    """

    bridge: str
    mac: str
    subnet: Subnet
    own: Address
    others: tuple[Address, ...] = ()

    def hosts(self) -> tuple[Address, ...]:
        """Return every address that the host itself has on the bridge in this family."""
        return (self.own, *self.others)


def questions(guest: Guest, networks: Iterable[Network]) -> Iterator[Question]:
    """Yield a question for each NIC and family of a running guest that has no endpoint."""
    located = {(endpoint.mac, endpoint.bridge, endpoint.ip.version) for endpoint in guest.endpoints}
    for attachment in attached(guest.nics, Facts(tuple(networks))):
        subnets = dict.fromkeys(subnet for subnet, bridge in guest.lans if bridge == attachment.bridge)
        mine = [ip for ip in guest.gateways if any(ip in subnet for subnet in subnets)]
        for subnet in subnets:
            own = next((ip for ip in mine if ip in subnet), None)
            known = (attachment.nic.mac, attachment.bridge, subnet.version) in located
            if own and not known and _wanted(guest, attachment.nic.mac, subnet.version):
                others = tuple(ip for ip in mine if ip.version == own.version and ip != own)
                yield Question(attachment.bridge, attachment.nic.mac, subnet, own, others)


def verifying(attachment: Attachment, addresses: Iterable[Address]) -> Iterator[Question]:
    """Yield what to ask a NIC to find out at which of some addresses it answers."""
    interfaces = [address for address in attachment.facts.addresses if not address.is_link_local]
    for ip in addresses:
        own = next((address.ip for address in interfaces if ip in address.network), None)
        if own:
            others = tuple(a.ip for a in interfaces if a.version == ip.version and a.ip != own)
            yield Question(attachment.bridge, attachment.nic.mac, ip_network(ip), own, others)


def listened(questions: Iterable[Question]) -> set[tuple[str, int]]:
    """Return the bridges, with the IP version, where one has to listen for answers."""
    return {(question.bridge, question.own.version) for question in questions}


def answers(sighting: Sighting, question: Question) -> bool:
    """Tell whether a sighting on the question's bridge answers it."""
    ip, subnet = sighting.ip, question.subnet
    if sighting.mac != question.mac or ip not in subnet or ip in question.hosts():
        return False
    # The first and the last address of a larger IPv4 subnet are nobody's.
    ends = (subnet.network_address, subnet.broadcast_address)
    return subnet.version == 6 or subnet.prefixlen > 30 or ip not in ends


def joined(heard: Iterable[Sighting], found: Iterable[Sighting]) -> tuple[Sighting, ...]:
    """Return sightings and newer ones as one, each once and the newest last; of a NIC, a limited number."""
    newest = dict.fromkeys(reversed((*heard, *found)))
    kept: list[Sighting] = []
    counts: dict[str, int] = {}
    for sighting in newest:
        counts[sighting.mac] = counts.get(sighting.mac, 0) + 1
        if counts[sighting.mac] <= MOST_HEARD:
            kept.append(sighting)
    return tuple(reversed(kept))


def _wanted(guest: Guest, mac: str, version: int) -> bool:
    return any(forward.mac in (None, mac) and fits(forward, version) for forward in guest.forwards)


def octets(mac: str) -> bytes:
    """Return a hardware address as it is on the wire."""
    return bytes.fromhex(mac.replace(":", ""))


def arp_requests(question: Question, own_mac: bytes) -> Iterator[bytes]:
    """Yield a frame with an ARP request (RFC 826) for each address the NIC may have.

    They go to the NIC alone; there are none where the subnet is too large.
    """
    subnet, own = question.subnet, question.own
    if not isinstance(subnet, IPv4Network) or subnet.num_addresses > LARGEST:
        return
    target = octets(question.mac)
    start = target + own_mac + struct.pack("!HHHBBH", ETH_P_ARP, ETHERNET, IPV4, 6, 4, 1)
    for ip in subnet.hosts():
        if ip not in question.hosts():
            yield start + own_mac + own.packed + target + ip.packed


def echo_request(question: Question, own_mac: bytes, identifier: int) -> bytes:
    """Return a frame to a NIC alone with an ICMPv6 echo request for the one address of its question."""
    own, target = question.own.packed, question.subnet.network_address.packed
    body = struct.pack("!BBHHH", ECHO_REQUEST, 0, 0, identifier, 1)
    # The pseudo-header of RFC 8200, section 8.1.
    total = sum(struct.unpack("!20H4H", own + target + struct.pack("!II", len(body), ICMPV6) + body))
    folded = (total & 0xFFFF) + (total >> 16)
    checksum = ~(folded + (folded >> 16)) & 0xFFFF
    header = struct.pack("!IHBB", 6 << 28, len(body), ICMPV6, 64)
    start = octets(question.mac) + own_mac + struct.pack("!H", ETH_P_IPV6)
    return start + header + own + target + body[:2] + struct.pack("!H", checksum) + body[4:]


def arp_answer(frame: bytes, own: Collection[Address]) -> Sighting | None:
    """Return who has which address, from a frame with an ARP reply to one of our ``own`` addresses.

    None for anything else, also where the frame comes from another NIC than the reply names.
    """
    data = frame[HEADER:]
    if len(data) < 28 or _type(frame) != ETH_P_ARP:
        return None
    if struct.unpack_from("!HHBBH", data) != (ETHERNET, IPV4, 6, 4, REPLY):
        return None
    mac, ip, asker = data[8:14], IPv4Address(data[14:18]), IPv4Address(data[24:28])
    if mac != frame[6:12] or asker not in own:
        return None
    return Sighting(ip, mac.hex(":"), "probed")


def echo_answer(frame: bytes, own: Collection[Address], identifier: int) -> Sighting | None:
    """Return who has which address, from a frame with an ICMPv6 echo reply to an ``own`` address.

    None for anything else, and for link-local addresses.
    """
    if len(frame) < HEADER + 48 or _type(frame) != ETH_P_IPV6 or frame[HEADER] >> 4 != 6:
        return None
    kind, code, _, found = struct.unpack_from("!BBHH", frame, HEADER + 40)
    if (frame[HEADER + 6], kind, code, found) != (ICMPV6, ECHO_REPLY, 0, identifier):
        return None
    source, target = (
        IPv6Address(frame[HEADER + 8 : HEADER + 24]),
        IPv6Address(frame[HEADER + 24 : HEADER + 40]),
    )
    if target not in own or source.is_link_local:
        return None
    return Sighting(source, frame[6:12].hex(":"), "probed")


def dhcp_answer(frame: bytes, own: Collection[Address]) -> Sighting | None:
    """Return the lease in a frame with a DHCPACK (RFC 2131) of the host's own server; None for anything else.

    The server sends from one of the host's ``own`` addresses on the bridge, straight to the client:
    to its hardware address or to all, and to the leased address or to all. Nothing that
    the host merely passes on is so, not even where it is masqueraded.
    """
    packet = frame[HEADER:]
    size = (packet[0] & 15) * 4 if packet else 0
    if _type(frame) != IPV4 or size < 20 or packet[0] >> 4 != 4 or len(packet) < size + 8 or packet[9] != UDP:
        return None
    if struct.unpack_from("!HH", packet, size) != (DHCP_SERVER, DHCP_CLIENT):
        return None
    lease = _acknowledged(packet[size + 8 :])
    if lease is None or IPv4Address(packet[12:16]) not in own:
        return None
    direct = frame[:6] in (EVERYBODY, octets(lease.mac)) and IPv4Address(packet[16:20]) in (
        LIMITED_BROADCAST,
        lease.ip,
    )
    return lease if direct else None


def _type(frame: bytes) -> int:
    return int.from_bytes(frame[12:HEADER])


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
