"""The host's own listeners: text of the kernel to values, and whom they stand against."""

from __future__ import annotations

import os
import socket
import sys
from ipaddress import ip_address

import pytest

from unit.build import forward
from virt_forward import hostfacts
from virt_forward.model import Forward
from virt_forward.sockets import Listener, against, parse, parse_sctp, parse_v6only

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


@pytest.mark.parametrize("inode", ["\u00b2", "9" * 5000, "x", ""])
def test_parse_v6only_passes_over_what_is_no_inode(inode: str) -> None:
    assert parse_v6only(f"tcp LISTEN ino:{inode} v6only:1\ntcp LISTEN ino:7 v6only:1\n") == {7}


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
        (found,) = [item for item in hostfacts.listeners() if (item.proto, item.port) == (proto, port)]
        assert found.address == ip_address(address)
        assert hostfacts.socket_owner(found.inode)


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
    found = list(
        against(
            [listener("tcp", address, 80)],
            wanted,
            localhost=False,
            spared=frozenset({ip_address(GATEWAY)}),
        )
    )
    assert bool(found) == taken


@pytest.mark.parametrize(("address", "taken"), [("127.0.0.1", True), ("127.0.0.53", True), ("::1", False)])
def test_localhost_listeners_count_where_forwards_listen_there(address: str, taken: bool) -> None:
    found = against([listener("tcp", address, 80)], EVERYWHERE, localhost=True, spared=frozenset())
    assert bool(list(found)) == taken


SS = """\
udp UNCONN 0      0      [::]:80   [::]:* ino:25001 sk:103f cgroup:/ v6only:1 <->
tcp LISTEN 0      128    [::]:80   [::]:* uid:33 ino:25002 sk:1040 v6only:1 <->
tcp LISTEN 0      128       *:443     *:* ino:25003 sk:1041 cgroup:/ v6only:0 <->
tcp LISTEN 0      128 [::1]:631    [::]:* ino:25004 sk:1042
"""


def test_sockets_that_take_ipv6_alone() -> None:
    assert parse_v6only(SS) == {25001, 25002}
    assert parse_v6only("") == frozenset()


@pytest.mark.parametrize(
    ("inode", "wanted", "taken"),
    [
        (25002, AT_UPLINK, False),
        (25002, forward(80, source="198.51.100.0/24"), False),
        (25002, AT_UPLINK6, True),
        (25002, EVERYWHERE, True),
        (25003, AT_UPLINK, True),
        (25003, forward(80, source="198.51.100.0/24"), True),
    ],
)
def test_a_socket_that_takes_ipv6_alone_leaves_ipv4(inode: int, wanted: Forward, taken: bool) -> None:
    listening = [listener("tcp", "::", 80, inode)]
    found = against(listening, wanted, localhost=False, spared=frozenset(), v6only=lambda: parse_v6only(SS))
    assert bool(list(found)) == taken


def test_the_kernel_tells_which_sockets_take_ipv6_alone() -> None:
    inodes = []
    with socket.socket(socket.AF_INET6) as alone, socket.socket(socket.AF_INET6) as both:
        for ours, only in ((alone, 1), (both, 0)):
            ours.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
            ours.bind(("::", 0))
            ours.listen()
            inodes.append(os.fstat(ours.fileno()).st_ino)
        found = hostfacts.v6only_inodes()
    assert inodes[0] in found
    assert inodes[1] not in found


@pytest.mark.parametrize(
    ("wanted", "ports"),
    [(forward(80), [80]), (forward(81), []), (forward(1, 100), [80]), (forward(80, proto="udp"), [])],
)
def test_only_the_same_port_and_protocol_counts(wanted: Forward, ports: list[int]) -> None:
    sockets = [listener("tcp", "0.0.0.0", port) for port in (80, 443)]
    assert [found.port for found in against(sockets, wanted, localhost=False, spared=frozenset())] == ports
