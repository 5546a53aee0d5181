"""The host's own listeners: text of the kernel to values, and whom they stand against."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

import pytest

from unit.build import forward
from virt_forward import ports
from virt_forward.claims.sockets import (
    Details,
    Listener,
    Reach,
    SocketFacts,
    against,
    autobound,
    parse,
    parse_sctp,
)
from virt_forward.host import hostports, sockdiag
from virt_forward.model import Forward

pytestmark = pytest.mark.skipif(
    sys.byteorder != "little", reason="the samples are of a little-endian machine"
)

TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 21001 1 0000000000000000 100 0 0 10 0
   1: 3500007F:0035 00000000:0000 0A 00000000:00000000 00:00000000 00000000   101        0 21002 1 0000000000000000 100 0 0 10 5
   2: 01000A0A:0035 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 21003 1 0000000000000000 100 0 0 10 0
   3: 0A0200C0:0016 050200C0:C350 01 00000000:00000000 02:000A7D8C 00000000     0        0 21004 2 0000000000000000 20 4 30 10 -1
   4: 0100007F:1F90 0100007F:D431 06 00000000:00000000 03:00000D2F 00000000     0        0 0 3 0000000000000000
"""  # noqa: E501

TCP6 = """\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 22001 1 0000000000000000 100 0 0 10 0
   1: B80D0120000000000000000001000000:01BB 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 22002 1 0000000000000000 100 0 0 10 0
   2: 0000000000000000FFFF00000A0200C0:1F90 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 22003 1 0000000000000000 100 0 0 10 0
   3: 00000000000000000000000001000000:0277 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 22004 1 0000000000000000 100 0 0 10 0
"""  # noqa: E501

UDP = """\
   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  416: 3500007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000   101        0 23001 2 0000000000000000 0
  430: 00000000:0043 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 23002 2 0000000000000000 0
  999: 0A0200C0:A001 350200C0:0035 01 00000000:00000000 00:00000000 00000000   101        0 23003 2 0000000000000000 0
"""  # noqa: E501

SCTP = """\
 ENDPT     SOCK   STY SST HBKT LPORT   UID INODE LADDRS
        0        0 2   10  29   9899      0 24001 192.0.2.10 2001:db8::1
        0        0 2   7   29   9900      0 24002 192.0.2.10
        0        0 2   10  30   9901      0 24003 0.0.0.0
"""


def listener(proto: str, address: str, port: int, inode: int = 0) -> Listener:
    return Listener(proto, ip_address(address), port, inode)  # type: ignore[arg-type]


def test_tcp() -> None:
    assert list(parse("tcp", TCP)) == [
        listener("tcp", "0.0.0.0", 22, 21001),
        listener("tcp", "127.0.0.53", 53, 21002),
        listener("tcp", "10.10.0.1", 53, 21003),
    ]
    assert list(parse("tcp", TCP6)) == [
        listener("tcp", "::", 80, 22001),
        listener("tcp", "2001:db8::1", 443, 22002),
        listener("tcp", "192.0.2.10", 8080, 22003),
        listener("tcp", "::1", 631, 22004),
    ]


def test_udp_sockets_that_are_connected_listen_to_nobody_else() -> None:
    assert list(parse("udp", UDP)) == [
        listener("udp", "127.0.0.53", 53, 23001),
        listener("udp", "0.0.0.0", 67, 23002),
    ]


@pytest.mark.parametrize(
    ("part", "damaged"),
    [
        ("00000000:0016 ", "0000000000000000:0016 "),
        ("00000000:0016 ", "-0000001:0016 "),
        ("00000000:0016 ", "00000000: "),
        (":0016 ", ":10000 "),
        (" 21001 ", " x "),
        (" 21001 ", " -1 "),
    ],
)
def test_parse_passes_over_a_damaged_line(part: str, damaged: str) -> None:
    assert part in TCP
    assert list(parse("tcp", TCP.replace(part, damaged, 1))) == list(parse("tcp", TCP))[1:]


