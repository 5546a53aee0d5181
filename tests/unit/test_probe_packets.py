"""Packets of probes, and the kernel's trace of one."""

from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virt_forward.check.clone import packets, trace
from virt_forward.check.clone.packets import Flow, Packet
from virt_forward.model import PROTOS, Address, Proto

SAVED = Path(__file__).parent / "rulesets"
MACS = "02:76:66:00:00:01", "52:54:00:a0:8f:2c"
V4 = ip_address("192.0.2.2"), ip_address("192.0.2.1")
V6 = ip_address("2001:db8::2"), ip_address("2001:db8::1")
PORTS = st.integers(1, 65535)
IDENTIFIERS = st.integers(0, 0xFFFFFFFF)
PAIRS = st.one_of(
    st.tuples(*[st.integers(1, (1 << 32) - 1).map(IPv4Address)] * 2),
    st.tuples(*[st.integers(1, (1 << 128) - 1).map(IPv6Address)] * 2),
)


@given(st.sampled_from(PROTOS), PAIRS, PORTS, PORTS, IDENTIFIERS)
def test_first_frame_is_parsed_as_what_it_was_made_of(
    proto: Proto, pair: tuple[Address, Address], sport: int, dport: int, identifier: int
) -> None:
    frame = packets.first_frame(Flow(*MACS, proto, *pair, sport, dport), identifier)
    assert packets.parse(frame) == Packet("first", identifier, proto, *pair, sport, dport)


@given(st.sampled_from(PROTOS), PAIRS, IDENTIFIERS)
def test_answer_goes_back_with_the_same_identifier(
    proto: Proto, pair: tuple[Address, Address], identifier: int
) -> None:
    frame = packets.first_frame(Flow(*MACS, proto, *pair, 40000, 80), identifier)
    answer = packets.answer_frame(frame)
    assert answer
    assert (answer[:6], answer[6:12]) == (frame[6:12], frame[:6])
    assert packets.parse(answer) == Packet("answer", identifier, proto, pair[1], pair[0], 80, 40000)
    assert packets.answer_frame(answer) is None


@given(st.binary(max_size=120))
def test_any_frame_is_parsed_without_an_error(frame: bytes) -> None:
    packets.parse(frame)
    packets.parse(bytes(12) + b"\x08\x00" + frame)
    packets.parse(bytes(12) + b"\x86\xdd" + frame)


@pytest.mark.parametrize("proto", PROTOS)
def test_icmp_errors_tell_which_probe_they_are_about(proto: Proto) -> None:
    four = packets.first_frame(Flow(*MACS, proto, *V4, 40000, 80), 7)
    six = packets.first_frame(Flow(*MACS, proto, *V6, 40000, 80), 7)
    # The kernel quotes as much as fits; of TCP, the first eight bytes are enough.
    error4 = four[:14] + b"\x45" + bytes(8) + b"\x01" + bytes(10) + b"\x03\x03" + bytes(6) + four[14:]
    error6 = six[:14] + bytes(6) + b"\x3a" + bytes(33) + b"\x01\x04" + bytes(6) + six[14:]
    assert packets.parse(error4) == Packet("error", 7, proto, *V4, 40000, 80)
    assert packets.parse(error6) == Packet("error", 7, proto, *V6, 40000, 80)
    cut = error4[: 14 + 20 + 8 + 20 + 8]
    assert (packets.parse(cut) is not None) == (proto == "tcp")


@pytest.mark.parametrize(
    ("data", "value"),
    [(b"", 0xFFFF), (b"\x00\x01\xf2\x03\xf4\xf5\xf6\xf7", 0x220D), (b"\x01", 0xFEFF)],
)
def test_internet_checksum(data: bytes, value: int) -> None:
    """The second is the example of RFC 1071, section 3."""
    assert packets.checksum(data) == value


def test_crc32c() -> None:
    """The check value of CRC-32C, and that of 32 zero bytes (RFC 3720, B.4)."""
    assert packets.crc32c(b"123456789") == 0xE3069283
    assert packets.crc32c(bytes(32)) == 0x8A9136AA


def saved_events() -> list[trace.Event]:
    """Return the events of a packet to 8080:80/tcp on a host with Docker's policy (kernel 6.18)."""
    lines = (SAVED / "dropped.trace").read_text().split()
    return [event for line in lines for event in trace.parse(bytes.fromhex(line))]


def test_saved_trace_is_parsed() -> None:
    events = saved_events()
    assert len(events) == 16
    jump = trace.Event("ip", "filter", "FORWARD", "rule", 5, "jump", "DOCKER-USER")
    assert jump in events
    assert events[-1] == trace.Event("ip", "filter", "FORWARD", "policy", 0, "drop")
    assert [event.verdict for event in events if event.table == "filter"] == [
        "jump",
        "return",
        "continue",
        "drop",
    ]


@given(st.binary(max_size=200))
def test_any_datagram_is_parsed_without_an_error(datagram: bytes) -> None:
    list(trace.parse(datagram))
    head = (16 + len(datagram)).to_bytes(4, "little") + trace.MESSAGE.to_bytes(2, "little") + bytes(10)
    list(trace.parse(head + datagram))
