"""Records that contradict each other, and changes that were begun and not finished: who comes first."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from unit.build import endpoint, forward, guest
from virt_forward.host import log
from virt_forward.model import Forward, Guest
from virt_forward.state import journal
from virt_forward.state.journal import Journal
from virt_forward.state.ledger import Ledger
from virt_forward.state.store import Store

A, B = (f"{digit * 8}-0000-4000-8000-000000000000" for digit in "ab")


@pytest.fixture(autouse=True)
def messages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    for name in ("error", "warning", "info"):
        monkeypatch.setattr(log, name, found.append)
    return found


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(str(tmp_path / "run"))
    with made.lock(1):
        yield made


def of(uuid: str, *forwards: Forward, ip: str = "") -> Guest:
    number = 10 + "ab".index(uuid[0])
    made = guest(uuid[0], *forwards, endpoints=[endpoint(ip or f"198.51.100.{number}")])
    return made._replace(uuid=uuid)


def consistent(store: Store, *guests: Guest) -> dict[str, Guest]:
    for item in guests:
        store.put(item.uuid, item)
    return Ledger(store).guests()


# Two records that clash.


@pytest.mark.parametrize("other", [forward(80), forward(70, 80), forward(80, 90), forward(1, 1000)])
def test_records_that_share_a_port_clash(store: Store, messages: list[str], other: Forward) -> None:
    found = consistent(store, of(A, forward(80)), of(B, other))
    assert found[A] == of(A, forward(80))
    assert found[B].forwards == ()
    assert found[B].conflicts == ((other, "host port tcp/80 is taken by guest a"),)
    assert "claim the same" in messages[0]


@pytest.mark.parametrize(
    "other",
    [
        forward(81),
        forward(70, 79),
        forward(81, 90),
        forward(80, proto="udp"),
        forward(80, address="203.0.113.7"),
        forward(80, dev="enp1s0"),
        forward(80, source="192.0.2.0/24"),
    ],
)
def test_records_of_neighbouring_or_narrower_claims_do_not_clash(
    store: Store, messages: list[str], other: Forward
) -> None:
    both = {A: of(A, forward(80)), B: of(B, other)}
    assert consistent(store, *both.values()) == both
    assert messages == []


def test_records_that_meet_in_exactly_one_port_clash(store: Store) -> None:
    found = consistent(store, of(A, forward(80, 90)), of(B, forward(90, 100), forward(200)))
    assert found[A].forwards == (forward(80, 90),)
    assert found[B].forwards == (forward(200),)


def test_third_claim_between_two_is_found(store: Store) -> None:
    found = consistent(store, of(A, forward(10), forward(300)), of(B, forward(200), forward(300)))
    assert (found[A].conflicts, found[B].forwards) == ((), (forward(200),))


def test_clashing_record_of_a_running_guest_comes_before_a_prepared_one(store: Store) -> None:
    prepared = of(A, forward(80))._replace(phase="prepared")
    found = consistent(store, prepared, of(B, forward(80)))
    assert found[B].forwards == (forward(80),)
    assert found[A].forwards == ()


def test_conflicts_of_two_records_do_not_clash(store: Store, messages: list[str]) -> None:
    both = {u: of(u)._replace(conflicts=((forward(80), "taken"),)) for u in (A, B)}
    assert consistent(store, *both.values()) == both
    assert messages == []


def test_records_of_one_address_clash_unless_on_other_bridges(store: Store, messages: list[str]) -> None:
    one, other = of(A, ip="198.51.100.9"), of(B, ip="198.51.100.9")
    elsewhere = other._replace(endpoints=(endpoint("198.51.100.9", bridge="br9"),))
    assert consistent(store, one, elsewhere) == {A: one, B: elsewhere}
    assert messages == []
    consistent(store, one, other)
    assert messages != []


# Changes that were begun.

BEFORE, AFTER = of(A, forward(80)), of(A, forward(81))


def begun(store: Store, entry: Journal) -> Ledger:
    store.write("unfinished", journal.render(*entry))
    return Ledger(store)


def test_journal_is_parsed_as_it_was_rendered() -> None:
    entry = Journal({A: None, B: of(B)}, {A: AFTER, B: None}, frozenset({"left"}))
    assert journal.parse(journal.render(*entry)) == entry


@pytest.mark.parametrize("side", [0, 1])
def test_journal_with_another_guest_under_a_uuid_is_none(side: int) -> None:
    document = json.loads(journal.render({A: BEFORE}, {A: AFTER}, ()))
    document["guests"] = {B: document["guests"][A]}
    assert journal.parse(json.dumps(document)) is None
    document["guests"][B][side] = None
    assert journal.parse(json.dumps(document)) is None


def test_journal_of_another_version_is_none() -> None:
    document = json.loads(journal.render({A: BEFORE}, {A: AFTER}, ()))
    assert journal.parse(json.dumps(document | {"version": journal.VERSION + 1})) is None


def test_change_that_was_begun_comes_before_the_record(store: Store) -> None:
    store.put(A, BEFORE)
    store.put(B, of(B))
    ledger = begun(store, Journal({A: BEFORE, B: of(B)}, {A: AFTER, B: None}))
    assert ledger.guests() == {A: AFTER}
    assert Ledger(store).known(A) == AFTER
    assert Ledger(store).known(B) is None
    assert ledger.index() == Ledger(store).index() != ()


def test_queued_change_comes_before_the_one_that_was_begun(store: Store) -> None:
    queued = of(A, forward(82))
    store.put(A, BEFORE)
    store.queue(A, queued)
    ledger = begun(store, Journal({A: BEFORE}, {A: AFTER}))
    assert ledger.merged() == {A: queued}
    assert Ledger(store).known(A) == queued


def test_queued_change_that_was_taken_in_is_not_made_again(store: Store) -> None:
    store.queue(A, of(A, forward(82)))
    (name,) = (item.name for item in store.queued()[0])
    ledger = begun(store, Journal({A: BEFORE}, {A: AFTER}, frozenset({name})))
    assert ledger.queued() == ([], frozenset({name}))
    assert ledger.merged() == {A: AFTER}


def test_next_change_keeps_what_stood_before_the_first(store: Store) -> None:
    """The flows that went through it have to end, even where two hooks in a row were cut off."""
    begun(store, Journal({A: BEFORE}, {A: AFTER})).begin({A: AFTER}, {A: None}, frozenset())
    assert Ledger(store).pending == Journal({A: BEFORE}, {A: None})


def test_next_change_of_another_guest_keeps_the_one_that_was_begun(store: Store) -> None:
    begun(store, Journal({A: BEFORE}, {A: AFTER})).begin({B: None}, {B: of(B)}, frozenset())
    assert Ledger(store).pending == Journal({A: BEFORE, B: None}, {A: AFTER, B: of(B)})


def test_rebuild_from_libvirt_drops_a_guest_that_was_begun_and_never_recorded(store: Store) -> None:
    store.put(B, of(B))
    entry = Journal({A: None, B: of(B)}, {A: AFTER, B: of(B, forward(5))})
    begun(store, entry)
    assert Ledger(store).guests().keys() == {A, B}
    assert Ledger(store, rebuild=True).guests() == {B: of(B, forward(5))}
