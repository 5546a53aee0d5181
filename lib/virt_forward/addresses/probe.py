"""Probes: ARP and ICMPv6 requests that find a guest's address, and the packets that answer them.

Pure: host/probe_socket.py sends what is built here, and passes on what it receives.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_network

from virt_forward.addresses.attachments import Attachment, named_attachments
from virt_forward.model import Address, Guest, Network, Sighting, Subnet, fits
from virt_forward.namedtuple import NamedTuple

Sightings = Mapping[str, tuple[Sighting, ...]]
"""Recent sightings by the name of the bridge, the newest last."""

MAX_ARP_ADDRESSES = 1024
"""The largest IPv4 subnet, in addresses, that is searched: a probe takes one ARP request for each."""

MAX_SIGHTINGS = 16
"""The most sightings that are kept of one NIC."""

ETHERNET, IPV4, UDP, REPLY = 1, 0x0800, 17, 2
ETH_P_ARP, ETH_P_IPV6 = 0x0806, 0x86DD
DHCP_SERVER, DHCP_CLIENT, DHCP_REPLY, DHCP_MESSAGE_TYPE, DHCP_ACK = 67, 68, 2, 53, 5
DHCP_COOKIE = b"\x63\x82\x53\x63"
ICMPV6, ECHO_REQUEST, ECHO_REPLY = 58, 128, 129
"""RFC 826; RFC 951, RFC 2131 and RFC 2132 (section 9.6); RFC 4443."""

HEADER = 14
"""Bytes of an Ethernet header: destination, source, type."""

BROADCAST = b"\xff" * 6
LIMITED_BROADCAST = IPv4Address("255.255.255.255")


class Probe(NamedTuple):
    """A search for the address in ``subnet`` of the NIC with ``mac`` on ``bridge``.

    ``own`` is the host's address in that subnet, from which the probe is sent; ``others`` are the
    host's further addresses of that IP version on the bridge.
    """

    bridge: str
    mac: str
    subnet: Subnet
    own: Address
    others: tuple[Address, ...] = ()

    def host_addresses(self) -> tuple[Address, ...]:
        """Return all addresses of the host on the bridge, of the probe's IP version."""
        return (self.own, *self.others)


def probes(guest: Guest, networks: Iterable[Network]) -> Iterator[Probe]:
    """Yield a probe for each NIC and subnet of a running guest where a forward needs an endpoint.

    There is none for a NIC and IP version that has an endpoint, nor for a subnet in which the host
    has no address.
    """
    located = {(endpoint.mac, endpoint.bridge, endpoint.ip.version) for endpoint in guest.endpoints}
    for attachment in named_attachments(guest.nics, networks):
        subnets = dict.fromkeys(subnet for subnet, bridge in guest.lans if bridge == attachment.bridge)
        mine = [ip for ip in guest.gateways if any(ip in subnet for subnet in subnets)]
        for subnet in subnets:
            own = next((ip for ip in mine if ip in subnet), None)
            known = (attachment.nic.mac, attachment.bridge, subnet.version) in located
            if own and not known and _has_forward(guest, attachment.nic.mac, subnet.version):
                others = tuple(ip for ip in mine if ip.version == own.version and ip != own)
                yield Probe(attachment.bridge, attachment.nic.mac, subnet, own, others)


def _has_forward(guest: Guest, mac: str, version: int) -> bool:
    return any(forward.mac in (None, mac) and fits(forward, version) for forward in guest.forwards)


def verification_probes(attachment: Attachment, addresses: Iterable[Address]) -> Iterator[Probe]:
    """Yield a probe for each single address that is to be verified at a NIC.

    Addresses outside of the host's subnets on the bridge are left out.
    """
    interfaces = [address for address in attachment.facts.addresses if not address.is_link_local]
    for ip in addresses:
        own = next((address.ip for address in interfaces if ip in address.network), None)
        if own:
            others = tuple(a.ip for a in interfaces if a.version == ip.version and a.ip != own)
            yield Probe(attachment.bridge, attachment.nic.mac, ip_network(ip), own, others)


def sockets_needed(probes: Iterable[Probe]) -> set[tuple[str, int]]:
    """Return the (bridge, IP version) pairs that need a socket to receive the answers to probes."""
    return {(probe.bridge, probe.own.version) for probe in probes}


def is_answer(sighting: Sighting, probe: Probe) -> bool:
    """Tell whether a sighting on the probe's bridge answers it."""
    ip, subnet = sighting.ip, probe.subnet
    if sighting.mac != probe.mac or ip not in subnet or ip in probe.host_addresses():
        return False
    # No NIC has the network or broadcast address of an IPv4 subnet larger than a /31 (RFC 3021).
    ends = (subnet.network_address, subnet.broadcast_address)
    return subnet.version == 6 or subnet.prefixlen > 30 or ip not in ends


