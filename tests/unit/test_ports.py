"""Port arithmetic, against sets of single ports."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from itertools import combinations, pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from unit import strategies as make
from unit.build import collide, forward
from virt_forward import ports
from virt_forward.config import ReservedPort
from virt_forward.metadata import values
from virt_forward.model import MAX_PORT, Declaration, Forward, Listen, PortForward, Proto, Range, Span, Subnet

spans = st.tuples(st.integers(1, 60), st.integers(0, 20)).map(lambda pair: Span(pair[0], sum(pair)))
holes = st.lists(spans, max_size=6)


def members(found: list[Span]) -> set[int]:
    return {port for start, end in found for port in range(start, end + 1)}


@given(spans, spans)
def test_span_overlaps_and_contains_as_its_ports_do(one: Span, other: Span) -> None:
    assert one.overlaps(other) == bool(members([one]) & members([other]))
    assert one.contains(other) == (members([one]) >= members([other]))


def test_span_as_text() -> None:
    assert (str(Span(80, 80)), str(Span(80, 90))) == ("80", "80-90")


@given(spans, holes)
def test_subtract_gives_the_difference_in_order_and_in_the_fewest_pieces(
    span: Span, taken: list[Span]
) -> None:
    left = ports.subtract(span, ports.merge(taken))
    assert members(left) == members([span]) - members(taken)
    assert all(start <= end for start, end in left)
    assert all(before[1] + 1 < after[0] for before, after in pairwise(left))


def mapped(found: tuple[Forward, ...]) -> dict[int, int]:
    """Return where each host port leads; one that leads to two places is an error."""
    pairs = [(port, port - f.start + f.to) for f in found for port in range(f.start, f.end + 1)]
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


@given(
    st.lists(st.tuples(spans, st.integers(0, 1000)), max_size=1),
    st.lists(spans, max_size=4),
    st.lists(spans, max_size=2),
)
def test_expand_maps_each_port_as_its_range_says(
    included: list[tuple[Span, int]],
    excluded: list[Span],
    excluded_by_host: list[Span],
) -> None:
    ranges = [Range(*span, span[0] + shift) for span, shift in included]
    ranges += [Range(*span, span[0], exclude=True) for span in excluded]
    item = PortForward("udp", tuple(ranges), ip_address("203.0.113.7"), "enp1s0", ip_network("192.0.2.0/24"))
    whole = {port: port + shift for span, shift in included for port in members([span])}
    if not included:
        whole = {port: port for port in range(1, MAX_PORT + 1)}
    alone = any(start == end for (start, end), _ in included)
    taken = members(excluded) | members([] if alone else excluded_by_host)
    expected = {port: to for port, to in whole.items() if port not in taken}
    found = ports.expand(Declaration((item,)), lambda _: excluded_by_host)
    assert mapped(found) == expected
    assert all(f[4:] == item[2:] and f.proto == "udp" for f in found)


def test_expand_keeps_a_port_that_is_named_by_itself() -> None:
    every = PortForward("tcp", (Range(1, 21, 1, exclude=True),), ip_address("203.0.113.7"))
    some = PortForward("tcp", (Range(22, 22, 22), Range(79, 90, 79)))
    found = ports.expand(Declaration((every, some)), lambda _: [Span(22, 22), Span(80, 81)])
    assert [(f.start, f.end) for f in found] == [(23, 79), (82, MAX_PORT), (22, 22), (79, 79), (82, 90)]


@given(holes)
def test_merge_keeps_the_ports_and_leaves_gaps_between_spans(taken: list[Span]) -> None:
    merged = ports.merge(taken)
    assert members(merged) == members(taken)
    assert all(before[1] + 1 < after[0] for before, after in pairwise(merged))


@given(spans, holes)
def test_overlapping_finds_every_span(span: Span, taken: list[Span]) -> None:
    merged = ports.merge(taken)
    expected = [one for one in merged if members([one]) & members([span])]
    assert ports.overlapping(merged, span) == expected


@given(spans, st.lists(st.tuples(st.sampled_from(("tcp", "udp")), st.integers(1, 80))))
def test_between_finds_every_item(span: Span, made: list[tuple[Proto, int]]) -> None:
    items = [ReservedPort(*pair) for pair in made]
    expected = sorted(item for item in items if item.proto == "tcp" and item.port in members([span]))
    assert sorted(ports.between(ports.by_port(items), "tcp", span)) == expected


@given(spans, holes, st.integers(0, 1000))
def test_cut_tells_held_ports_from_others_and_keeps_where_they_lead(
    span: Span, taken: list[Span], shift: int
) -> None:
    whole = forward(*span, span.start + shift, dev="enp1s0", mac="52:54:00:a0:8f:2c")
    alike = [forward(*each, dev="enp1s0") for each in taken]
    others = [forward(1, 100), forward(1, 100, proto="udp", dev="enp1s0")]
    own, new = ports.cut(whole, ports.merged([*alike, *others]))
    assert members([each.span for each in own]) == members([span]) & members(taken)
    assert members([each.span for each in new]) == members([span]) - members(taken)
    assert {each._replace(start=0, end=0, to=each.offset) for each in (*own, *new)} == {
        whole._replace(start=0, end=0, to=shift)
    }


class Counted(list[Span]):
    """Spans that count how many of them are looked at."""

    looks = 0

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        self.looks += len(found) if isinstance(key, slice) else 1
        return found


def test_subtract_looks_at_the_holes_of_its_span_only() -> None:
    every_other = Counted(Span(port, port) for port in range(1, MAX_PORT, 2))
    assert ports.subtract(Span(1000, 1003), every_other) == [(1000, 1000), (1002, 1002)]
    assert every_other.looks < 50


forwards = st.lists(make.forwards(), min_size=2, max_size=8)


@given(forwards, forwards)
def test_colliding_finds_what_collides_with_any_other(some: list[Forward], others: list[Forward]) -> None:
    expected = [one for one in some if any(collide(one, other) for other in others)]
    assert ports.colliding(some, others) == expected


@given(forwards)
def test_collide_is_symmetric_and_specificity_decides_between_all_others(found: list[Forward]) -> None:
    for one, other in combinations(found, 2):
        assert collide(one, other) == collide(other, one)
        meet = one.proto == other.proto and one.start <= other.end and other.start <= one.end
        alike = one.listen.specificity() == other.listen.specificity()
        if meet and not collide(one, other) and alike:
            # Neither is more specific: no packet can be meant by both.
            assert apart(one, other)


def apart(one: Forward, other: Forward) -> bool:
    """Tell whether no packet matches both."""
    limits = [limit for limit in (one.address, other.address, one.source, other.source) if limit]
    if len({limit.version for limit in limits}) > 1:
        return True
    if one.dev and other.dev and one.dev != other.dev:
        return True
    if one.address and other.address and one.address != other.address:
        return True
    return bool(one.source and other.source and not one.source.overlaps(other.source))


def test_specificity_order() -> None:
    ranked = [
        forward(address="203.0.113.7", dev="enp1s0", source="192.0.2.0/24"),
        forward(address="203.0.113.7", dev="enp1s0"),
        forward(address="203.0.113.7", source="192.0.2.0/24"),
        forward(address="203.0.113.7"),
        forward(dev="enp1s0", source="192.0.2.0/25"),
        forward(dev="enp1s0", source="192.0.2.0/24"),
        forward(dev="enp1s0"),
        forward(source="192.0.2.1"),
        forward(source="192.0.2.0/24"),
        forward(source="0.0.0.0/0"),
        forward(),
    ]
    backwards = ranked[::-1]
    assert sorted(backwards, key=ports.specificity) == ranked


@given(forwards)
def test_first_collision_finds_one_if_any(found: list[Forward]) -> None:
    colliding = [pair for pair in combinations(found, 2) if collide(*pair)]
    told = ports.first_collision(found)
    assert bool(told) == bool(colliding)
    if told:
        assert told in colliding or told[::-1] in colliding


networks = st.sampled_from([source for source in make.SOURCES if source])


@given(networks, networks)
def test_inside(one: Subnet, other: Subnet) -> None:
    alike = one.version == other.version
    assert ports.inside(one, other) == (alike and one.subnet_of(other))  # type: ignore[arg-type]


def test_limits_have_one_order_everywhere() -> None:
    """The metadata, the records and the index go by this table; a forward is made from a Listen."""
    limits = tuple(values.LIMITS)
    assert Listen._fields == ("proto", *limits)
    assert Forward._fields == ("proto", "start", "end", "to", *limits, "mac")
    assert set(limits) <= set(PortForward._fields)
