"""Probes for the addresses of guests: which are made, and their packets."""

from __future__ import annotations

import struct
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_interface, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unit.build import BRIDGE, MAC, endpoint, forward, guest
from virt_forward.addresses import probe
from virt_forward.addresses.attachments import Attachment, BridgeFacts
from virt_forward.addresses.probe import Probe
from virt_forward.model import Forward, Guest, Network, Nic, Sighting

GATEWAYS = (ip_address("198.51.100.1"), ip_address("2001:db8:10::1"))
OWN = bytes.fromhex("5254009a8ad1")
OTHER = "52:54:00:00:00:02"
FOUR = Probe(BRIDGE, MAC, ip_network("198.51.100.0/24"), GATEWAYS[0])
SIX = Probe(BRIDGE, MAC, ip_network("2001:db8:10::/64"), GATEWAYS[1])


def running(*forwards: Forward, endpoints: tuple[str, ...] = (), nics: tuple[Nic, ...] = ()) -> Guest:
    made = guest("web", *forwards, endpoints=map(endpoint, endpoints))
    return made._replace(nics=nics or (Nic(MAC, "bridge", BRIDGE),), gateways=GATEWAYS)


@pytest.mark.parametrize(
    ("of", "expected"),
    [
        (running(forward()), [FOUR, SIX]),
        (running(forward(), endpoints=("198.51.100.200",)), [SIX]),
        (running(forward(), endpoints=("198.51.100.200", "2001:db8:10::200")), []),
        (running(forward(source="192.0.2.0/24")), [FOUR]),
        (running(forward(address="2001:db8::1")), [SIX]),
        (running(), []),
        (running(forward(mac=OTHER)), []),
        (running(forward(), nics=(Nic(MAC, "network", "lost"),)), []),
        # The host has no address or no subnet on the bridge.
        (running(forward())._replace(gateways=()), []),
        (running(forward())._replace(lans=()), []),
    ],
)
def test_probes_cover_each_family_without_endpoint(of: Guest, expected: list[Probe]) -> None:
    assert list(probe.probes(of, ())) == expected


def test_probes_use_bridge_of_network() -> None:
    of = running(forward(source="192.0.2.0/24"), nics=(Nic(MAC, "network", "default"),))
    network = Network("default", "9b8b5e27-6d3c-4f0e-9a3c-3b1f8f2a7c10", BRIDGE)
    assert list(probe.probes(of, [network])) == [FOUR]


def test_probes_cover_each_nic_without_endpoint() -> None:
    of = running(
        forward(source="192.0.2.0/24"),
        endpoints=("198.51.100.200",),
        nics=(Nic(MAC, "bridge", BRIDGE), Nic(OTHER, "bridge", BRIDGE)),
    )
    assert list(probe.probes(of, ())) == [FOUR._replace(mac=OTHER)]


def test_probe_has_all_host_addresses_of_its_family() -> None:
    second = ip_address("198.51.100.2")
    of = running(forward(source="192.0.2.0/24"))._replace(gateways=(*GATEWAYS, second))
    assert list(probe.probes(of, ())) == [FOUR._replace(others=(second,))]


def test_arp_requests_cover_subnet_without_host_addresses() -> None:
    frames = list(probe.arp_requests(FOUR._replace(others=(ip_address("198.51.100.3"),)), OWN))
    assert len(frames) == 252
    assert len({len(frame) for frame in frames}) == 1
    ethernet = "525400a08f2c 5254009a8ad1 0806"
    request = "0001 0800 06 04 0001 5254009a8ad1 c6336401 525400a08f2c c6336402"
    assert frames[0] == bytes.fromhex(ethernet + request)
    assert frames[-1].endswith(ip_address("198.51.100.254").packed)


@pytest.mark.parametrize(
    ("subnet", "count"), [("198.18.0.0/22", 1021), ("198.18.0.0/21", 0), ("198.18.1.0/30", 1)]
)
def test_arp_requests_are_limited_to_small_subnets(subnet: str, count: int) -> None:
    network = IPv4Network(subnet)
    single = Probe(BRIDGE, MAC, network, network[1])
    assert len(list(probe.arp_requests(single, OWN))) == count


def test_arp_requests_are_for_ipv4_only() -> None:
    assert not list(probe.arp_requests(SIX, OWN))


@pytest.mark.parametrize(
    ("ip", "mac", "single", "expected"),
    [
        ("198.51.100.200", MAC, FOUR, True),
        ("198.51.100.200", OTHER, FOUR, False),
        ("198.51.101.200", MAC, FOUR, False),
        ("198.51.100.1", MAC, FOUR, False),  # the host's own
        ("198.51.100.2", MAC, FOUR._replace(others=(ip_address("198.51.100.2"),)), False),
        ("198.51.100.0", MAC, FOUR, False),
        ("198.51.100.255", MAC, FOUR, False),
        ("198.51.100.0", MAC, FOUR._replace(subnet=ip_network("198.51.100.0/31")), True),
        ("2001:db8:10::200", MAC, SIX, True),
        ("2001:db8:11::200", MAC, SIX, False),
        ("fe80::5054:ff:fea0:8f2c", MAC, SIX, False),
        ("2001:db8:10::200", MAC, FOUR, False),
    ],
)
def test_answer_matches_mac_and_subnet(ip: str, mac: str, single: Probe, expected: bool) -> None:
    assert probe.is_answer(Sighting(ip_address(ip), mac, "probed"), single) is expected