@pytest.mark.parametrize(
    ("part", "damaged"), [(" 9901 ", " 65536 "), (" 24003 ", " - "), ("0.0.0.0", "0.0.0")]
)
def test_parse_sctp_passes_over_a_damaged_line(part: str, damaged: str) -> None:
    assert part in SCTP
    assert list(parse_sctp(SCTP.replace(part, damaged))) == list(parse_sctp(SCTP))[:2]


def test_sctp() -> None:
    assert list(parse_sctp(SCTP)) == [
        listener("sctp", "192.0.2.10", 9899, 24001),
        listener("sctp", "2001:db8::1", 9899, 24001),
        listener("sctp", "0.0.0.0", 9901, 24003),
    ]


@pytest.mark.parametrize("text", ["", "\n", TCP.splitlines()[0]])
def test_no_sockets(text: str) -> None:
    assert list(parse("tcp", text)) == list(parse_sctp(text)) == []


@pytest.mark.parametrize(
    ("family", "kind", "proto"),
    [
        (socket.AF_INET, socket.SOCK_STREAM, "tcp"),
        (socket.AF_INET6, socket.SOCK_STREAM, "tcp"),
        (socket.AF_INET, socket.SOCK_DGRAM, "udp"),
        (socket.AF_INET6, socket.SOCK_DGRAM, "udp"),
    ],
)
def test_this_machines_own_text(family: socket.AddressFamily, kind: socket.SocketKind, proto: str) -> None:
    with socket.socket(family, kind) as ours:
        ours.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
        if kind == socket.SOCK_STREAM:
            ours.listen()
        address, port = ours.getsockname()[:2]
        (found,) = [item for item in hostports.listeners() if (item.proto, item.port) == (proto, port)]
        assert found.address == ip_address(address)
        assert hostports.socket_owners()[found.inode]


def stands_against(
    found: list[Listener],
    wanted: Forward,
    reach: Reach = Reach(),  # noqa: B008
    **facts: Any,
) -> list[Listener]:
    read = SocketFacts(ports.by_port(found), Details())._replace(**facts)
    return list(against(read, wanted, reach))


GATEWAY = "10.10.0.1"
EVERYWHERE = forward(80)
AT_UPLINK = forward(80, address="192.0.2.10")
AT_UPLINK6 = forward(80, address="2001:db8::1")


@pytest.mark.parametrize(
    ("address", "wanted", "taken"),
    [
        # a listener on every address
        ("0.0.0.0", EVERYWHERE, True),
        ("0.0.0.0", AT_UPLINK, True),
        ("0.0.0.0", AT_UPLINK6, False),
        ("0.0.0.0", forward(80, source="198.51.100.0/24"), True),
        ("0.0.0.0", forward(80, source="2001:db8::/32"), False),
        ("0.0.0.0", forward(80, dev="enp1s0"), True),
        # :: takes both families
        ("::", EVERYWHERE, True),
        ("::", AT_UPLINK, True),
        ("::", AT_UPLINK6, True),
        ("::", forward(80, source="198.51.100.0/24"), True),
        # one on the same or another address
        ("192.0.2.10", EVERYWHERE, True),
        ("192.0.2.10", AT_UPLINK, True),
        ("192.0.2.11", AT_UPLINK, False),
        ("2001:db8::1", AT_UPLINK, False),
        ("2001:db8::1", AT_UPLINK6, True),
        ("192.0.2.10", forward(80, source="2001:db8::/32"), False),
        # one that only the host itself can reach
        ("127.0.0.1", EVERYWHERE, False),
        ("127.0.0.53", EVERYWHERE, False),
        ("127.0.0.1", AT_UPLINK, False),
        ("::1", EVERYWHERE, False),
        # the guest network's gateway, where no forward listens
        (GATEWAY, EVERYWHERE, False),
        (GATEWAY, forward(80, address=GATEWAY), True),
        # addresses that never come to a forward
        ("fe80::1", EVERYWHERE, False),
        ("224.0.0.251", EVERYWHERE, False),
        ("ff02::fb", EVERYWHERE, False),
        # link-local in IPv4 does: a direct cable between two machines is such an uplink
        ("169.254.7.7", EVERYWHERE, True),
    ],
)
def test_whom_a_listener_stands_against(address: str, wanted: Forward, taken: bool) -> None:
    reach = Reach(excluded=frozenset({ip_address(GATEWAY)}))
    assert bool(stands_against([listener("tcp", address, 80)], wanted, reach)) == taken


