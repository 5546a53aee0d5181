"""Questions to guests whose address nothing tells, and what is on the wire for them."""

from __future__ import annotations

import struct
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_interface, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unit.build import BRIDGE, MAC, endpoint, forward, guest
from virt_forward.addresses import probe
from virt_forward.addresses.attachments import Attachment, Bridge
from virt_forward.addresses.probe import Question
from virt_forward.model import Forward, Guest, Network, Nic, Sighting

GATEWAYS = (ip_address("198.51.100.1"), ip_address("2001:db8:10::1"))
OWN = bytes.fromhex("5254009a8ad1")
OTHER = "52:54:00:00:00:02"
FOUR = Question(BRIDGE, MAC, ip_network("198.51.100.0/24"), GATEWAYS[0])
SIX = Question(BRIDGE, MAC, ip_network("2001:db8:10::/64"), GATEWAYS[1])


def running(*forwards: Forward, endpoints: tuple[str, ...] = (), nics: tuple[Nic, ...] = ()) -> Guest:
    made = guest("web", *forwards, endpoints=map(endpoint, endpoints))
    return made._replace(nics=nics or (Nic(MAC, "bridge", BRIDGE),), gateways=GATEWAYS)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (running(forward()), [FOUR, SIX]),
        (running(forward(), endpoints=("198.51.100.200",)), [SIX]),
        (running(forward(), endpoints=("198.51.100.200", "2001:db8:10::200")), []),
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
    assert list(probe.questions(asked, ())) == expected


def test_the_bridge_of_a_network_is_where_to_ask() -> None:
    asked = running(forward(source="192.0.2.0/24"), nics=(Nic(MAC, "network", "default"),))
    network = Network("default", "9b8b5e27-6d3c-4f0e-9a3c-3b1f8f2a7c10", BRIDGE)
    assert list(probe.questions(asked, [network])) == [FOUR]


def test_each_nic_is_asked_for_its_own() -> None:
    asked = running(
        forward(source="192.0.2.0/24"),
        endpoints=("198.51.100.200",),
        nics=(Nic(MAC, "bridge", BRIDGE), Nic(OTHER, "bridge", BRIDGE)),
    )
    assert list(probe.questions(asked, ())) == [FOUR._replace(mac=OTHER)]


def test_question_names_every_host_address_on_the_bridge() -> None:
    second = ip_address("198.51.100.2")
    asked = running(forward(source="192.0.2.0/24"))._replace(gateways=(*GATEWAYS, second))
    assert list(probe.questions(asked, ())) == [FOUR._replace(others=(second,))]


def test_every_address_of_the_subnet_is_asked_for_but_the_hosts() -> None:
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
def test_large_subnets_are_not_searched(subnet: str, count: int) -> None:
    network = IPv4Network(subnet)
    question = Question(BRIDGE, MAC, network, network[1])
    assert len(list(probe.arp_requests(question, OWN))) == count


def test_there_is_no_arp_for_ipv6() -> None:
    assert not list(probe.arp_requests(SIX, OWN))


