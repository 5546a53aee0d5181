"""Ports that guests may share: each leads to every claim on it, and costs no look at all others."""

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
from virt_forward import ports
from virt_forward.claims import index as claims
from virt_forward.config import Config
from virt_forward.model import Forward, Guest
from virt_forward.ruleset import guest as guest_block
from virt_forward.ruleset import shared, table
from virt_forward.ruleset.guest import modest, narrowed

Slots = dict[shared.Slot, list[claims.Row]]


def index_of(*guests: Guest) -> claims.Index:
    return tuple(row for item in guests for row in claims.rows(item))


def naive(index: claims.Index, touching: claims.Index) -> Slots:
    """Return the slots as a look at every port and every claim finds them."""

    def narrow(rows: claims.Index) -> list[tuple[claims.Row, Forward]]:
        made = [(row, claims.forward_of(row)) for row in rows if row.kind == claims.PORT]
        return [(row, found) for row, found in made if narrowed(found)]

    present, changed = narrow(index), [found for _, found in narrow(touching)]
    slots: Slots = {}
    for proto, address in {(found.proto, found.address) for found in changed}:
        here = [(row, found) for row, found in present if (found.proto, found.address) == (proto, address)]
        mine = [found for found in changed if (found.proto, found.address) == (proto, address)]
        for port in range(1, 1001):
            on_it = [pair for pair in here if pair[1].start <= port <= pair[1].end]
            touched = any(found.start <= port <= found.end for found in mine)
            if touched and any(modest(found) for _, found in on_it):
                slots[(proto, str(address or ""), port)] = ranked(on_it)
        wide = [pair for pair in here if not modest(pair[1])]
        if wide and not all(map(modest, mine)):
            slots[(proto, str(address or ""), 0)] = ranked(wide)
    return slots


def ranked(members: list[tuple[claims.Row, Forward]]) -> list[claims.Row]:
    return [row for row, _ in sorted(members, key=lambda pair: ports.specificity(pair[1]))]


@given(st.tuples(*(make.guests(number, "running") for number in range(4))))
def test_slots_are_what_a_look_at_every_claim_and_port_finds(guests: tuple[Guest, ...]) -> None:
    index = index_of(*guests)
    assert shared._slots(index, index) == naive(index, index)
    mine = index_of(guests[0])
    assert shared._slots(index, mine) == naive(index, mine)
    rest = index_of(*guests[1:])
    assert shared._slots(rest, mine) == naive(rest, mine)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    looks, plain = Looks(), claims.forward_of
    monkeypatch.setattr(claims, "forward_of", lambda row: looks.forwards([plain(row)])[0])
    return looks


@pytest.mark.parametrize(
    "narrowed_by",
    [
        lambda number: forward(number + 1, dev="enp1s0"),
        lambda number: forward(number + 1, source="192.0.2.0/24"),
        lambda number: forward(20 * number + 1, 20 * number + 20, source="192.0.2.0/24"),
    ],
)
def test_the_cost_of_narrowed_ports_is_linear(looks: Looks, narrowed_by: Callable[[int], Forward]) -> None:
    number = 1000
    index = index_of(guest("web", *map(narrowed_by, range(number))))
    assert shared.blocks(index, index)
    assert looks.number < 80 * number


def test_the_cost_of_one_guests_block_is_linear() -> None:
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
