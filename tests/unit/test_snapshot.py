"""The state as one process has it: guests, what was queued, what is near whom, and what is damaged."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.state import in_memory, put
from unit import strategies as make
from unit.build import UUID, collide, endpoint, forward, guest
from virt_forward.claims import index as claims
from virt_forward.claims.index import EndpointRow, PortRow, Row
from virt_forward.host import log
from virt_forward.model import Guest, Network, Reservation
from virt_forward.state.index import Side
from virt_forward.state.snapshot import Commit, Snapshot

WEB = guest("web", forward(80), endpoints=[endpoint("198.51.100.10")])
DB = guest("db", forward(81), endpoints=[endpoint("198.51.100.11")])


@pytest.fixture(autouse=True)
def messages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    for name in ("error", "warning", "info"):
        monkeypatch.setattr(log, name, found.append)
    return found


def test_guests_are_kept_and_forgotten() -> None:
    state = in_memory(WEB, DB)
    assert state.guests() == {item.uuid: item for item in (WEB, DB)}
    state.commit(Commit({WEB.uuid: None, DB.uuid: DB._replace(phase="prepared")}))
    assert state.guest(WEB.uuid) is None
    assert state.guests() == {DB.uuid: DB._replace(phase="prepared")}


def test_commit_without_a_new_revision_leaves_the_last_one() -> None:
    state = in_memory()
    state.commit(Commit({WEB.uuid: WEB}, {WEB.uuid: None}, revision=7, include="name"))
    state.commit(Commit({DB.uuid: DB}))
    assert (state.revision, state.value("include")) == (7, "name")
    assert state.previous == {WEB.uuid: None}
    state.commit(Commit({}, {DB.uuid: DB}, revision=8))
    assert (state.revision, state.previous) == (8, {DB.uuid: DB})


def test_commit_that_fails_changes_nothing() -> None:
    state = in_memory(WEB)
    broken = DB._replace(forwards=(forward(81)._replace(end=70_000),))
    with pytest.raises(RuntimeError):
        state.commit(Commit({WEB.uuid: None, broken.uuid: broken}))
    assert state.guests() == {WEB.uuid: WEB}
    put(state, DB)
    assert len(state.guests()) == 2


# What was queued.


def test_queued_change_comes_before_the_record() -> None:
    state = in_memory(WEB, DB)
    queued = WEB._replace(phase="prepared")
    state.queue(WEB.uuid, queued)
    state.queue(DB.uuid, None)
    assert state.guests() == {WEB.uuid: queued}
    assert (state.guest(WEB.uuid), state.recorded(WEB.uuid)) == (queued, WEB)


def test_last_queued_change_of_a_guest_counts_and_is_all_that_is_kept() -> None:
    state = in_memory()
    for item in (WEB, None, WEB):
        state.queue(WEB.uuid, item)
    assert state.guests() == {WEB.uuid: WEB}
    assert len(state.queued) == 1


def test_change_that_is_queued_while_another_is_taken_stays() -> None:
    state = in_memory()
    state.queue(WEB.uuid, None)
    taken = {uuid: item.number for uuid, item in state.queued.items()}
    state.queue(WEB.uuid, WEB)
    state.commit(Commit({WEB.uuid: None}, taken=taken))
    assert state.guests() == {WEB.uuid: WEB}


# What is near whom.


def near(state: Snapshot, item: Guest) -> claims.Index:
    return state.near(claims.rows(item), {item.uuid})


def overlap(row: Row, other: Row) -> bool:
    if isinstance(row, PortRow) and isinstance(other, PortRow):
        return row.listen.proto == other.listen.proto and row.span.overlaps(other.span)
    same = isinstance(row, EndpointRow) and isinstance(other, EndpointRow)
    return same and claims.location(row) == claims.location(other)  # type: ignore[arg-type]


@given(st.lists(st.integers(0, 5).flatmap(lambda n: make.guests(n, "running")), max_size=5), make.guests(9))
def test_search_finds_each_claim_and_endpoint_that_overlaps(others: list[Guest], item: Guest) -> None:
    kept = {other.uuid: other for other in others}
    state = in_memory(*kept.values())
    mine = claims.rows(item)
    every = [row for other in kept.values() for row in claims.rows(other)]
    expected = {row for row in every if any(overlap(row, own) for own in mine)}
    found = {row for row in near(state, item) if isinstance(row, PortRow | EndpointRow)}
    wide = {row for row in found if isinstance(row, PortRow) and row.listen.restricted}
    assert expected <= found
    assert found - wide <= expected


def lan(*subnets: str) -> tuple[tuple[object, str], ...]:
    return tuple((ip_network(subnet), "virbr0") for subnet in subnets)


def test_subnets_and_gateways_come_once_whoever_has_them() -> None:
    gateway = (ip_address("198.51.100.1"),)
    other_lan = lan("198.51.100.0/24", "2001:db8:10::/64")
    a, b = (item._replace(gateways=gateway, lans=other_lan) for item in (WEB, DB))  # type: ignore[arg-type]
    item = guest("new", forward(90))._replace(gateways=gateway, lans=a.lans)
    found = near(in_memory(a, b), item)
    assert sorted(type(row).__name__ for row in found) == [
        *("GatewayRow", "LookupRow", "SubnetRow", "SubnetRow")
    ]
    assert near(in_memory(a), a) == ()


def test_bridges_and_sides_are_those_of_running_guests() -> None:
    six = guest("six", forward(82), endpoints=[endpoint("2001:db8:10::9", bridge="br6")])
    six = six._replace(lans=((ip_network("2001:db8:10::/64"), "br6"),))
    state = in_memory(WEB, DB, six, guest("late")._replace(phase="prepared"))
    assert state.sides() == {Side(4, "virbr0"), Side(6, "br6")}
    assert state.bridges() == {"virbr0", "br6"}
    assert (in_memory().sides(), in_memory().bridges()) == (frozenset(), frozenset())


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (WEB, True),
        (WEB._replace(phase="prepared"), False),
        (WEB._replace(endpoints=()), False),
        (WEB._replace(forwards=()), False),
        (WEB._replace(forwards=(), isolate=True), True),
    ],
)
def test_table_exists_as_long_as_a_guest_has_a_part_in_it(item: Guest, expected: bool) -> None:
    state = in_memory(item)
    assert state.has_table() == expected


# What is damaged.


def edit(state: Snapshot, statement: str, *parameters: object) -> None:
    with state.transaction() as connection:
        connection.execute(statement, parameters)


@pytest.mark.parametrize("record", ["", "{", '{"version": 7}', "null", "[]", "\udc80"[:0], "9" * 5000])
def test_damaged_record_is_told_and_the_others_are_read(record: str, messages: list[str]) -> None:
    state = in_memory(WEB, DB)
    edit(state, "UPDATE guest SET record = ? WHERE uuid = ?", record, WEB.uuid)
    assert state.guest(WEB.uuid) is None
    assert state.guests() == {DB.uuid: DB}
    assert WEB.uuid in messages[0]
    assert state.damaged


def test_record_under_another_guests_uuid_is_damaged(messages: list[str]) -> None:
    state = in_memory(WEB)
    edit(state, "UPDATE guest SET uuid = ?", UUID)
    assert state.guest(UUID) is None
    assert f"is the record of another guest, {WEB.uuid}" in messages[0]


def test_damaged_queued_change_is_dropped(messages: list[str]) -> None:
    state = in_memory(WEB)
    state.queue(WEB.uuid, None)
    edit(state, "UPDATE queued SET record = '{'")
    state._forget()
    assert state.guests() == {WEB.uuid: WEB}
    assert "it is dropped" in messages[0]


EDITS = [
    "UPDATE claim SET state = 'x'",
    "UPDATE claim SET last = 70000",
    "UPDATE claim SET last = 'x'",
    "UPDATE claim SET address = '1.2.3'",
    "UPDATE claim SET dev = 'a b; drop'",
    "UPDATE endpoint SET origin = 'x'",
]


@pytest.mark.parametrize("statement", EDITS)
def test_damaged_claims_are_derived_again(statement: str, messages: list[str]) -> None:
    state = in_memory(WEB, DB)
    edit(state, statement)
    item = guest("new", forward(80, 81), endpoints=WEB.endpoints)
    found = {row for row in near(state, item) if isinstance(row, PortRow | EndpointRow)}
    assert {row.name for row in found} == {"web", "db"}
    assert "all are derived again" in messages[0]


def test_networks_are_kept_and_damaged_ones_count_as_absent() -> None:
    lease = Reservation(ip_address("10.50.0.5"), None, "db")
    network = Network("default", UUID, "virbr1", "nat", reservations=(lease,))
    state = in_memory()
    state.put_networks({UUID: network})
    assert state.networks() == [network]
    edit(state, "UPDATE network SET record = 'null'")
    assert state.networks() == []
    state.put_networks({UUID: None})
    assert state._all("SELECT 1 FROM network") == []


def spans(found: Iterable[Row]) -> list[tuple[int, int]]:
    return [row.span for row in found if isinstance(row, PortRow)]


@given(st.lists(st.tuples(st.integers(1, 65535), st.integers(0, 40_000)), max_size=12), st.integers(1, 65535))
def test_span_is_found_by_each_of_its_ports(pairs: list[tuple[int, int]], port: int) -> None:
    wanted = [forward(start, min(start + more, 65535)) for start, more in pairs]
    disjoint = [f for n, f in enumerate(wanted) if not any(collide(f, g) for g in wanted[:n])]
    state = in_memory(guest("many", *disjoint, endpoints=()))
    asked = guest("web", forward(port), endpoints=())
    assert spans(near(state, asked)) == [f.span for f in disjoint if f.start <= port <= f.end]
