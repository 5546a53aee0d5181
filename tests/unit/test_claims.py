"""Who holds which host port: the index, and what it lets through."""

from __future__ import annotations

from ipaddress import ip_address
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unit import strategies as make
from unit.build import MAC, collide, endpoint, forward, guest
from unit.counted import Looks
from virt_forward import names, text
from virt_forward.claims import index as claims
from virt_forward.claims.index import EndpointRow, GatewayRow, PortRow, SubnetRow
from virt_forward.model import LEARNED, ORIGINS, Forward, Guest, Nic, Origin

A = guest("a", forward(80))
# Another guest's endpoint would be a conflict of its own.
B_ENDPOINT = endpoint("198.51.100.201", mac="52:54:00:00:00:02")


def index_of(*guests: Guest) -> claims.Index:
    return tuple(row for item in guests for row in claims.rows(item))


def kinds(item: Guest) -> list[str]:
    """Return what the rows of a guest are: the states of its claims, and the types of the others."""
    return [row.state if isinstance(row, PortRow) else type(row).__name__ for row in claims.rows(item)]


ENDPOINT, SUBNET, GATEWAY = EndpointRow.__name__, SubnetRow.__name__, GatewayRow.__name__
LOOKUP, ISOLATED = claims.LookupRow.__name__, claims.IsolatedRow.__name__


def test_rows_follow_the_state_of_the_guest() -> None:
    assert kinds(A) == ["open", ENDPOINT, SUBNET, SUBNET, LOOKUP]
    assert kinds(A._replace(phase="prepared")) == ["held", ENDPOINT]
    assert kinds(A._replace(endpoints=())) == ["held"]
    assert kinds(A._replace(forwards=(), conflicts=((forward(80), "why"),))) == ["kept out", ENDPOINT]
    isolated = [SUBNET, SUBNET, LOOKUP, LOOKUP, ISOLATED]
    assert kinds(A._replace(forwards=(), isolate=True)) == [ENDPOINT, *isolated]
    # an isolated guest of which no address is known
    unknown = A._replace(forwards=(), isolate=True, endpoints=())
    assert kinds(unknown) == []
    assert kinds(unknown._replace(nics=(Nic(MAC, "bridge", "virbr0"),))) == isolated
    gateway = A._replace(gateways=(ip_address("198.51.100.1"),))
    assert kinds(gateway) == ["open", ENDPOINT, SUBNET, SUBNET, GATEWAY, LOOKUP]
    assert kinds(gateway._replace(phase="prepared")) == ["held", ENDPOINT]
    # of two families only one has an endpoint
    assert kinds(A._replace(forwards=(forward(80, address="2001:db8::1"),)))[0] == "held"


@pytest.mark.parametrize(
    "wanted",
    [
        forward(80),
        forward(70, 90),
        forward(80, address="203.0.113.7"),
        forward(80, dev="enp1s0"),
        forward(80, source="192.0.2.0/24"),
    ],
)
def test_second_equal_claim_is_refused_and_names_the_first_guest(wanted: object) -> None:
    first = A._replace(forwards=(wanted,))  # type: ignore[arg-type]
    second = guest("b", wanted, endpoints=[B_ENDPOINT])  # type: ignore[arg-type]
    resolved = claims.resolve_conflicts(index_of(first), second)
    assert resolved.forwards == ()
    start = wanted.start  # type: ignore[attr-defined]
    assert resolved.conflicts == ((wanted, f"host port tcp/{start} is taken by guest a"),)


@pytest.mark.parametrize(
    "wanted",
    [
        forward(81),
        forward(80, proto="udp"),
        forward(80, address="203.0.113.7"),
        forward(80, dev="enp1s0"),
        forward(80, source="192.0.2.0/24"),
    ],
)
def test_other_port_or_more_specific_claim_does_not_conflict(wanted: object) -> None:
    second = guest("b", wanted, endpoints=[B_ENDPOINT])  # type: ignore[arg-type]
    assert claims.resolve_conflicts(index_of(A), second) == second


