"""Settling the guests that run: what one has already is not given to another."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import permutations

import pytest

from unit.build import endpoint, forward, guest
from virt_forward.model import Forward, Guest
from virt_forward.reconcile.plan import resolve_all


def named(number: int, *forwards: Forward) -> Guest:
    """Return a guest whose UUID sorts by its number."""
    own = endpoint(f"198.51.100.{number + 10}", mac=f"52:54:00:00:00:{number:02x}")
    return guest(f"g{number}", *forwards, endpoints=[own])._replace(
        uuid=f"{number:08x}-0000-4000-8000-000000000000"
    )


def resolved(wanted: Iterable[Guest], before: dict[str, Guest]) -> dict[str, Guest]:
    guests = {item.uuid: item for item in wanted}
    return resolve_all(guests, before, (), dict.fromkeys(guests, lambda _: None))


def kept(settled: dict[str, Guest]) -> list[tuple[Forward, ...]]:
    return [item.forwards for _, item in sorted(settled.items())]


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


def test_settling_again_changes_nothing() -> None:
    guests = [named(number, forward(80), forward(81 + number)) for number in range(3)]
    for order in permutations(guests):
        first = resolved([*order], {})
        assert resolved(order, first) == first
