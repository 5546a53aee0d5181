"""Slots: each leads to every claim on its port, at a cost that does not depend on all others."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.fake_nft import FakeNft
from unit import strategies as make
from unit.build import endpoint, forward, guest
from unit.counted import Looks
from virt_forward.claims import index as claims
from virt_forward.config import Config
from virt_forward.model import Forward, Guest
from virt_forward.ruleset import guest as guest_block
from virt_forward.ruleset import shared, table
from virt_forward.ruleset.guest import modest

Slots = dict[shared.Slot, list[claims.PortRow]]


def index_of(*guests: Guest) -> claims.Index:
    return tuple(row for item in guests for row in claims.rows(item))


def restricted(rows: claims.Index) -> list[claims.PortRow]:
    found = (row for row in rows if isinstance(row, claims.PortRow))
    return [row for row in found if row.state == "open" and (row.listen.dev or row.listen.source)]


def naive(index: claims.Index, touching: claims.Index) -> Slots:
    """Return the slots as a look at every port and every claim finds them."""
    present, changed = restricted(index), restricted(touching)
    slots: Slots = {}
    for proto, address in {(row.listen.proto, row.listen.address) for row in changed}:
        here = [row for row in present if (row.listen.proto, row.listen.address) == (proto, address)]
        mine = [row for row in changed if (row.listen.proto, row.listen.address) == (proto, address)]
        for port in range(1, 1001):
            on_it = [row for row in here if row.span.start <= port <= row.span.end]
            touched = any(row.span.start <= port <= row.span.end for row in mine)
            if touched and any(modest(row.listen, row.span) for row in on_it):
                slots[shared.Slot(proto, address, port)] = ranked(on_it)
        wide = [row for row in here if not modest(row.listen, row.span)]
        if wide and not all(modest(row.listen, row.span) for row in mine):
            slots[shared.Slot(proto, address, shared.WIDE)] = ranked(wide)
    return slots


def ranked(members: list[claims.PortRow]) -> list[claims.PortRow]:
    return sorted(members, key=lambda row: (row.listen.specificity(), row.span.start))


@given(st.tuples(*(make.guests(number, "running") for number in range(4))))
def test_slots_are_those_of_every_claim_and_port(guests: tuple[Guest, ...]) -> None:
    index = index_of(*guests)
    assert shared._slots(index, index) == naive(index, index)
    mine = index_of(guests[0])
    assert shared._slots(index, mine) == naive(index, mine)
    rest = index_of(*guests[1:])
    assert shared._slots(rest, mine) == naive(rest, mine)


@pytest.mark.parametrize(
    "restricted_by",
    [
        lambda number: forward(number + 1, dev="enp1s0"),
        lambda number: forward(number + 1, source="192.0.2.0/24"),
        lambda number: forward(20 * number + 1, 20 * number + 20, source="192.0.2.0/24"),
    ],
)
def test_slots_cost_is_linear(restricted_by: Callable[[int], Forward]) -> None:
    looks, number = Looks(), 1000
    index = looks.rows(index_of(guest("web", *map(restricted_by, range(number)))))
    assert shared.blocks(index, index)
    assert looks.number < 80 * number


def test_guest_block_cost_is_linear() -> None:
    looks, number = Looks(), 1000
    web = guest("web", *looks.forwards(forward(port) for port in range(1, number + 1)))
    assert guest_block.block(web, Config())
    assert looks.number < 80 * number


def lans(index: claims.Index) -> list[str]:
    return sorted(key for key in shared.blocks(index, index) if key.startswith("lan "))


@pytest.mark.parametrize(
    ("inner", "outer"),
    [
        ("10.10.0.0/25", "10.10.0.0/24"),
        ("10.10.0.0/32", "10.10.0.0/24"),
        ("10.10.0.128/25", "10.10.0.0/24"),
        ("2001:db8:10::/112", "2001:db8:10::/64"),
    ],
)
def test_nested_subnets_reach_the_interval_set_as_the_outer_one(inner: str, outer: str) -> None:
    """nft refuses an element of an interval set that overlaps another, one with its address included."""
    for subnets in ((inner, outer), (outer, inner)):
        one, other = (
            guest(name, forward(port), endpoints=[endpoint(ip)])._replace(
                lans=((ip_network(subnet), "virbr0"),)
            )
            for name, port, ip, subnet in zip(
                ("web", "db"), (80, 81), ("10.10.0.5", "10.10.0.6"), subnets, strict=True
            )
        )
        index = index_of(one, other)
        assert lans(index) == [f"lan {outer} virbr0"]
        nft = FakeNft()
        nft.apply(table.text(table.whole((one, other), Config(), 1)))
        # The outer one goes with its guest, and the inner one takes its place.
        whole, rest = (one, other), (one,)
        before = table.blocks_of(whole, index, index, Config())
        after = table.blocks_of(rest, index_of(one), index, Config())
        nft.apply(table.transaction(table.whole(whole, Config(), 1), table.Change(before, after)))
        fresh = nft.scratch_listing(table.text(table.whole(rest, Config(), 2)))
        assert nft.plain_listing() == fresh


def test_nested_subnets_of_other_bridges_are_kept_apart() -> None:
    one, other = (
        guest(name, forward(port), endpoints=[endpoint(ip, bridge)])._replace(
            lans=((ip_network(subnet), bridge),)
        )
        for name, port, ip, bridge, subnet in (
            ("web", 80, "10.10.0.5", "br0", "10.10.0.0/24"),
            ("db", 81, "10.10.0.6", "br1", "10.10.0.0/25"),
        )
    )
    assert lans(index_of(one, other)) == ["lan 10.10.0.0/24 br0", "lan 10.10.0.0/25 br1"]
