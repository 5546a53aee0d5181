"""Which connections a change leaves behind, from what conntrack(8) prints."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from unit.build import endpoint, forward, guest
from unit.counted import Looks
from virt_forward.claims.flows import Flow, pairs, parse, predating, stale
from virt_forward.model import Forward

# conntrack -L of conntrack-tools 1.4.7, addresses changed.
LISTING = """\
tcp      6 431999 ESTABLISHED src=192.0.2.2 dst=192.0.2.1 sport=40000 dport=8080 src=198.51.100.200 dst=192.0.2.2 sport=80 dport=40000 [ASSURED] mark=0 use=1
tcp      6 117 SYN_SENT src=192.0.2.2 dst=192.0.2.1 sport=40001 dport=8081 [UNREPLIED] src=192.0.2.1 dst=192.0.2.2 sport=8081 dport=40001 mark=0 use=1
udp      17 29 src=192.0.2.2 dst=192.0.2.1 sport=40002 dport=53 [UNREPLIED] src=192.0.2.1 dst=192.0.2.2 sport=53 dport=40002 mark=0 use=1
udp      17 170 src=2001:db8:1::2 dst=2001:db8:1::1 sport=40003 dport=5000 src=2001:db8:10::200 dst=2001:db8:1::2 sport=6000 dport=40003 [ASSURED] mark=0 secctx=system_u:object_r:unlabeled_t:s0 use=1
sctp     132 9 COOKIE_WAIT src=192.0.2.2 dst=192.0.2.1 sport=40004 dport=9899 src=198.51.100.200 dst=192.0.2.2 sport=9899 dport=40004 mark=0 use=1
icmp     1 29 src=192.0.2.2 dst=192.0.2.1 type=8 code=0 id=7 src=192.0.2.1 dst=192.0.2.2 type=0 code=0 id=7 mark=0 use=1
unknown  47 599 src=192.0.2.2 dst=192.0.2.1 src=192.0.2.1 dst=192.0.2.2 mark=0 use=1
"""  # noqa: E501


def flow(line: str) -> Flow:
    """Write ``udp 192.0.2.2:1 > 192.0.2.1:2 < 198.51.100.200:3`` as a flow."""
    proto, source, _, destination, _, answering = line.split()

    def cut(text: str) -> tuple[str, int]:
        address, _, port = text.rpartition(":")
        return address, int(port)

    (one, sport), (two, dport), (three, aport) = map(cut, (source, destination, answering))
    return Flow(proto, ip_address(one), ip_address(two), sport, dport, ip_address(three), aport)


def test_parse_reads_real_output() -> None:
    assert list(parse(LISTING)) == [
        flow("tcp 192.0.2.2:40000 > 192.0.2.1:8080 < 198.51.100.200:80"),
        flow("tcp 192.0.2.2:40001 > 192.0.2.1:8081 < 192.0.2.1:8081"),
        flow("udp 192.0.2.2:40002 > 192.0.2.1:53 < 192.0.2.1:53"),
        flow("udp 2001:db8:1::2:40003 > 2001:db8:1::1:5000 < 2001:db8:10::200:6000"),
        flow("sctp 192.0.2.2:40004 > 192.0.2.1:9899 < 198.51.100.200:9899"),
    ]


@pytest.mark.parametrize(
    ("part", "damaged"),
    [
        ("src=192.0.2.2 dst", "src=192.0.2 dst"),
        ("dst=192.0.2.1 sport", "dst= sport"),
        ("sport=40000", "sport="),
        ("dport=8080", "dport=65536"),
        ("dport=8080", "dport=-1"),
        ("src=198.51.100.200", "src=198.51.100.2000"),
    ],
)
def test_parse_passes_over_a_damaged_line(part: str, damaged: str) -> None:
    assert part in LISTING.splitlines()[0]
    assert list(parse(LISTING.replace(part, damaged, 1))) == list(parse(LISTING))[1:]


def test_pairs_of_a_running_guest_only() -> None:
    web = guest("web", forward(80), forward(53, address="2001:db8::1"))
    assert [(one, endpoint.ip) for one, endpoint in pairs(web)] == [(web.forwards[0], web.endpoints[0].ip)]
    assert pairs(web._replace(phase="prepared")) == pairs(None) == set()


def test_origin_of_an_address_changes_no_pair() -> None:
    leased, probed = (
        guest("web", forward(80), endpoints=[endpoint()._replace(origin=o)]) for o in ("leased", "probed")
    )
    assert pairs(leased) == pairs(probed)


THROUGH = flow("tcp 192.0.2.2:1 > 192.0.2.1:5001 < 198.51.100.200:6001")
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
    assert not ended(flow("tcp 192.0.2.2:1 > 198.51.100.200:5001 < 198.51.100.200:6001"))


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
KNOCK = flow("udp 192.0.2.2:1 > 192.0.2.1:53 < 192.0.2.1:53")


def test_predating_finds_udp_flow_to_the_host() -> None:
    assert list(predating([KNOCK], [(forward(53, proto="udp"), endpoint())], OWN)) == [KNOCK]


def test_predating_passes_over_other_flows() -> None:
    udp = (forward(53, proto="udp"), endpoint())
    assert not list(predating([KNOCK], [(forward(53), endpoint())], OWN))
    assert not list(predating([KNOCK], [(forward(54, proto="udp"), endpoint())], OWN))
    assert not list(predating([KNOCK], [(forward(53, proto="udp"), endpoint("2001:db8:10::200"))], OWN))
    assert not list(predating([KNOCK], [(forward(53, proto="udp", address="192.0.2.9"), endpoint())], OWN))
    # passing through, not to the host; and already translated by somebody else
    assert not list(predating([flow("udp 192.0.2.2:1 > 203.0.113.1:53 < 203.0.113.1:53")], [udp], OWN))
    assert not list(predating([flow("udp 192.0.2.2:1 > 192.0.2.1:53 < 198.51.100.7:53")], [udp], OWN))


def test_stale_and_predating_cost_is_linear() -> None:
    looks, number = Looks(), 1000
    ports = range(1, 2 * number, 2)
    forwards = [(one, endpoint()) for one in looks.forwards(forward(port, proto="udp") for port in ports)]
    through = [flow(f"udp 192.0.2.2:1 > 192.0.2.1:{port} < 198.51.100.200:{port}") for port in ports]
    to_host = [flow(f"udp 192.0.2.2:1 > 192.0.2.1:{port} < 192.0.2.1:{port}") for port in ports]
    assert list(stale([*through, *to_host], forwards, [])) == through
    assert list(stale(through, forwards, forwards)) == []
    assert list(predating([*through, *to_host], forwards, OWN)) == to_host
    assert looks.number < 400 * number
