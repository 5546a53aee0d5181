"""What conntrack is told to end: every doomed flow, no other, in as few commands as can be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from pathlib import Path

import pytest

from support.fake_host import FakeHost, fake_host, flow
from unit.build import endpoint, forward
from virt_forward.claims import flows
from virt_forward.claims.flows import Flow, Pair, parse
from virt_forward.host import conntrack, process

HOST, GUEST, CLIENT = "192.0.2.1", "198.51.100.200", "192.0.2.2"
WEB: Pair = (forward(8080, to=80), endpoint(GUEST))
DNS: Pair = (forward(53, proto="udp"), endpoint(GUEST))
NOTHING: frozenset[Pair] = frozenset()
OWN = frozenset({ip_address(HOST)})


@pytest.fixture
def host(tmp_path: Path) -> Iterator[FakeHost]:
    with fake_host(tmp_path) as made:
        yield made


def through(port: int, to: int, *, guest: str = GUEST, client: str = CLIENT, proto: str = "tcp") -> str:
    return flow(client, (HOST, port), (guest, to), proto)


def deletions(known: Sequence[str], doomed: Sequence[str]) -> list[str]:
    every, ended = parse("\n".join(known)), set(parse("\n".join(doomed)))
    return sorted(conntrack._deletions([*every], ended))


def test_flows_that_went_one_way_are_ended_by_one_command() -> None:
    doomed = [through(port, port, client=f"192.0.2.{n}") for port in (80, 443) for n in range(2, 9)]
    assert deletions(doomed, doomed) == [f"-D -f ipv4 -p tcp -d {HOST} -r {GUEST}\n"]


def test_ports_are_named_where_another_flow_that_way_stays() -> None:
    doomed, stays = [through(80, 8000), through(81, 8001)], through(443, 443)
    assert deletions([*doomed, stays], doomed) == [
        f"-D -f ipv4 -p tcp -d {HOST} -r {GUEST} --dport {port} --reply-port-src {to}\n"
        for port, to in ((80, 8000), (81, 8001))
    ]


@pytest.mark.parametrize(
    "stays",
    [
        flow(CLIENT, ("192.0.2.9", 80), (GUEST, 80)),
        through(80, 80, guest="198.51.100.201"),
        through(80, 80, proto="udp"),
    ],
)
def test_flow_that_went_another_way_asks_for_no_ports(stays: str) -> None:
    doomed = [through(80, 80)]
    assert deletions([*doomed, stays], doomed) == [f"-D -f ipv4 -p tcp -d {HOST} -r {GUEST}\n"]


def test_ipv6_flow_is_ended_in_its_family() -> None:
    doomed = [flow("2001:db8:1::2", ("2001:db8:1::1", 80), ("2001:db8:10::200", 80))]
    assert deletions(doomed, doomed) == ["-D -f ipv6 -p tcp -d 2001:db8:1::1 -r 2001:db8:10::200\n"]


def test_removed_forward_ends_its_flows_and_no_others(host: FakeHost) -> None:
    kept = [through(22, 22, guest=HOST), through(8081, 81), through(8080, 80, guest="198.51.100.201")]
    host.flows = [through(8080, 80), *kept, through(8080, 80, client="192.0.2.3")]
    assert conntrack.end_flows(frozenset({WEB}), NOTHING, NOTHING, OWN) is None
    assert host.flows == kept


def test_unchanged_forward_asks_for_no_listing(host: FakeHost) -> None:
    conntrack.end_flows(frozenset({WEB}), frozenset({WEB}), NOTHING, OWN)
    conntrack.end_flows(NOTHING, frozenset({WEB}), frozenset({WEB}), OWN)
    assert host.programs == []


def test_nothing_doomed_starts_no_second_program(host: FakeHost) -> None:
    host.flows = [through(8081, 81)]
    conntrack.end_flows(frozenset({WEB}), NOTHING, NOTHING, OWN)
    assert host.programs == [("conntrack", "-L")]


def test_added_udp_forward_ends_what_knocked_at_the_host(host: FakeHost) -> None:
    kept = [through(54, 54, guest=HOST, proto="udp"), through(53, 53, guest=HOST)]
    host.flows = [through(53, 53, guest=HOST, proto="udp"), *kept]
    assert conntrack.end_flows(NOTHING, frozenset({DNS}), frozenset({DNS}), OWN) is None
    assert host.flows == kept


def test_lines_about_others_are_not_parsed(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    host.flows = [through(8080, 80), through(8080, 80, guest="198.51.100.201")]
    seen: list[Flow] = []

    def note(known: Sequence[Flow], *_: object) -> list[Flow]:
        seen.extend(known)
        return []

    monkeypatch.setattr(flows, "stale", note)
    conntrack.end_flows(frozenset({WEB}), NOTHING, NOTHING, OWN)
    assert [str(item.answering) for item in seen] == [GUEST]


@pytest.mark.parametrize(
    ("listed", "told"),
    [
        (process.Result(127, "", ""), "install conntrack-tools"),
        (process.Result(1, "", "conntrack v1.4.7: Operation failed"), "Operation failed"),
    ],
)
def test_conntrack_that_cannot_list_is_told(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch, listed: process.Result, told: str
) -> None:
    monkeypatch.setattr(conntrack, "run", lambda *_, **__: listed)
    assert told in (conntrack.end_flows(frozenset({WEB}), NOTHING, NOTHING, OWN) or "")


@pytest.mark.parametrize(("status", "told"), [(0, None), (1, None), (124, "conntrack: hung")])
def test_failed_deletion_is_told_only_where_it_hung(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch, status: int, told: str | None
) -> None:
    def run(argv: Sequence[str], *_: object, **__: object) -> process.Result:
        return (
            process.Result(0, through(8080, 80), "") if "-L" in argv else process.Result(status, "", "hung")
        )

    monkeypatch.setattr(conntrack, "run", run)
    assert conntrack.end_flows(frozenset({WEB}), NOTHING, NOTHING, OWN) == told