@pytest.mark.parametrize(("address", "taken"), [("127.0.0.1", True), ("127.0.0.53", True), ("::1", False)])
def test_localhost_listeners_count_where_forwards_listen_there(address: str, taken: bool) -> None:
    assert bool(stands_against([listener("tcp", address, 80)], EVERYWHERE, Reach(localhost=True))) == taken


V6ONLY, BOTH = 25002, 25003


@pytest.mark.parametrize(
    ("inode", "wanted", "taken"),
    [
        (V6ONLY, AT_UPLINK, False),
        (V6ONLY, forward(80, source="198.51.100.0/24"), False),
        (V6ONLY, AT_UPLINK6, True),
        (V6ONLY, EVERYWHERE, True),
        (BOTH, AT_UPLINK, True),
        (BOTH, forward(80, source="198.51.100.0/24"), True),
    ],
)
def test_socket_that_takes_ipv6_alone_leaves_ipv4(inode: int, wanted: Forward, taken: bool) -> None:
    details = Details(v6only=frozenset({V6ONLY}))
    assert bool(stands_against([listener("tcp", "::", 80, inode)], wanted, details=details)) == taken


def test_kernel_tells_which_sockets_take_ipv6_alone() -> None:
    inodes = []
    with socket.socket(socket.AF_INET6) as alone, socket.socket(socket.AF_INET6) as both:
        for ours, only in ((alone, 1), (both, 0)):
            ours.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
            ours.bind(("::", 0))
            ours.listen()
            inodes.append(os.fstat(ours.fileno()).st_ino)
        found = sockdiag.details().v6only
    assert inodes[0] in found
    assert inodes[1] not in found


@pytest.mark.parametrize(
    ("wanted", "found"),
    [(forward(80), [80]), (forward(81), []), (forward(1, 100), [80]), (forward(80, proto="udp"), [])],
)
def test_only_the_same_port_and_protocol_counts(wanted: Forward, found: list[int]) -> None:
    sockets = [listener("tcp", "0.0.0.0", port) for port in (443, 80)]
    assert [item.port for item in stands_against(sockets, wanted)] == found


def test_kernel_tells_which_ports_were_its_own_choice() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client, _udp6() as client6, _udp6() as server:
        client.sendto(b"", ("127.0.0.1", 9))
        client6.bind(("::", 0))
        # A free port of the very range that the kernel chooses from, asked for by its number.
        port = client.getsockname()[1]
        client.close()
        server.bind(("::", port))
        inodes = [os.fstat(ours.fileno()).st_ino for ours in (client6, server)]
        found = sockdiag.details().autobound
    assert [inode in found for inode in inodes] == [True, False]


def _udp6() -> socket.socket:
    return socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)


def test_client_that_only_sent_is_autobound() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(b"", ("127.0.0.1", 9))
        (found,) = [item for item in hostports.listeners() if item.port == client.getsockname()[1]]
        assert autobound(found, SocketFacts(details=sockdiag.details()))


def test_kernel_tells_to_which_device_a_socket_is_bound() -> None:
    with _udp6() as bound, _udp6() as free:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
        for ours in (bound, free):
            ours.bind(("::", 0))
        inodes = [os.fstat(ours.fileno()).st_ino for ours in (bound, free)]
        devices = sockdiag.details().devices
    assert [devices.get(inode) for inode in inodes] == [socket.if_nametoindex("lo"), None]