def test_claim_without_rules_yet_conflicts() -> None:
    waiting = A._replace(phase="prepared", endpoints=())
    assert claims.resolve_conflicts(
        index_of(waiting), guest("b", forward(80), endpoints=[B_ENDPOINT])
    ).conflicts


def test_claim_kept_out_conflicts_with_none() -> None:
    out = A._replace(forwards=(), conflicts=((forward(80), "why"),))
    assert not claims.resolve_conflicts(
        index_of(out), guest("b", forward(80), endpoints=[B_ENDPOINT])
    ).conflicts


def test_address_declared_for_two_guests_on_a_bridge_conflicts() -> None:
    second = claims.resolve_conflicts(index_of(A), guest("b", forward(81)))
    assert second.endpoints == ()
    reason = "address 198.51.100.200 on virbr0 is already that of guest a"
    assert second.conflicts == ((forward(81), reason),)
    elsewhere = guest("b", forward(81), endpoints=[endpoint(bridge="virbr9")])
    assert claims.resolve_conflicts(index_of(A), elsewhere) == elsewhere


def of(name: str, origin: Origin, ip: str = "198.51.100.200") -> Guest:
    return guest(name, forward({"a": 80, "b": 81}[name]), endpoints=[endpoint(ip)._replace(origin=origin)])


FIRM: tuple[Origin, ...] = ("declared", "reserved")


@pytest.mark.parametrize("second", ORIGINS)
@pytest.mark.parametrize("first", ORIGINS)
def test_address_of_two_guests_goes_to_the_stronger_origin(first: Origin, second: Origin) -> None:
    a, b = of("a", first), of("b", second)
    resolved = claims.resolve_conflicts(index_of(a), b)
    overruled = claims.endpoints_lost(index_of(a), [resolved])
    if first in FIRM and second in FIRM:
        assert (bool(resolved.conflicts), resolved.endpoints, overruled) == (True, (), {})
    elif ORIGINS.index(second) < ORIGINS.index(first):
        assert (resolved, overruled) == (b, {a.uuid: {(ip_address("198.51.100.200"), "virbr0")}})
    else:
        # It waits for an address of its own; that refuses nobody's start.
        assert (resolved, overruled) == (b._replace(endpoints=()), {})
    kept = [bool(item.endpoints) for item in claims.without_weaker_endpoints([a, b])]
    assert kept == [
        first in FIRM or ORIGINS.index(first) <= ORIGINS.index(second),
        second in FIRM or ORIGINS.index(second) < ORIGINS.index(first),
    ]


def test_address_on_another_bridge_is_another_address() -> None:
    a, b = of("a", "neighbour"), of("b", "declared")
    b = b._replace(endpoints=(b.endpoints[0]._replace(bridge="virbr9"),))
    assert claims.resolve_conflicts(index_of(a), b) == b
    assert claims.endpoints_lost(index_of(a), [b]) == {}
    assert claims.without_weaker_endpoints([a, b]) == [a, b]


@given(st.permutations(range(5)), st.lists(st.sampled_from(ORIGINS), min_size=5, max_size=5))
def test_learned_address_goes_to_one_guest_at_most_by_the_strongest_origin(
    order: list[int], origins: list[Origin]
) -> None:
    found = claims.without_weaker_endpoints(
        guest(str(number), endpoints=[endpoint()._replace(origin=origins[number])]) for number in order
    )
    held = [item.endpoints[0].origin for item in found if item.endpoints]
    assert len([origin for origin in held if origin in LEARNED]) <= 1
    assert min(held, key=ORIGINS.index) == min(origins, key=ORIGINS.index)
    assert claims.without_weaker_endpoints(found) == found


@given(st.lists(make.guests(), min_size=1, max_size=5), make.guests())
def test_near_claims_settle_a_guest_as_all_claims_do(others: list[Guest], item: Guest) -> None:
    others = [other for other in others if other.uuid != item.uuid]
    index = index_of(*others)
    near = claims.SearchIndex(index).near(item)
    assert claims.resolve_conflicts(near, item) == claims.resolve_conflicts(index, item)
    assert set(near) <= set(index)
    assert claims.SearchIndex((*index, *claims.rows(item))).near(item) == near


