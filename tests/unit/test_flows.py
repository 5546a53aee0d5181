"""Which connections a change leaves behind, from what the kernel says by ctnetlink."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest

from support.ctnetlink import connection
from unit.build import endpoint, forward, guest
from unit.counted import Looks
from virt_forward.claims.flows import Flow, pairs, parse, predating, stale
from virt_forward.model import Forward

WEB, DB6, HOST = "198.51.100.200", "2001:db8:10::200", "192.0.2.1"
EVERYBODY = [ip_address(text) for text in (WEB, DB6, HOST)]

# What Linux 6.18 gave for connections made with conntrack(8): tcp in a zone of the original direction, tcp in
# a zone of both, udp to the host, sctp, icmp, tcp to the host, udp over IPv6.
CAPTURED = [bytes.fromhex(line) for line in (Path(__file__).parent / "ctnetlink.hex").read_text().split()]


def flow(line: str) -> Flow:
    """Write ``udp 192.0.2.2 > 192.0.2.1:2 < 198.51.100.200:3`` as a flow."""
    proto, source, _, destination, _, answering = line.split()

    def cut(text: str) -> tuple[str, int]:
        address, _, port = text.rpartition(":")
        return address, int(port)

    (two, dport), (three, aport) = map(cut, (destination, answering))
    return Flow(proto, ip_address(source), ip_address(two), dport, ip_address(three), aport)


def test_parse_reads_what_the_kernel_gives() -> None:
    in_a_zone, also, udp, sctp, _, tcp, udp6 = CAPTURED
    assert parse(CAPTURED, EVERYBODY) == {
        flow("tcp 192.0.2.2 > 192.0.2.1:8080 < 198.51.100.200:80"): [in_a_zone, also],
        flow("udp 192.0.2.2 > 192.0.2.1:53 < 192.0.2.1:53"): [udp],
        flow("sctp 192.0.2.2 > 192.0.2.1:9899 < 198.51.100.200:9899"): [sctp],
        flow("tcp 192.0.2.2 > 192.0.2.1:8081 < 192.0.2.1:8081"): [tcp],
        flow("udp 2001:db8:1::2 > 2001:db8:1::1:5000 < 2001:db8:10::200:6000"): [udp6],
    }


def test_parse_returns_flows_that_the_wanted_addresses_answer() -> None:
    assert [flow.proto for flow in parse(CAPTURED, [ip_address(DB6)])] == ["udp"]
    assert parse(CAPTURED, [ip_address("192.0.2.2")]) == parse(CAPTURED, []) == {}


def test_parse_without_sources_makes_one_flow_of_many_clients() -> None:
    many = [connection(f"192.0.2.{n}", (HOST, 8080), (WEB, 80)) for n in range(2, 9)]
    assert len(parse(many, EVERYBODY)) == 7
    one = flow("tcp 192.0.2.2 > 192.0.2.1:8080 < 198.51.100.200:80")._replace(source=None)
    assert parse(many, EVERYBODY, sources=False) == {one: many}


def test_parse_skips_what_is_no_connection_with_its_original_tuple() -> None:
    whole = connection("192.0.2.2", (HOST, 8080), (WEB, 80))
    first, second = whole[4:56], whole[56:108]
    assert len(parse([whole], EVERYBODY)) == 1
    damaged = [whole[:length] for length in range(108)]
    damaged += [
        whole[:4] + second + first,
        whole[:4] + second,
        whole[:4] + second + second,
        whole[:4] + first + first,
    ]
    damaged += [bytes([number]) + whole[1:] for number in (0, 1, 3, 10, 255)]
    assert parse(damaged, EVERYBODY) == {}


def test_connections_of_the_tests_have_the_tuples_that_the_kernel_gives() -> None:
    _, _, udp, _, _, tcp, udp6 = CAPTURED
    assert connection("192.0.2.2", (HOST, 53), (HOST, 53), "udp", 40002)[:108] == udp[:108]
    assert connection("192.0.2.2", (HOST, 8081), (HOST, 8081), "tcp", 40001)[:108] == tcp[:108]
    made = connection("2001:db8:1::2", ("2001:db8:1::1", 5000), (DB6, 6000), "udp", 40003)
    assert made[:156] == udp6[:156]


def test_pairs_of_a_running_guest_only() -> None:
    web = guest("web", forward(80), forward(53, address="2001:db8::1"))
    assert [(one, endpoint.ip) for one, endpoint in pairs(web)] == [(web.forwards[0], web.endpoints[0].ip)]
    assert pairs(web._replace(phase="prepared")) == pairs(None) == set()


def test_origin_of_an_address_changes_no_pair() -> None:
    leased, probed = (
        guest("web", forward(80), endpoints=[endpoint()._replace(origin=o)]) for o in ("leased", "probed")
    )
    assert pairs(leased) == pairs(probed)


THROUGH = flow("tcp 192.0.2.2 > 192.0.2.1:5001 < 198.51.100.200:6001")
PAIR = (forward(5000, 5010, to=6000), endpoint())


def ended(found: Flow) -> bool:
    return list(stale([found], [PAIR], [])) == [found]


def test_flow_of_a_removed_pair_is_stale() -> None:
    assert ended(THROUGH)
    assert ended(THROUGH._replace(source=ip_address("192.0.2.77")))


def test_flow_to_another_address_is_not_stale() -> None:
    assert not ended(THROUGH._replace(proto="udp"))
    assert not ended(THROUGH._replace(destination_port=5011, answering_port=6011))
    assert not ended(THROUGH._replace(answering_port=80))
    assert not ended(THROUGH._replace(answering=ip_address("198.51.100.201")))
    # a router's flow straight to the guest was never translated
    assert not ended(THROUGH._replace(destination=ip_address("198.51.100.200"), destination_port=6001))
    assert not ended(flow("tcp 192.0.2.2 > 198.51.100.200:5001 < 198.51.100.200:6001"))


def test_stale_respects_the_address_of_a_forward() -> None:
    at = (forward(5001, to=6001, address="192.0.2.1"), endpoint())
    elsewhere = THROUGH._replace(destination=ip_address("192.0.2.9"))
    assert list(stale([THROUGH, elsewhere], [at], [])) == [THROUGH]


@pytest.mark.parametrize(
    "now",
    [
        [forward(5000, 5020, to=6000)],  # made longer
        [forward(5001, 5010, to=6001)],  # and shorter
        [forward(5000, to=6000), forward(5001, 5010, to=6001)],  # split
        [forward(5001, to=6001, address="192.0.2.1")],
        [forward(5001, to=6001, source="192.0.2.0/24")],
        [forward(5001, to=80, source="198.51.100.0/24"), forward(5001, to=6001)],
        # It may have come by either device.
        [forward(5001, to=80, dev="enp1s0"), forward(5001, to=6001)],
    ],
)
def test_flow_that_goes_on_as_before_is_not_stale(now: list[Forward]) -> None:
    assert list(stale([THROUGH], [PAIR], [(one, endpoint()) for one in now])) == []


@pytest.mark.parametrize(
    "now",
    [
        [forward(5000, 5010, to=6001)],
        [forward(5002, 5010, to=6002)],
        [forward(5001, to=6001, proto="udp")],
        [forward(5001, to=6001, address="192.0.2.9")],
        [forward(5001, to=6001, source="203.0.113.0/24")],
        [forward(5001, to=80, source="192.0.2.0/24"), forward(5001, to=6001)],
        [forward(5001, to=80, dev="enp1s0")],
    ],
)
def test_flow_that_would_go_elsewhere_is_stale(now: list[Forward]) -> None:
    assert list(stale([THROUGH], [PAIR], [(one, endpoint()) for one in now])) == [THROUGH]
    moved = [(PAIR[0], endpoint("198.51.100.201"))]
    assert list(stale([THROUGH], [PAIR], moved)) == [THROUGH]


OWN = frozenset({ip_address("192.0.2.1"), ip_address("2001:db8:1::1")})
KNOCK = flow("udp 192.0.2.2 > 192.0.2.1:53 < 192.0.2.1:53")


def test_predating_finds_udp_flow_to_the_host() -> None:
    assert list(predating([KNOCK], [(forward(53, proto="udp"), endpoint())], OWN)) == [KNOCK]


def test_predating_passes_over_other_flows() -> None:
    udp = (forward(53, proto="udp"), endpoint())
    assert not list(predating([KNOCK], [(forward(53), endpoint())], OWN))
    assert not list(predating([KNOCK], [(forward(54, proto="udp"), endpoint())], OWN))
    assert not list(predating([KNOCK], [(forward(53, proto="udp"), endpoint("2001:db8:10::200"))], OWN))
    assert not list(predating([KNOCK], [(forward(53, proto="udp", address="192.0.2.9"), endpoint())], OWN))
    # passing through, not to the host; and already translated by somebody else
    assert not list(predating([flow("udp 192.0.2.2 > 203.0.113.1:53 < 203.0.113.1:53")], [udp], OWN))
    assert not list(predating([flow("udp 192.0.2.2 > 192.0.2.1:53 < 198.51.100.7:53")], [udp], OWN))


def test_stale_and_predating_cost_is_linear() -> None:
    looks, number = Looks(), 1000
    ports = range(1, 2 * number, 2)
    forwards = [(one, endpoint()) for one in looks.forwards(forward(port, proto="udp") for port in ports)]
    through = [flow(f"udp 192.0.2.2 > 192.0.2.1:{port} < 198.51.100.200:{port}") for port in ports]
    to_host = [flow(f"udp 192.0.2.2 > 192.0.2.1:{port} < 192.0.2.1:{port}") for port in ports]
    assert list(stale([*through, *to_host], forwards, [])) == through
    assert list(stale(through, forwards, forwards)) == []
    assert list(predating([*through, *to_host], forwards, OWN)) == to_host
    assert looks.number < 400 * number
