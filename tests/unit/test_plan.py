"""The plan of a change, beside a state that is a dictionary: what one guest has is not given to another."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import permutations
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unit import strategies
from unit.build import endpoint, forward, guest
from unit.counted import Looks
from virt_forward.claims import index as claims
from virt_forward.errors import VirtForwardError
from virt_forward.model import LEARNED, Endpoint, Forward, Guest, Listen, Origin
from virt_forward.reconcile.plan import Located, make, resolve_all, resolve_one, without_clashes


def named(number: int, *forwards: Forward) -> Guest:
    """Return a guest whose UUID sorts by its number."""
    own = endpoint(f"198.51.100.{number + 10}", mac=f"52:54:00:00:00:{number:02x}")
    return guest(f"g{number}", *forwards, endpoints=[own])._replace(
        uuid=f"{number:08x}-0000-4000-8000-000000000000"
    )


def no_veto(_: Forward) -> None:
    """Have nothing against a forward."""


def resolved(
    wanted: Iterable[Guest], before: dict[str, Guest], others: claims.Index = ()
) -> dict[str, Guest]:
    guests = {item.uuid: item for item in wanted}
    return resolve_all(guests, before, others, dict.fromkeys(guests, no_veto))


def kept(resolved: dict[str, Guest]) -> list[tuple[Forward, ...]]:
    return [item.forwards for _, item in sorted(resolved.items())]


@pytest.mark.parametrize("holder", [0, 1])
def test_port_of_a_running_guest_is_not_given_to_one_that_was_kept_out(holder: int) -> None:
    wanted = [named(0, forward(80)), named(1, forward(80))]
    out = wanted[1 - holder]._replace(forwards=(), conflicts=((forward(80), "why"),))
    now = {wanted[holder].uuid: wanted[holder], out.uuid: out}
    assert kept(resolved([*wanted], now)) == [(forward(80),) if number == holder else () for number in (0, 1)]


def test_each_keeps_what_it_has_where_each_was_kept_out_of_what_the_other_has() -> None:
    both = forward(80), forward(81)
    one, other = named(0, *both), named(1, *both)
    now = {
        one.uuid: one._replace(forwards=both[:1], conflicts=((both[1], "why"),)),
        other.uuid: other._replace(forwards=both[1:], conflicts=((both[0], "why"),)),
    }
    assert kept(resolved([one, other], now)) == [both[:1], both[1:]]


def test_range_that_was_made_longer_keeps_its_ports() -> None:
    out, longer = named(0, forward(80)), named(1, forward(80, 90))
    now = {
        out.uuid: out._replace(forwards=(), conflicts=((forward(80), "why"),)),
        longer.uuid: longer._replace(forwards=(forward(80, 81),)),
    }
    assert kept(resolved([out, longer], now)) == [(), (forward(80, 90),)]


def test_port_that_its_holder_declares_no_more_goes_to_who_was_kept_out() -> None:
    holder, out = named(0, forward(81)), named(1, forward(80))
    now = {
        holder.uuid: holder._replace(forwards=(forward(80),)),
        out.uuid: out._replace(forwards=(), conflicts=((forward(80), "why"),)),
    }
    assert kept(resolved([holder, out], now)) == [(forward(81),), (forward(80),)]


@pytest.mark.parametrize("taker", [0, 1])
def test_declared_address_of_a_running_guest_is_not_given_to_one_that_declares_it_later(taker: int) -> None:
    now = [named(0, forward(80)), named(1, forward(81))]
    edited = now[taker]._replace(endpoints=now[1 - taker].endpoints)
    found = resolved([edited, now[1 - taker]], {item.uuid: item for item in now})
    assert found[now[1 - taker].uuid] == now[1 - taker]
    assert (found[edited.uuid].forwards, found[edited.uuid].contested) == ((), edited.endpoints)


def test_running_guests_may_exchange_their_addresses() -> None:
    now = [named(0, forward(80)), named(1, forward(81))]
    edited = [now[0]._replace(endpoints=now[1].endpoints), now[1]._replace(endpoints=now[0].endpoints)]
    assert [*resolved(edited, {item.uuid: item for item in now}).values()] == edited


@pytest.mark.parametrize("taker", [0, 1])
def test_port_stays_with_the_guest_that_has_it_where_its_target_is_edited(taker: int) -> None:
    holder, other = named(1 - taker, forward(80)), named(taker, forward(81))
    edited = holder._replace(forwards=(forward(80, to=8080),))
    wants_it = other._replace(forwards=(forward(81), forward(80)))
    found = resolved([edited, wants_it], {holder.uuid: holder, other.uuid: other})
    assert found[holder.uuid] == edited
    assert found[other.uuid].forwards == (forward(81),)


def test_ports_of_a_guest_that_is_kept_out_with_its_new_address_go_to_the_next() -> None:
    holder, edited, out = named(0, forward(80)), named(1, forward(81)), named(2, forward(81))
    now = {item.uuid: item for item in (holder, edited)}
    now[out.uuid] = out._replace(forwards=(), conflicts=((forward(81), "why"),))
    found = resolved([holder, edited._replace(endpoints=holder.endpoints), out], now)
    assert kept(found) == [(forward(80),), (), (forward(81),)]


@pytest.mark.parametrize("alone", [True, False])
def test_range_that_was_made_longer_into_a_taken_port_keeps_the_ports_it_had(alone: bool) -> None:
    holder, shorter = named(0, forward(90)), named(1, forward(80, 85, 8080))
    longer = shorter._replace(forwards=(forward(80, 99, 8080),))
    now = {item.uuid: item for item in (holder, shorter)}
    if alone:
        found = resolve_one(claims.rows(holder), longer, shorter, no_veto)
    else:
        found = resolved([holder, longer], now)[longer.uuid]
    why = "host port tcp/90 is taken by guest g0"
    assert (found.forwards, found.conflicts) == (shorter.forwards, ((forward(86, 99, 8086), why),))


def test_port_that_two_records_have_stays_with_the_guest_that_is_not_changed() -> None:
    """Only a damaged state has such records."""
    one, other = named(0, forward(80)), named(1, forward(80))
    found = resolve_one(claims.rows(other), one, one, no_veto)
    assert found.conflicts == ((forward(80), "host port tcp/80 is taken by guest g1"),)


def test_resolving_again_changes_nothing() -> None:
    guests = [named(number, forward(80), forward(81 + number)) for number in range(3)]
    for order in permutations(guests):
        first = resolved([*order], {})
        assert resolved(order, first) == first


# Whatever guests run, and whatever is edited at once.

OFTEN: tuple[Origin, ...] = ("declared", "declared", "reserved", "leased")
ADDRESSES = ("198.51.100.10", "198.51.100.11", "198.51.100.12")
DECLARABLE = [
    forward(start, end, start + shift, dev=dev)
    for start, end in ((80, 80), (80, 83), (83, 90), (81, 82))
    for shift in (0, 1000)
    for dev in (None, "enp1s0")
]
PORTS = range(80, 91)


@st.composite
def running(draw: st.DrawFn, number: int) -> Guest:
    """Make a running guest at addresses and with forwards that others may declare, too."""
    places = draw(st.lists(st.sampled_from(ADDRESSES), max_size=2, unique=True))
    forwards = strategies.distinct(draw(st.lists(st.sampled_from(DECLARABLE), max_size=3)))
    at = [endpoint(ip)._replace(origin=draw(st.sampled_from(OFTEN))) for ip in places]
    return named(number, *forwards)._replace(endpoints=tuple(at))


three = st.tuples(*map(running, range(3))).map(list)


def held_ports(item: Guest) -> set[tuple[Listen, int]]:
    """Return the ports that a guest has, and what it listens on there."""
    return {(f.listen, port) for f in item.forwards for port in PORTS if f.start <= port <= f.end}


def configured(endpoints: Iterable[Endpoint]) -> set[claims.Location]:
    return {claims.location(item) for item in endpoints if item.origin not in LEARNED}


@given(three, three, st.sets(st.integers(0, 2), min_size=1))
def test_what_a_guest_has_and_still_declares_is_not_taken_from_it(
    first: list[Guest], edited: list[Guest], changed: set[int]
) -> None:
    before = resolved(first, {})
    wanted = {edited[number].uuid: edited[number] for number in changed}
    rest = [item for uuid, item in before.items() if uuid not in wanted]
    others = tuple(row for item in rest for row in claims.rows(item))
    after = resolved(wanted.values(), before, others)
    lost = claims.endpoints_lost(others, after.values())
    left = [claims.without_endpoints(item, lost.get(item.uuid, ())) for item in rest]
    assert not claims.clash([*after.values(), *left])
    for uuid, found in after.items():
        had = {claims.location(item) for item in before[uuid].endpoints}
        if found.contested:
            elsewhere = [item for other, item in {**before, **after}.items() if other != uuid]
            theirs = {place for item in elsewhere for place in configured(item.endpoints)}
            assert (configured(found.contested) & theirs) - had, "it declares what another guest has"
        else:
            assert had & configured(wanted[uuid].endpoints) <= configured(found.endpoints)
            assert held_ports(before[uuid]) & held_ports(wanted[uuid]) <= held_ports(found)


# Whole plans.


class Queued(NamedTuple):
    number: int
    guest: Guest | None


class State:
    """All that a plan asks of the state."""

    def __init__(self, *guests: Guest, **queued: Queued) -> None:
        self.guests = {item.uuid: item for item in guests}
        self.queued = queued

    def recorded(self, uuid: str) -> Guest | None:
        return self.guests.get(uuid)

    def all_recorded(self) -> dict[str, Guest]:
        return self.guests

    def near(self, _touching: Iterable[claims.Row], without: Collection[str]) -> claims.Index:
        others = (item for uuid, item in self.guests.items() if uuid not in without)
        return tuple(row for item in others for row in claims.rows(item))


HOLDER = named(0, forward(80))
OUT = named(1)._replace(conflicts=((forward(80), "host port tcp/80 is taken by guest g0"),))


def test_guest_that_waits_for_a_claim_is_planned_once_it_is_located() -> None:
    state, stop = State(HOLDER, OUT), {HOLDER.uuid: Located(HOLDER)}
    first = make(state, stop)
    assert first.waiting == {OUT.uuid: OUT}
    whole = make(state, stop, {OUT.uuid: Located(OUT, OUT)})
    assert not whole.waiting
    assert whole.wanted == {HOLDER.uuid}
    assert whole.after == {HOLDER.uuid: None, OUT.uuid: OUT._replace(forwards=(forward(80),), conflicts=())}
    assert whole.before == {HOLDER.uuid: HOLDER, OUT.uuid: OUT}


@pytest.mark.parametrize(
    "located",
    [
        Located(OUT, OUT, {forward(80): "the host listens there"}),
        Located(OUT, error=VirtForwardError("ip not found")),
    ],
)
def test_guest_that_waits_and_cannot_have_its_port_stays_as_it_is(located: Located) -> None:
    found = make(State(HOLDER, OUT), {HOLDER.uuid: Located(HOLDER)}, {OUT.uuid: located})
    assert {uuid: item for uuid, item in found.after.items() if item and item.forwards} == {}
    assert found.after[HOLDER.uuid] is None
    assert found.errors == {}


@pytest.mark.parametrize(
    ("after", "waits"),
    [
        (None, True),
        (HOLDER._replace(forwards=(forward(81),)), True),
        (HOLDER._replace(forwards=(forward(80, to=8080),)), False),
        (HOLDER._replace(forwards=(forward(80, 90),)), False),
        (HOLDER._replace(endpoints=()), False),
    ],
)
def test_guest_is_retried_where_the_port_that_it_waits_for_goes(after: Guest | None, waits: bool) -> None:
    found = make(State(HOLDER, OUT), {HOLDER.uuid: Located(HOLDER, after)})
    assert [*found.waiting] == [OUT.uuid] * waits


@pytest.mark.parametrize("after", [None, HOLDER._replace(endpoints=())])
def test_guest_is_retried_where_the_address_that_it_waits_for_goes(after: Guest | None) -> None:
    kept_out = ((forward(81), "address 198.51.100.10 on virbr0 is already that of guest g0"),)
    out = named(1)._replace(conflicts=kept_out, endpoints=(), contested=HOLDER.endpoints)
    assert [*make(State(HOLDER, out), {HOLDER.uuid: Located(HOLDER, after)}).waiting] == [out.uuid]


def test_guest_is_retried_where_what_it_waits_for_goes_to_another_one() -> None:
    """The reason of its conflict is another one then."""
    taker = named(2)
    wanted = {
        HOLDER.uuid: Located(HOLDER, HOLDER._replace(forwards=())),
        taker.uuid: Located(taker, taker._replace(forwards=(forward(80),))),
    }
    assert [*make(State(HOLDER, OUT, taker), wanted).waiting] == [OUT.uuid]


@pytest.mark.parametrize("kept_out", [False, True])
def test_search_for_guests_that_wait_costs_no_more_than_there_are_claims(kept_out: bool) -> None:
    """A clone of a guest with many separate ports waits for each of them, or for others."""
    looks, number = Looks(), 1000
    starts = range(1, 2 * number, 2)
    holder = named(0, *looks.forwards(map(forward, starts)))
    out = named(1)._replace(conflicts=tuple((forward(port + (not kept_out)), "why") for port in starts))

    class Counted(State):
        def near(self, touching: Iterable[claims.Row], without: Collection[str]) -> claims.Index:
            return looks.rows(super().near(touching, without))

    found = make(Counted(holder, out), {holder.uuid: Located(holder)})
    assert [*found.waiting] == [out.uuid] * kept_out
    assert looks.number < 50 * number


def test_veto_of_the_host_is_a_conflict() -> None:
    wanted = named(2, forward(81), forward(82))
    found = make(State(HOLDER), {wanted.uuid: Located(None, wanted, {forward(82): "why"})}).after[wanted.uuid]
    assert found
    assert (found.forwards, found.conflicts) == ((forward(81),), ((forward(82), "why"),))


def test_guest_that_cannot_be_served_is_no_part_of_the_change() -> None:
    error = VirtForwardError("why")
    found = make(State(HOLDER), {HOLDER.uuid: Located(HOLDER, error=error)})
    assert (found.before, found.after, found.errors) == ({}, {}, {HOLDER.uuid: error})
    kept = HOLDER._replace(nics=())
    assert make(State(HOLDER), {HOLDER.uuid: Located(HOLDER, kept, error=error)}).after == {HOLDER.uuid: kept}


def test_queued_changes_are_part_of_every_plan() -> None:
    state = State(HOLDER, **{HOLDER.uuid: Queued(7, None)})
    found = make(state, {})
    assert (found.before, found.after, found.queued) == (
        {HOLDER.uuid: HOLDER},
        {HOLDER.uuid: None},
        {HOLDER.uuid: 7},
    )
    # What is wanted of the same guest comes after what was queued.
    assert make(state, {HOLDER.uuid: Located(None, HOLDER)}).after == {HOLDER.uuid: HOLDER}


# Records that clash.


@pytest.mark.parametrize("other", [forward(80), forward(70, 80), forward(80, 90), forward(1, 1000)])
def test_records_that_share_a_port_clash(other: Forward) -> None:
    one, two = named(0, forward(80)), named(1, other)
    found = without_clashes([one, two])
    assert found[one.uuid] == one
    assert found[two.uuid].forwards == ()
    assert found[two.uuid].conflicts == ((other, "host port tcp/80 is taken by guest g0"),)


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
def test_records_of_neighbouring_or_narrower_claims_do_not_clash(other: Forward) -> None:
    both = {item.uuid: item for item in (named(0, forward(80)), named(1, other))}
    assert without_clashes(both.values()) == both


def test_records_that_meet_in_exactly_one_port_clash() -> None:
    one, two = named(0, forward(80, 90)), named(1, forward(90, 100), forward(200))
    found = without_clashes([one, two])
    assert found[one.uuid].forwards == (forward(80, 90),)
    assert found[two.uuid].forwards == (forward(200),)


def test_third_claim_between_two_is_found() -> None:
    one, two = named(0, forward(10), forward(300)), named(1, forward(200), forward(300))
    found = without_clashes([one, two])
    assert (found[one.uuid].conflicts, found[two.uuid].forwards) == ((), (forward(200),))


def test_clashing_record_of_a_running_guest_comes_before_a_prepared_one() -> None:
    one, two = named(0, forward(80))._replace(phase="prepared"), named(1, forward(80))
    found = without_clashes([one, two])
    assert (found[one.uuid].forwards, found[two.uuid].forwards) == ((), (forward(80),))


def test_conflicts_of_two_records_do_not_clash() -> None:
    both = [named(number)._replace(conflicts=((forward(80), "taken"),)) for number in (0, 1)]
    assert without_clashes(both) == {item.uuid: item for item in both}


def test_records_of_one_address_clash_unless_on_other_bridges() -> None:
    one = named(0)
    other = named(1)._replace(endpoints=one.endpoints)
    elsewhere = other._replace(endpoints=(one.endpoints[0]._replace(bridge="br9"),))
    assert without_clashes([one, elsewhere]) == {one.uuid: one, other.uuid: elsewhere}
    assert without_clashes([one, other]) != {one.uuid: one, other.uuid: other}