def sightings(mac: str, *numbers: int) -> tuple[Sighting, ...]:
    return tuple(Sighting(ip_address(f"198.51.100.{number}"), mac, "probed") for number in numbers)


def test_merge_keeps_newest_last() -> None:
    assert probe.merge(sightings(MAC, 5, 6), sightings(MAC, 7, 5)) == sightings(MAC, 6, 7, 5)


def test_merge_limits_sightings_per_nic() -> None:
    merged: tuple[Sighting, ...] = sightings(OTHER, 9)
    for number in range(200):
        merged = probe.merge(merged, sightings(MAC, number))
    assert merged == sightings(OTHER, 9) + sightings(MAC, *range(200 - probe.MAX_SIGHTINGS, 200))


ETHERNET = bytes.fromhex("5254009a8ad1 525400a08f2c 0806")
REPLY = ETHERNET + bytes.fromhex("0001 0800 06 04 0002 525400a08f2c c63364c8 5254009a8ad1 c6336401")


def test_arp_reply_is_parsed() -> None:
    # Ethernet pads short frames.
    assert probe.parse_arp_reply(REPLY + bytes(18), GATEWAYS) == Sighting(
        ip_address("198.51.100.200"), MAC, "probed"
    )


@pytest.mark.parametrize("at", [12, 13, 15, 16, 18, 19, 21])
def test_damaged_arp_reply_is_refused(at: int) -> None:
    assert probe.parse_arp_reply(REPLY[:at] + bytes([REPLY[at] ^ 3]) + REPLY[at + 1 :], GATEWAYS) is None
    assert probe.parse_arp_reply(REPLY[:41], GATEWAYS) is None


@pytest.mark.parametrize("at", [11, 27], ids=["frame", "payload"])
def test_arp_reply_for_another_nic_is_refused(at: int) -> None:
    """The source of the frame and the sender in the payload have to be the same NIC."""
    assert probe.parse_arp_reply(REPLY[:at] + b"\x02" + REPLY[at + 1 :], GATEWAYS) is None


def test_arp_reply_to_another_target_is_refused() -> None:
    assert probe.parse_arp_reply(REPLY[:-1] + b"\x09", GATEWAYS) is None


ECHO_ID = 0x1234


def echo(
    source: str = "2001:db8:10::200", target: str = "2001:db8:10::1", *, kind: int = 129, ident: int = ECHO_ID
) -> bytes:
    icmp = struct.pack("!BBHHH", kind, 0, 0, ident, 1)
    header = struct.pack("!IHBB", 6 << 28, len(icmp), 58, 64)
    addresses = ip_address(source).packed + ip_address(target).packed
    return ETHERNET[:12] + b"\x86\xdd" + header + addresses + icmp


@pytest.mark.parametrize(
    ("frame", "found"),
    [
        (echo(), True),
        (echo(source="fe80::5054:ff:fea0:8f2c"), False),
        (echo(target="2001:db8:10::9"), False),
        (echo(kind=128), False),
        (echo(ident=7), False),
        (echo()[:61], False),
        (echo()[:12] + b"\x08\x00" + echo()[14:], False),
        (echo()[:14] + b"\x45" + echo()[15:], False),
        (b"", False),
    ],
)
def test_echo_reply_is_parsed_if_sent_to_host(frame: bytes, found: bool) -> None:
    expected = Sighting(ip_address("2001:db8:10::200"), MAC, "probed") if found else None
    assert probe.parse_echo_reply(frame, GATEWAYS, ECHO_ID) == expected


def dhcp(
    options: bytes = b"\x35\x01\x05\xff", *, op: int = 2, sport: int = 67, dport: int = 68,
    ip: str = "198.51.100.77", source: str = str(GATEWAYS[0]), target: str = "255.255.255.255",
    mac: str = MAC,
) -> bytes:  # fmt: skip
    """Return an IPv4 packet as a DHCP server sends it."""
    message = struct.pack("!BBBBIHH", op, 1, 6, 0, 7, 0, 0) + bytes(4) + ip_address(ip).packed + bytes(8)
    message += bytes.fromhex(mac.replace(":", "")) + bytes(10 + 64 + 128) + probe.DHCP_COOKIE + options
    udp = struct.pack("!HHHH", sport, dport, 8 + len(message), 0)
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp + message), 0, 0, 64, 17, 0)
    return header + ip_address(source).packed + ip_address(target).packed + udp + message