@pytest.mark.parametrize(
    ("ip", "mac", "question", "expected"),
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
def test_only_what_was_asked_is_an_answer(ip: str, mac: str, question: Question, expected: bool) -> None:
    assert probe.answers(Sighting(ip_address(ip), mac, "probed"), question) is expected


def sightings(mac: str, *numbers: int) -> tuple[Sighting, ...]:
    return tuple(Sighting(ip_address(f"198.51.100.{number}"), mac, "probed") for number in numbers)


def test_sightings_are_joined_newest_last() -> None:
    assert probe.joined(sightings(MAC, 5, 6), sightings(MAC, 7, 5)) == sightings(MAC, 6, 7, 5)


def test_sightings_of_one_nic_are_bounded_and_leave_others_alone() -> None:
    joined: tuple[Sighting, ...] = sightings(OTHER, 9)
    for number in range(200):
        joined = probe.joined(joined, sightings(MAC, number))
    assert joined == sightings(OTHER, 9) + sightings(MAC, *range(200 - probe.MOST_HEARD, 200))


ETHERNET = bytes.fromhex("5254009a8ad1 525400a08f2c 0806")
REPLY = ETHERNET + bytes.fromhex("0001 0800 06 04 0002 525400a08f2c c63364c8 5254009a8ad1 c6336401")


def test_an_arp_reply() -> None:
    # Ethernet pads what is short.
    assert probe.arp_answer(REPLY + bytes(18), GATEWAYS) == Sighting(
        ip_address("198.51.100.200"), MAC, "probed"
    )


@pytest.mark.parametrize("at", [12, 13, 15, 16, 18, 19, 21])
def test_what_is_no_arp_reply(at: int) -> None:
    assert probe.arp_answer(REPLY[:at] + bytes([REPLY[at] ^ 3]) + REPLY[at + 1 :], GATEWAYS) is None
    assert probe.arp_answer(REPLY[:41], GATEWAYS) is None


@pytest.mark.parametrize("at", [11, 27], ids=["frame", "payload"])
def test_arp_reply_for_another_nic_is_refused(at: int) -> None:
    """The frame's source and the sender in its payload are one NIC, or somebody speaks for another."""
    assert probe.arp_answer(REPLY[:at] + b"\x02" + REPLY[at + 1 :], GATEWAYS) is None


def test_arp_reply_to_somebody_else_is_refused() -> None:
    assert probe.arp_answer(REPLY[:-1] + b"\x09", GATEWAYS) is None


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
def test_echo_reply_tells_the_address_of_the_sender(frame: bytes, found: bool) -> None:
    expected = Sighting(ip_address("2001:db8:10::200"), MAC, "probed") if found else None
    assert probe.echo_answer(frame, GATEWAYS, ECHO_ID) == expected


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
        (dhcp(dport=5000), None),  # to a sibling's forward
        (dhcp(dport=67), None),  # to a relay
        (dhcp(source="198.51.100.9"), None),  # somebody else's server
        (dhcp(source="192.0.2.2"), None),  # a client that is forwarded
        (dhcp(target="198.51.100.5"), None),
        (dhcp()[:120], None),
        (b"", None),
        (b"\x40" * 400, None),
    ],
)
def test_the_answer_of_a_dhcp_server(packet: bytes, lease: Sighting | None) -> None:
    assert probe.dhcp_answer(framed(packet), GATEWAYS) == lease
    assert probe.dhcp_answer(framed(packet, MAC), GATEWAYS) == lease


def test_masqueraded_packet_to_a_sibling_is_no_lease() -> None:
    """It has the host's address, but the sibling's hardware address where a lease has the client's."""
    assert probe.dhcp_answer(framed(dhcp(target="198.51.100.77"), OTHER), GATEWAYS) is None


@given(st.binary(max_size=400), st.integers(0, 300), st.binary(max_size=4))
def test_no_packet_breaks_it(packet: bytes, at: int, patch: bytes) -> None:
    for whole in (framed(dhcp()), REPLY, echo()):
        for frame in (packet, whole[:12] + packet, whole[:at] + patch + whole[at + len(patch) :]):
            probe.dhcp_answer(frame, GATEWAYS)
            probe.arp_answer(frame, GATEWAYS)
            probe.echo_answer(frame, GATEWAYS, ECHO_ID)


@given(st.integers(0, 2**128 - 1), st.integers(0, 2**128 - 1), st.integers(0, 0xFFFF))
def test_echo_request_for_one_address_has_a_right_checksum(own: int, target: int, identifier: int) -> None:
    """RFC 1071: with the checksum in it, the sum over all words is all ones."""
    question = SIX._replace(own=IPv6Address(own), subnet=IPv6Network(target))
    frame = probe.echo_request(question, OWN, identifier)
    assert frame[:14] == bytes.fromhex("525400a08f2c") + OWN + b"\x86\xdd"
    assert len(frame) == 14 + 40 + 8
    body = frame[54:]
    pseudo = frame[22:54] + struct.pack("!II", len(body), probe.ICMPV6)
    total = sum(struct.unpack("!24H", pseudo + body))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    assert total == 0xFFFF
    assert struct.unpack_from("!H", body, 4) == (identifier,)


def test_question_about_one_address_is_put_from_the_hosts_address_in_its_subnet() -> None:
    bridge = Bridge(
        (ip_interface("198.51.100.1/24"), ip_interface("192.0.2.1/24"), ip_interface("fe80::1/64"))
    )
    attachment = Attachment(Nic(MAC, "bridge", BRIDGE), BRIDGE, None, bridge)
    asked = list(probe.verifying(attachment, map(ip_address, ("192.0.2.9", "203.0.113.9", "2001:db8::9"))))
    (question,) = asked
    assert (str(question.subnet), str(question.own)) == ("192.0.2.9/32", "192.0.2.1")
    assert [frame[-4:] for frame in probe.arp_requests(question, OWN)] == [ip_address("192.0.2.9").packed]
    assert probe.answers(Sighting(ip_address("192.0.2.9"), MAC, "probed"), question)
    assert not probe.answers(Sighting(ip_address("192.0.2.8"), MAC, "probed"), question)
