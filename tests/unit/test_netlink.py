"""Netlink's messages, dumps of a kernel that is a socket of ours, and addresses in rtnetlink's messages."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address, ip_interface

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virt_forward.errors import VirtForwardError
from virt_forward.host import interfaces, netlink, process
from virt_forward.host.netlink import (
    NLM_F_DUMP_INTR,
    NLMSG_DONE,
    NLMSG_ERROR,
    Message,
    attribute,
    attributes,
    messages,
)

KIND = 20
LO = socket.if_nametoindex("lo")
ENOENT = 2


def message(kind: int, payload: bytes, flags: int = 2) -> bytes:
    data = struct.pack("=IHHII", 16 + len(payload), kind, flags, 1, 77) + payload
    return data.ljust(len(data) + 3 & ~3, b"\0")


DONE = message(NLMSG_DONE, struct.pack("=i", 0))
FAILED = struct.pack("=i", -ENOENT)


def answer(*payloads: bytes, flags: int = 2) -> bytes:
    return b"".join(message(KIND, payload, flags) for payload in payloads)


@contextmanager
def kernel(monkeypatch: pytest.MonkeyPatch, *answers: list[bytes]) -> Iterator[list[bytes]]:
    """Have each request answered by some datagrams; gives the list of requests."""
    requests: list[bytes] = []
    left = list(answers)
    ends: list[socket.socket] = []

    def opened(*_: int) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        ends.append(theirs)
        for datagram in left.pop(0):
            theirs.send(datagram)
        return ours

    monkeypatch.setattr(netlink, "socket", opened)
    yield requests
    for end in ends:
        end.setblocking(False)
        with suppress(BlockingIOError):
            while request := end.recv(1 << 16):
                requests.append(request)
        end.close()
    assert not left


def dump() -> list[bytes]:
    return netlink.dump(0, 18, b"request!")


def test_dump_is_all_payloads_up_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    datagrams = [answer(b"one", b"two"), answer(b"three") + DONE]
    with kernel(monkeypatch, datagrams) as requests:
        assert dump() == [b"one", b"two", b"three"]
    assert requests == [struct.pack("=IHHII", 24, 18, 0x301, 1, 0) + b"request!"]


@pytest.mark.parametrize("place", [0, 1])
def test_dump_that_was_interrupted_by_a_change_is_repeated(
    place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted = message(NLMSG_DONE, struct.pack("=i", 0), NLM_F_DUMP_INTR)
    first = ([answer(b"old", flags=NLM_F_DUMP_INTR), DONE], [answer(b"old"), interrupted])[place]
    with kernel(monkeypatch, first, [answer(b"new"), DONE]):
        assert dump() == [b"new"]


@pytest.mark.parametrize(
    ("datagram", "error"),
    [
        (message(NLMSG_ERROR, FAILED + bytes(16)), ENOENT),
        (answer(b"one") + message(NLMSG_DONE, FAILED), ENOENT),
        (answer(b"one")[:-1] + DONE[:10], 74),  # EBADMSG
        (answer(b"one") + DONE[:-1], 74),
        (struct.pack("=IHHII", 8, KIND, 0, 1, 0), 74),
        (message(KIND, bytes(netlink._BUFFER)), 90),  # EMSGSIZE
    ],
)
def test_dump_that_fails_or_is_not_whole_is_an_error(
    datagram: bytes, error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with kernel(monkeypatch, [datagram]), pytest.raises(OSError, match=os.strerror(error)):
        dump()


@pytest.mark.parametrize("kept_changing", [True, False])
def test_dump_ends_with_the_time_of_the_process(kept_changing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the kernel never answers, or its answers are interrupted each time."""
    monkeypatch.setattr(process, "_until", None)
    process.limit(0.05)

    def opened(*_: int) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        if kept_changing:
            theirs.send(answer(b"old", flags=NLM_F_DUMP_INTR) + DONE)
        threading.Timer(0.2, theirs.close).start()
        return ours

    monkeypatch.setattr(netlink, "socket", opened)
    with pytest.raises(TimeoutError):
        dump()


def test_requests_are_sent_several_at_once_and_their_errors_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = [message(NLMSG_ERROR, FAILED + b"request!"), message(NLMSG_ERROR, struct.pack("=i", -1)) * 2]
    count = netlink._AT_ONCE + 1
    with kernel(monkeypatch, errors) as requests:
        assert netlink.send(12, KIND, [bytes([number] * 4) for number in range(count)]) == {1, ENOENT}
    header = struct.pack("=IHHII", 20, KIND, 0x1, 1, 0)
    sent = [header + bytes([number] * 4) for number in range(count)]
    assert requests == [b"".join(sent[:-1]), sent[-1]]