def framed(packet: bytes, to: str = "ff:ff:ff:ff:ff:ff") -> bytes:
    return bytes.fromhex(to.replace(":", "")) + OWN + b"\x08\x00" + packet


LEASE = Sighting(ip_address("198.51.100.77"), MAC, "leased")


@pytest.mark.parametrize(
    ("packet", "lease"),
    [
        (dhcp(), LEASE),
        (dhcp(target="198.51.100.77"), LEASE),
        # preceded by other options and padding
        (dhcp(b"\x00\x00\x36\x04\xc6\x33\x64\x01\x35\x01\x05\x33\x04\x00\x00\x0e\x10\xff"), LEASE),
        # IP options make the header longer
        (b"\x46" + dhcp()[1:20] + bytes(4) + dhcp()[20:], LEASE),
        (dhcp(b"\x35\x01\x02\xff"), None),  # DHCPOFFER
        (dhcp(b"\x35\x01\x06\xff"), None),  # DHCPNAK
        (dhcp(b"\xff"), None),  # BOOTP
        (dhcp(b"\xff\x35\x01\x05"), None),  # after the end
        (dhcp(b"\x35"), None),
        (dhcp(b"\x35\x01"), None),
        (dhcp(ip="0.0.0.0"), None),  # the answer to a DHCPINFORM
        (dhcp(op=1), None),
        (dhcp(sport=53), None),
        (dhcp(dport=5000), None),  # to a sibling's forward
        (dhcp(dport=67), None),  # to a relay
        (dhcp(source="198.51.100.9"), None),  # a server elsewhere
        (dhcp(source="192.0.2.2"), None),  # a forwarded packet
        (dhcp(target="198.51.100.5"), None),
        (dhcp()[:120], None),
        (b"", None),
        (b"\x40" * 400, None),
    ],
)
def test_dhcp_ack_of_own_server_is_a_lease(packet: bytes, lease: Sighting | None) -> None:
    assert probe.parse_dhcp_ack(framed(packet), GATEWAYS) == lease
    assert probe.parse_dhcp_ack(framed(packet, MAC), GATEWAYS) == lease


def test_masqueraded_packet_to_a_sibling_is_no_lease() -> None:
    """It comes from the host's address, but is sent to the sibling's MAC address, not the client's."""
    assert probe.parse_dhcp_ack(framed(dhcp(target="198.51.100.77"), OTHER), GATEWAYS) is None


@given(st.binary(max_size=400), st.integers(0, 300), st.binary(max_size=4))
def test_parsers_accept_any_frame(packet: bytes, at: int, patch: bytes) -> None:
    for whole in (framed(dhcp()), REPLY, echo()):
        for frame in (packet, whole[:12] + packet, whole[:at] + patch + whole[at + len(patch) :]):
            probe.parse_dhcp_ack(frame, GATEWAYS)
            probe.parse_arp_reply(frame, GATEWAYS)
            probe.parse_echo_reply(frame, GATEWAYS, ECHO_ID)


@given(st.integers(0, 2**128 - 1), st.integers(0, 2**128 - 1), st.integers(0, 0xFFFF))
def test_echo_request_has_valid_checksum(own: int, target: int, identifier: int) -> None:
    """RFC 1071: the sum over all words including the checksum has all bits set."""
    single = SIX._replace(own=IPv6Address(own), subnet=IPv6Network(target))
    frame = probe.echo_request(single, OWN, identifier)
    assert frame[:14] == bytes.fromhex("525400a08f2c") + OWN + b"\x86\xdd"
    assert len(frame) == 14 + 40 + 8
    body = frame[54:]
    pseudo = frame[22:54] + struct.pack("!II", len(body), probe.ICMPV6)
    total = sum(struct.unpack("!24H", pseudo + body))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    assert total == 0xFFFF
    assert struct.unpack_from("!H", body, 4) == (identifier,)


def test_verification_probe_comes_from_host_address_in_same_subnet() -> None:
    bridge = BridgeFacts(
        (ip_interface("198.51.100.1/24"), ip_interface("192.0.2.1/24"), ip_interface("fe80::1/64"))
    )
    attachment = Attachment(Nic(MAC, "bridge", BRIDGE), BRIDGE, None, bridge)
    found = list(
        probe.verification_probes(attachment, map(ip_address, ("192.0.2.9", "203.0.113.9", "2001:db8::9")))
    )
    (single,) = found
    assert (str(single.subnet), str(single.own)) == ("192.0.2.9/32", "192.0.2.1")
    assert [frame[-4:] for frame in probe.arp_requests(single, OWN)] == [ip_address("192.0.2.9").packed]
    assert probe.is_answer(Sighting(ip_address("192.0.2.9"), MAC, "probed"), single)
    assert not probe.is_answer(Sighting(ip_address("192.0.2.8"), MAC, "probed"), single)
