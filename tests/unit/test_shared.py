"""Slots: each leads to every claim on its port, at a cost that does not depend on all others."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.fake_nft import FakeNft
from unit import strategies as make
from unit.build import MAC, endpoint, forward, guest
from unit.counted import Looks
from virt_forward.claims import index as claims
from virt_forward.config import Config
from virt_forward.model import Forward, Guest
from virt_forward.ruleset import guest as guest_block
from virt_forward.ruleset import shared, slots, table

Slots = dict[slots.Slot, list[claims.PortRow]]


def index_of(*guests: Guest) -> claims.Index:
    return tuple(row for item in guests for row in claims.rows(item))


def opened(rows: claims.Index) -> list[claims.PortRow]:
    return [row for row in rows if isinstance(row, claims.PortRow) and row.state == "open"]


def naive(index: claims.Index, touching: claims.Index) -> Slots:
    """Return the slots as a look at every port and every claim finds them."""
    present, changed = opened(index), opened(touching)
    found: Slots = {}
    for proto, address in {
        (row.listen.proto, address) for row in present for address in (None, row.listen.address)
    }:
        here = [row for row in present if (row.listen.proto, row.listen.address) == (proto, address)]
        # At every address, single ports of forwards with an address count, too.
        elsewhere = [
            row for row in present if row.listen.proto == proto and row.listen.address and not row.span.wide
        ]
        for port in range(1, 1001):
            on_it = [
                row
                for row in (*here, *(() if address else elsewhere))
                if port in range(row.span.start, row.span.end + 1)
            ]
            touched = any(
                row.listen.proto == proto and row.span.start <= port <= row.span.end for row in changed
            )
            if touched and not all(row.span.wide for row in on_it):
                found[slots.Slot(proto, address, port)] = ranked(on_it)
        mine = [row for row in changed if (row.listen.proto, row.listen.address) == (proto, address)]
        wide = [row for row in here if row.span.wide and row.listen.restricted]
        if wide and any(row.span.wide and row.listen.restricted for row in mine):
            found[slots.Slot(proto, address, slots.WIDE)] = ranked(wide)
    return found


def ranked(members: list[claims.PortRow]) -> list[claims.PortRow]:
    return sorted(
        members,
        key=lambda row: (
            *row.listen.specificity(),
            row.span,
            row.listen.dev or "",
            str(row.listen.source),
            row.uuid,
        ),
    )


@given(st.tuples(*(make.guests(number, "running") for number in range(4))))
def test_slots_are_those_of_every_claim_and_port(guests: tuple[Guest, ...]) -> None:
    index = index_of(*guests)
    assert slots.slots(index, index) == naive(index, index)
    mine = index_of(guests[0])
    assert slots.slots(index, mine) == naive(index, mine)
    rest = index_of(*guests[1:])
    assert slots.slots(rest, mine) == naive(rest, mine)


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
    assert shared.blocks(index, index, Config())
    assert looks.number < 80 * number


def test_guest_block_cost_is_linear() -> None:
    looks, number = Looks(), 1000
    web = guest("web", *looks.forwards(forward(port) for port in range(1, number + 1)))
    assert guest_block.block(web, Config())
    assert looks.number < 80 * number


@pytest.mark.parametrize("number", [1, 1000])
def test_port_that_one_guest_has_needs_no_chain(number: int) -> None:
    """Ten thousand narrowed forwards load as fast as plain ones do: they are no more than an element each."""
    ports = range(1, number + 1)
    index = index_of(guest("web", *(forward(port, dev="enp1s0") for port in ports)))
    blocks = shared.blocks(index, index, Config())
    assert [len(blocks[f"port tcp-{port}"].elements) for port in ports] == [1] * number
    assert not any(blocks[f"port tcp-{port}"].chains for port in ports)


@pytest.mark.parametrize(
    ("inner", "outer"),
    [
        ("10.10.0.0/25", "10.10.0.0/24"),
        ("10.10.0.0/32", "10.10.0.0/24"),
        ("10.10.0.128/25", "10.10.0.0/24"),
        ("2001:db8:10::/112", "2001:db8:10::/64"),
    ],
)
def test_nested_subnets_are_rules_beside_each_other(inner: str, outer: str) -> None:
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
        (chain,) = shared.blocks(index, index, Config())["lan virbr0"].chains
        assert {rule.split()[2] for rule in chain.rules} == {inner, outer}
        nft = FakeNft()
        nft.apply(table.text(table.whole((one, other), Config(), 1)))
        whole, rest = (one, other), (one,)
        before = table.blocks_of(whole, index, index, Config())
        after = table.blocks_of(rest, index_of(one), index, Config())
        nft.apply(table.transaction(1, 2, table.Change(before, after)))
        fresh = nft.scratch_listing(table.text(table.whole(rest, Config(), 2)))
        assert nft.plain_listing() == fresh


@pytest.mark.parametrize("bridge", ["br0", "br0.10", "br_lan", "a+b@c", "-"])
def test_bridges_have_chains_of_their_own(bridge: str) -> None:
    subnets = ((ip_network("10.10.0.0/24"), bridge), (ip_network("10.10.0.0/25"), "br1"))
    index = index_of(
        guest("web", forward(80), endpoints=[endpoint("10.10.0.5", bridge)])._replace(lans=subnets)
    )
    blocks = shared.blocks(index, index, Config())
    (one,), (other,) = (blocks[f"lan {name}"].chains for name in (bridge, "br1"))
    assert (one.rules, other.rules) == (
        ("ip saddr 10.10.0.0/24 masquerade",),
        ("ip saddr 10.10.0.0/25 masquerade",),
    )
    assert one.name != other.name
    nft = FakeNft()
    nft.apply(table.text(table.whole([guest("web", forward(80))._replace(lans=subnets)], Config(), 1)))


def test_isolated_hardware_address_stays_as_long_as_one_guest_has_it() -> None:
    one, other = (
        guest(name, endpoints=[endpoint(ip)])._replace(isolate=True)
        for name, ip in (("a", "10.10.0.5"), ("b", "10.10.0.6"))
    )
    both, rest = index_of(one, other), index_of(one)
    assert f"isolated {MAC}" in shared.blocks(both, index_of(other), Config())
    assert f"isolated {MAC}" in shared.blocks(rest, index_of(other), Config())
    assert f"isolated {MAC}" not in shared.blocks((), index_of(one), Config())