def test_nothing_to_send_returns_no_errors() -> None:
    assert netlink.send(12, KIND, []) == set()


def test_requests_are_not_sent_once_the_time_of_the_process_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_until", 0.0)
    with kernel(monkeypatch, []) as requests, pytest.raises(TimeoutError):
        netlink.send(12, KIND, [b"1234"])
    assert requests == []


@given(st.binary(max_size=120))
def test_parsers_accept_any_data(data: bytes) -> None:
    list(attributes(data))
    with suppress(OSError):
        list(messages(data))


@given(st.lists(st.tuples(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF), st.binary(max_size=9))))
def test_messages_are_those_that_were_put_together(items: list[tuple[int, int, bytes]]) -> None:
    data = b"".join(message(kind, payload, flags) for kind, flags, payload in items)
    assert list(messages(data)) == [Message(kind, flags, 77, payload) for kind, flags, payload in items]


@given(st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=9))))
def test_attributes_are_those_that_were_put_together(items: list[tuple[int, bytes]]) -> None:
    assert list(attributes(b"".join(attribute(kind, payload) for kind, payload in items))) == items
    # Two bits of the type say what is inside (NLA_F_NESTED, NLA_F_NET_BYTEORDER).
    assert list(attributes(b"".join(attribute(kind | 0xC000, data) for kind, data in items))) == items


def address(family: int, prefix: int, index: int, **attributes: str) -> bytes:
    """Return the payload of an RTM_NEWADDR; a label and flags as the kernel adds them."""
    kinds = {"address": interfaces.IFA_ADDRESS, "local": interfaces.IFA_LOCAL}
    given = [attribute(kinds[name], ip_address(text).packed) for name, text in attributes.items()]
    label, flags = attribute(3, b"lo\0"), attribute(8, struct.pack("=I", 0x80))
    return struct.pack("=BBBBI", family, prefix, 0x80, 0, index) + label + b"".join(given) + flags


V4, V6 = socket.AF_INET, socket.AF_INET6


@pytest.mark.parametrize(
    ("payload", "found"),
    [
        (address(V4, 24, LO, address="192.0.2.1", local="192.0.2.1"), "192.0.2.1/24"),
        (address(V4, 32, LO, address="192.0.2.9", local="192.0.2.1"), "192.0.2.1/32"),  # with a peer
        (address(V6, 64, LO, address="2001:db8::1"), "2001:db8::1/64"),
        (address(V6, 128, LO, address="2001:db8::9", local="2001:db8::1"), "2001:db8::1/128"),
        (address(V6, 96, LO, address="::ffff:192.0.2.1"), "::ffff:192.0.2.1/96"),
        (address(V4, 24, LO), None),
        (address(28, 24, LO, local="192.0.2.1"), None),  # AF_MPLS
        (address(V4, 24, 0x7FFFFFFF, local="192.0.2.1"), None),  # an interface that has just been removed
    ],
)
def test_address_of_a_message(payload: bytes, found: str | None) -> None:
    expected = {"lo": (ip_interface(found),)} if found else {}
    assert interfaces.parse_addresses([payload]) == expected


@pytest.mark.parametrize(
    "payload",
    [b"", b"\2\0", address(V4, 33, LO, local="192.0.2.1"), address(V4, 24, LO, local="2001:db8::1")],
)
def test_addresses_that_cannot_be_understood_are_one_sentence(
    payload: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(netlink, "dump", lambda *_: [payload])
    with pytest.raises(VirtForwardError, match=r"^rtnetlink: the host's addresses cannot be read: .+$"):
        interfaces.read_interfaces()


def test_kernel_that_refuses_to_list_addresses_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with kernel(monkeypatch, [message(NLMSG_ERROR, FAILED)]), pytest.raises(VirtForwardError) as raised:
        interfaces.read_interfaces()
    assert str(raised.value) == "rtnetlink: the host's addresses cannot be read: No such file or directory"


def test_addresses_of_this_machine_have_those_of_the_loopback() -> None:
    assert ip_interface("127.0.0.1/8") in interfaces.read_interfaces()["lo"]
    assert "lo" in interfaces.device_names()
