"""Questions to guests whose address nothing tells, and what is on the wire for them."""

from __future__ import annotations

import struct
from ipaddress import IPv4Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unit.build import BRIDGE, MAC, forward, guest, seat
from virt_forward.addresses import asking
from virt_forward.addresses.asking import Question
from virt_forward.model import Forward, Guest, Network, Nic, Sighting

GATEWAYS = (ip_address("198.51.100.1"), ip_address("2001:db8:10::1"))
OWN = bytes.fromhex("5254009a8ad1")
OTHER = "52:54:00:00:00:02"
FOUR = Question(BRIDGE, MAC, ip_network("198.51.100.0/24"), GATEWAYS[0])
SIX = Question(BRIDGE, MAC, ip_network("2001:db8:10::/64"), GATEWAYS[1])


def running(*forwards: Forward, seats: tuple[str, ...] = (), nics: tuple[Nic, ...] = ()) -> Guest:
    made = guest("web", *forwards, seats=map(seat, seats))
    return made._replace(nics=nics or (Nic(MAC, "bridge", BRIDGE),), gateways=GATEWAYS)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (running(forward()), [FOUR, SIX]),
        (running(forward(), seats=("198.51.100.200",)), [SIX]),
        (running(forward(), seats=("198.51.100.200", "2001:db8:10::200")), []),
        (running(forward(source="192.0.2.0/24")), [FOUR]),
        (running(forward(address="2001:db8::1")), [SIX]),
        (running(), []),
        (running(forward(mac=OTHER)), []),
        (running(forward(), nics=(Nic(MAC, "network", "lost"),)), []),
        # Where the host has no address it has no business asking.
        (running(forward())._replace(gateways=()), []),
        (running(forward())._replace(lans=()), []),
    ],
)
def test_a_question_for_each_family_without_an_address(asked: Guest, expected: list[Question]) -> None:
    assert list(asking.questions(asked, ())) == expected


def test_the_bridge_of_a_network_is_where_to_ask() -> None:
    asked = running(forward(source="192.0.2.0/24"), nics=(Nic(MAC, "network", "default"),))
    network = Network("default", "9b8b5e27-6d3c-4f0e-9a3c-3b1f8f2a7c10", BRIDGE)
    assert list(asking.questions(asked, [network])) == [FOUR]


def test_each_nic_is_asked_for_its_own() -> None:
    asked = running(
        forward(source="192.0.2.0/24"),
        seats=("198.51.100.200",),
        nics=(Nic(MAC, "bridge", BRIDGE), Nic(OTHER, "bridge", BRIDGE)),
    )
    assert list(asking.questions(asked, ())) == [FOUR._replace(mac=OTHER)]


def test_every_address_of_the_subnet_is_asked_for_but_the_hosts() -> None:
    requests = list(asking.arp_requests(FOUR, OWN))
    assert len(requests) == 253
    assert len({len(request) for request in requests}) == 1
    assert requests[0] == bytes.fromhex("0001 0800 06 04 0001 5254009a8ad1 c6336401 525400a08f2c c6336402")
    assert requests[-1].endswith(ip_address("198.51.100.254").packed)


@pytest.mark.parametrize(
    ("subnet", "count"), [("198.18.0.0/22", 1021), ("198.18.0.0/21", 0), ("198.18.1.0/30", 1)]
)
def test_large_subnets_are_not_searched(subnet: str, count: int) -> None:
    network = IPv4Network(subnet)
    question = Question(BRIDGE, MAC, network, network[1])
    assert len(list(asking.arp_requests(question, OWN))) == count


def test_there_is_no_arp_for_ipv6() -> None:
    assert not list(asking.arp_requests(SIX, OWN))


REPLY = bytes.fromhex("0001 0800 06 04 0002 525400a08f2c c63364c8 5254009a8ad1 c6336401")


def test_an_arp_reply() -> None:
    # Ethernet pads what is short.
    assert asking.arp_answer(REPLY + bytes(18)) == Sighting(ip_address("198.51.100.200"), MAC, "probed")


@pytest.mark.parametrize("at", [1, 2, 4, 5, 7])
def test_what_is_no_arp_reply(at: int) -> None:
    assert asking.arp_answer(REPLY[:at] + bytes([REPLY[at] ^ 3]) + REPLY[at + 1 :]) is None
    assert asking.arp_answer(REPLY[:27]) is None


def dhcp(
    options: bytes = b"\x35\x01\x05\xff", *, op: int = 2, sport: int = 67, ip: str = "198.51.100.77"
) -> bytes:
    message = struct.pack("!BBBBIHH", op, 1, 6, 0, 7, 0, 0) + bytes(4) + ip_address(ip).packed + bytes(8)
    message += bytes.fromhex(MAC.replace(":", "")) + bytes(10 + 64 + 128) + asking.DHCP_COOKIE + options
    udp = struct.pack("!HHHH", sport, 68, 8 + len(message), 0)
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp + message), 0, 0, 64, 17, 0)
    return header + GATEWAYS[0].packed + ip_address("255.255.255.255").packed + udp + message


LEASE = Sighting(ip_address("198.51.100.77"), MAC, "leased")


@pytest.mark.parametrize(
    ("packet", "lease"),
    [
        (dhcp(), LEASE),
        # other options and padding before it, as servers have them
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
        (dhcp()[:120], None),
        (b"", None),
        (b"\x40" * 400, None),
    ],
)
def test_the_answer_of_a_dhcp_server(packet: bytes, lease: Sighting | None) -> None:
    assert asking.dhcp_answer(packet) == lease


@given(st.binary(max_size=400), st.integers(0, 300), st.binary(max_size=4))
def test_no_packet_breaks_it(packet: bytes, at: int, patch: bytes) -> None:
    asking.dhcp_answer(packet)
    asking.arp_answer(packet)
    for whole in (dhcp(), REPLY):
        asking.dhcp_answer(whole[:at] + patch + whole[at + len(patch) :])
        asking.arp_answer(whole[:at] + patch + whole[at + len(patch) :])