def test_veto_precedes_conflicts_and_can_be_withdrawn() -> None:
    vetoed = claims.resolve_conflicts((), A, lambda item: "no" if item.start == 80 else None)
    assert vetoed.conflicts == ((forward(80), "no"),)
    assert claims.resolve_conflicts((), vetoed) == A


def test_without_leaves_out_the_claims_of_the_guest_itself() -> None:
    index = claims.without(index_of(A), [A.uuid])
    assert index == ()
    assert claims.resolve_conflicts(index, A) == A


def resolve_all(guests: tuple[Guest, ...]) -> dict[str, Guest]:
    index: claims.Index = ()
    found = {}
    for item in guests:
        found[item.uuid] = claims.resolve_conflicts(index, item)
        index += claims.rows(found[item.uuid])
    return found


three = st.tuples(*(make.guests(number) for number in range(3)))


@given(three)
def test_settle_lets_no_two_equal_claims_through(guests: tuple[Guest, ...]) -> None:
    resolved = resolve_all(guests)
    held = [(item.uuid, f) for item in resolved.values() for f in item.forwards]
    assert not [
        (one, other)
        for one_uuid, one in held
        for other_uuid, other in held
        if one_uuid != other_uuid and collide(one, other)
    ]


@given(three)
def test_settle_loses_no_forward(guests: tuple[Guest, ...]) -> None:
    for before, after in zip(guests, resolve_all(guests).values(), strict=True):
        kept = [*after.forwards, *(item for item, _ in after.conflicts)]
        assert sorted(kept, key=str) == sorted(before.forwards, key=str)


@given(three)
def test_settle_does_not_depend_on_order_without_conflicts(guests: tuple[Guest, ...]) -> None:
    free = resolve_all(guests)
    if any(item.conflicts for item in free.values()):
        return
    for order in permutations(guests):
        assert resolve_all(order) == free


def assert_named_alike(item: Guest) -> None:
    for row in claims.rows(item):
        assert names.suffix(row.name, row.uuid) == names.suffix(item.name, item.uuid)
        assert text.word(row.name) == text.word(item.name)


@given(make.guests(), st.text())
def test_row_name_gives_the_same_chains_and_messages_as_the_guests(item: Guest, name: str) -> None:
    assert_named_alike(item)
    assert_named_alike(item._replace(name=name))


ODD = ["a b", "-a", "x" * 41, "x" * 61, "x" * 500, "é" * 99, "a\tb" * 50, "x" * 60 + "\0"]


@pytest.mark.parametrize("name", ODD)
def test_row_name_keeps_enough_of_an_odd_one(name: str) -> None:
    assert_named_alike(A._replace(name=name))


@given(st.lists(make.forwards(), max_size=8), st.lists(make.forwards(), max_size=8))
def test_conflicts_are_those_of_every_pair_that_collides(mine: list[Forward], theirs: list[Forward]) -> None:
    others = index_of(guest("b", *theirs))
    found = claims.conflicts(others, mine)
    assert set(found) == {one for one in mine for other in theirs if collide(one, other)}
    for one, reason in found.items():
        first = next(other for other in theirs if collide(one, other))
        assert reason == f"host port {one.proto}/{max(one.start, first.start)} is taken by guest b"


@pytest.mark.parametrize("meet", [True, False])
def test_conflicts_costs_no_more_than_what_collides(meet: bool) -> None:
    looks, number = Looks(), 1000
    spans = range(1000, 1000 + 10 * number, 10)
    mine = looks.forwards(forward(port) for port in spans)
    theirs = index_of(guest("b", *(forward(port if meet else port + 5) for port in spans)))
    assert len(claims.conflicts(theirs, mine)) == (number if meet else 0)
    assert looks.number < 50 * number
