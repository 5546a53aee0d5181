"""The plan of a change, beside a state that is a dictionary: what one guest has is not given to another."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import permutations
from typing import NamedTuple

import pytest

from unit.build import endpoint, forward, guest
from virt_forward.claims import index as claims
from virt_forward.errors import VirtForwardError
from virt_forward.model import Forward, Guest
from virt_forward.reconcile.plan import Located, make, resolve_all, without_clashes


def named(number: int, *forwards: Forward) -> Guest:
    """Return a guest whose UUID sorts by its number."""
    own = endpoint(f"198.51.100.{number + 10}", mac=f"52:54:00:00:00:{number:02x}")
    return guest(f"g{number}", *forwards, endpoints=[own])._replace(
        uuid=f"{number:08x}-0000-4000-8000-000000000000"
    )


def resolved(wanted: Iterable[Guest], before: dict[str, Guest]) -> dict[str, Guest]:
    guests = {item.uuid: item for item in wanted}
    return resolve_all(guests, before, (), dict.fromkeys(guests, lambda _: None))


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


def test_resolving_again_changes_nothing() -> None:
    guests = [named(number, forward(80), forward(81 + number)) for number in range(3)]
    for order in permutations(guests):
        first = resolved([*order], {})
        assert resolved(order, first) == first


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
