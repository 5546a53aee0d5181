"""Settling the guests that run: what one has already is not given to another."""

from __future__ import annotations

from itertools import permutations

import pytest

from unit.build import endpoint, forward, guest
from virt_forward.model import Forward, Guest
from virt_forward.reconcile.resync import Running, _settle


def named(number: int, *forwards: Forward) -> Guest:
    """Return a guest whose UUID sorts by its number."""
    own = endpoint(f"198.51.100.{number + 10}", mac=f"52:54:00:00:00:{number:02x}")
    return guest(f"g{number}", *forwards, endpoints=[own])._replace(
        uuid=f"{number:08x}-0000-4000-8000-000000000000"
    )


def running(*guests: Guest) -> dict[str, Running]:
    return {item.uuid: Running(item, lambda _: None) for item in guests}


def kept(settled: dict[str, Guest | None]) -> list[tuple[Forward, ...]]:
    return [item.forwards for _, item in sorted(settled.items()) if item]


@pytest.mark.parametrize("holder", [0, 1])
def test_port_of_a_running_guest_is_not_given_to_one_that_was_kept_out(holder: int) -> None:
    wanted = [named(0, forward(80)), named(1, forward(80))]
    out = wanted[1 - holder]._replace(forwards=(), conflicts=((forward(80), "why"),))
    now = {wanted[holder].uuid: wanted[holder], out.uuid: out}
    assert kept(_settle(running(*wanted), now, set())) == [
        (forward(80),) if number == holder else () for number in (0, 1)
    ]


def test_each_keeps_what_it_has_where_each_was_kept_out_of_what_the_other_has() -> None:
    both = forward(80), forward(81)
    one, other = named(0, *both), named(1, *both)
    now = {
        one.uuid: one._replace(forwards=both[:1], conflicts=((both[1], "why"),)),
        other.uuid: other._replace(forwards=both[1:], conflicts=((both[0], "why"),)),
    }
    assert kept(_settle(running(one, other), now, set())) == [both[:1], both[1:]]


def test_range_that_was_made_longer_keeps_its_ports() -> None:
    out, longer = named(0, forward(80)), named(1, forward(80, 90))
    now = {
        out.uuid: out._replace(forwards=(), conflicts=((forward(80), "why"),)),
        longer.uuid: longer._replace(forwards=(forward(80, 81),)),
    }
    assert kept(_settle(running(out, longer), now, set())) == [(), (forward(80, 90),)]


def test_port_that_its_holder_declares_no_more_goes_to_who_was_kept_out() -> None:
    holder, out = named(0, forward(81)), named(1, forward(80))
    now = {
        holder.uuid: holder._replace(forwards=(forward(80),)),
        out.uuid: out._replace(forwards=(), conflicts=((forward(80), "why"),)),
    }
    assert kept(_settle(running(holder, out), now, set())) == [(forward(81),), (forward(80),)]


def test_settling_again_changes_nothing() -> None:
    guests = [named(number, forward(80), forward(81 + number)) for number in range(3)]
    for order in permutations(guests):
        first = _settle(running(*order), {}, set())
        now = {uuid: item for uuid, item in first.items() if item}
        assert _settle(running(*order), now, set()) == first