def merge(old: Iterable[Sighting], new: Iterable[Sighting]) -> tuple[Sighting, ...]:
    """Return old and new sightings without duplicates, the newest last, at most MAX_SIGHTINGS a NIC."""
    newest = dict.fromkeys(reversed((*old, *new)))
    kept: list[Sighting] = []
    counts: dict[str, int] = {}
    for sighting in newest:
        counts[sighting.mac] = counts.get(sighting.mac, 0) + 1
        if counts[sighting.mac] <= MAX_SIGHTINGS:
            kept.append(sighting)
    return tuple(reversed(kept))


def octets(mac: str) -> bytes:
    """Return the six bytes of a MAC address."""
    return bytes.fromhex(mac.replace(":", ""))


def arp_requests(probe: Probe, own_mac: bytes) -> Iterator[bytes]:
    """Yield an Ethernet frame with an ARP request (RFC 826) for each address of the probe's subnet.

    The frames are sent to the NIC only, not broadcast. None for IPv6, and for a subnet of more than
    MAX_ARP_ADDRESSES.
    """
    subnet, own = probe.subnet, probe.own
    if not isinstance(subnet, IPv4Network) or subnet.num_addresses > MAX_ARP_ADDRESSES:
        return
    target = octets(probe.mac)
    start = target + own_mac + struct.pack("!HHHBBH", ETH_P_ARP, ETHERNET, IPV4, 6, 4, 1)
    for ip in subnet.hosts():
        if ip not in probe.host_addresses():
            yield start + own_mac + own.packed + target + ip.packed


def echo_request(probe: Probe, own_mac: bytes, identifier: int) -> bytes:
    """Return an Ethernet frame with an ICMPv6 echo request (RFC 4443), sent to the NIC only.

    Its destination is the single address of the probe's subnet.
    """
    own, target = probe.own.packed, probe.subnet.network_address.packed
    body = struct.pack("!BBHHH", ECHO_REQUEST, 0, 0, identifier, 1)
    # The pseudo-header of RFC 8200, section 8.1.
    total = sum(struct.unpack("!20H4H", own + target + struct.pack("!II", len(body), ICMPV6) + body))
    folded = (total & 0xFFFF) + (total >> 16)
    checksum = ~(folded + (folded >> 16)) & 0xFFFF
    header = struct.pack("!IHBB", 6 << 28, len(body), ICMPV6, 64)
    start = octets(probe.mac) + own_mac + struct.pack("!H", ETH_P_IPV6)
    return start + header + own + target + body[:2] + struct.pack("!H", checksum) + body[4:]


def parse_arp_reply(frame: bytes, own: Collection[Address]) -> Sighting | None:
    """Return the sender of an ARP reply (RFC 826) to one of the host's ``own`` addresses.

    None for any other frame, and where the frame's source is not the MAC address in the reply.
    """
    data = frame[HEADER:]
    if len(data) < 28 or _type(frame) != ETH_P_ARP:
        return None
    if struct.unpack_from("!HHBBH", data) != (ETHERNET, IPV4, 6, 4, REPLY):
        return None
    mac, ip, target = data[8:14], IPv4Address(data[14:18]), IPv4Address(data[24:28])
    if mac != frame[6:12] or target not in own:
        return None
    return Sighting(ip, mac.hex(":"), "probed")


def parse_echo_reply(frame: bytes, own: Collection[Address], identifier: int) -> Sighting | None:
    """Return the sender of an ICMPv6 echo reply (RFC 4443) with our identifier to an ``own`` address.

    None for any other frame, and for a link-local sender.
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


def parse_dhcp_ack(frame: bytes, own: Collection[Address]) -> Sighting | None:
    """Return the lease in a DHCPACK (RFC 2131) of the host's own server; None for any other frame.

    The server sends from one of the host's ``own`` addresses on the bridge directly to the client:
    to its MAC address or broadcast, and to the leased address or broadcast. A packet that the host
    only forwards meets these conditions in no case, even if it is masqueraded.
    """
    packet = frame[HEADER:]
    size = (packet[0] & 15) * 4 if packet else 0
    if _type(frame) != IPV4 or size < 20 or packet[0] >> 4 != 4 or len(packet) < size + 8 or packet[9] != UDP:
        return None
    if struct.unpack_from("!HH", packet, size) != (DHCP_SERVER, DHCP_CLIENT):
        return None
    lease = _parse_ack(packet[size + 8 :])
    if lease is None or IPv4Address(packet[12:16]) not in own:
        return None
    direct = frame[:6] in (BROADCAST, octets(lease.mac)) and IPv4Address(packet[16:20]) in (
        LIMITED_BROADCAST,
        lease.ip,
    )
    return lease if direct else None


def _type(frame: bytes) -> int:
    return int.from_bytes(frame[12:HEADER])


def _parse_ack(message: bytes) -> Sighting | None:
    if len(message) < 240 or message[236:240] != DHCP_COOKIE:
        return None
    if (message[0], message[1], message[2]) != (DHCP_REPLY, ETHERNET, 6):
        return None
    if _options(message[240:]).get(DHCP_MESSAGE_TYPE) != bytes([DHCP_ACK]):
        return None
    # The answer to a DHCPINFORM, which requests options only, has no address.
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