@contextlib.contextmanager
def tcp_listeners() -> Iterator[set[int]]:
    """Listen on addresses of each kind; gives the inodes."""
    with contextlib.ExitStack() as stack:
        inodes = set()
        for address in ("127.0.0.1", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1"):
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            ours = stack.enter_context(socket.socket(family))
            ours.bind((address, 0))
            ours.listen()
            inodes.add(os.fstat(ours.fileno()).st_ino)
        yield inodes


def without_sock_diag(patch: pytest.MonkeyPatch, how: str) -> None:
    if how == "no protocol":
        patch.setattr(sockdiag, "NETLINK_SOCK_DIAG", 31)
    else:  # No handler for this family: the kernel answers with an error message.
        patch.setattr(sockdiag, "AF_INET", 40)
        patch.setattr(sockdiag, "AF_INET6", 40)


@pytest.mark.parametrize("how", ["sock_diag", "no protocol", "no family"])
def test_tcp_listeners_are_the_same_with_and_without_sock_diag(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tcp_listeners() as inodes:
        expected = {item for item in hostports._listed("tcp") if item.inode in inodes}
        if how != "sock_diag":
            without_sock_diag(monkeypatch, how)
        assert (sockdiag.tcp_listeners() is None) == (how != "sock_diag")
        found = [item for item in hostports.listeners() if item.inode in inodes]
    assert len(found) == len(inodes)
    assert set(found) == expected


@pytest.mark.parametrize("how", ["no protocol", "no family"])
def test_kernel_without_sock_diag_has_no_details(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without_sock_diag(monkeypatch, how)
    assert sockdiag.details() == Details()


@pytest.mark.parametrize(
    ("bound", "wanted", "taken"),
    [
        (2, forward(80, dev="enp1s0"), True),
        (3, forward(80, dev="enp1s0"), False),
        (3, forward(80, dev="enp1s0", address="192.0.2.10"), False),
        (9, forward(80, dev="enp1s0"), True),  # the VRF of enp1s0
        (3, forward(80), True),
    ],
)
def test_socket_that_is_bound_to_another_device_loses_nothing(
    bound: int, wanted: Forward, taken: bool
) -> None:
    facts: dict[str, Any] = {
        "details": Details(devices={26001: bound}),
        "devices": {"enp1s0": frozenset({2, 9})},
    }
    assert bool(stands_against([listener("tcp", "0.0.0.0", 80, 26001)], wanted, **facts)) == taken


@pytest.mark.parametrize(
    ("address", "inode", "families", "taken"),
    [
        ("::", V6ONLY, {4}, False),
        ("::", V6ONLY, {6}, True),
        ("::", BOTH, {4}, True),
        ("2001:db8::1", BOTH, {4}, False),
        ("0.0.0.0", BOTH, {6}, False),
        ("192.0.2.10", BOTH, {6}, False),
        ("192.0.2.10", BOTH, {4, 6}, True),
    ],
)
def test_listener_loses_nothing_to_a_guest_of_the_other_family(
    address: str, inode: int, families: set[int], taken: bool
) -> None:
    reach, details = Reach(families=frozenset(families)), Details(v6only=frozenset({V6ONLY}))
    found = [listener("tcp", address, 80, inode)]
    assert bool(stands_against(found, EVERYWHERE, reach, details=details)) == taken
    # An address or source says itself which family is meant, whether the guest has it yet or not.
    assert stands_against([listener("tcp", "2001:db8::1", 80)], AT_UPLINK6, reach)


def test_forward_with_dev_takes_nothing_of_127_0_0_1() -> None:
    found = [listener("tcp", "127.0.0.1", 80)]
    assert not stands_against(found, forward(80, dev="enp1s0"), Reach(localhost=True))
