"""Port arithmetic: from declared ranges to contiguous forwards, and which forwards collide."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise

from virt_forward.model import MAX_PORT, Declaration, Forward, Listen, PortForward, Range, Span, Subnet
from virt_forward.namedtuple import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Protocol, TypeVar

    T = TypeVar("T", bound="AtPort")
    ByPort = Mapping[str, tuple[Sequence[int], Sequence[T]]]
    """By protocol, the ports of items in order, and the items in the same order."""

    S = TypeVar("S", Span, Forward)

    class AtPort(Protocol):
        """Anything that has a protocol and a port."""

        @property
        def proto(self) -> str:
            """Return the protocol."""

        @property
        def port(self) -> int:
            """Return the port."""


Kind = tuple[Listen, int, str | None]
"""All of a forward but its ports: what it listens on, the offset of its ports, and the MAC."""


def kind(forward: Forward) -> Kind:
    """Return what the parts of one declared forward have in common."""
    return forward.listen, forward.offset, forward.mac


def by_port(items: Iterable[T]) -> ByPort[T]:
    """Return items so that those of a span of ports are found without a look at all others."""
    groups: dict[str, list[T]] = {}
    for item in sorted(items, key=lambda item: item.port):
        groups.setdefault(item.proto, []).append(item)
    return {proto: ([item.port for item in group], group) for proto, group in groups.items()}


def between(items: ByPort[T], proto: str, span: Span) -> Sequence[T]:
    """Return the items of a protocol on the ports of ``span``, by port."""
    numbers, found = items.get(proto, ((), ()))
    return found[bisect_left(numbers, span.start) : bisect_right(numbers, span.end)]


def expand(
    declaration: Declaration, excluded: Callable[[PortForward], Iterable[Span]] = lambda _: ()
) -> tuple[Forward, ...]:
    """Return the forwards of a declaration, excluded ports taken out, in document order.

    ``excluded`` returns the ports that a ``<portForward>`` leaves to the host.
    """
    return tuple(
        forward for item in declaration.port_forwards for forward in expand_one(item, excluded(item))
    )


def names_no_port(item: PortForward) -> bool:
    """Tell whether a ``<portForward>`` means every (other) port of its address."""
    return all(r.exclude for r in item.ranges)


def expand_one(item: PortForward, excluded: Iterable[Span] = ()) -> tuple[Forward, ...]:
    """Return the contiguous pieces of one ``<portForward>``, without the ``excluded`` ports.

    A ``<range>`` of a single port keeps it even if it is ``excluded``.
    """
    return tuple(pieces(item, excluded))


def pieces(item: PortForward, excluded: Iterable[Span] = ()) -> Iterator[Forward]:
    """Yield what :func:`expand_one` returns: ranges that overlap may have too many to have them all."""
    declared = [r.span for r in item.ranges if r.exclude]
    holes = merge(declared)
    wide = merge([*declared, *excluded])
    mapped = [r for r in item.ranges if not r.exclude] or [Range(1, MAX_PORT, 1)]
    listen, mac = item.listen, item.mac
    for r in mapped:
        for span in subtract(r.span, holes if r.start == r.end else wide):
            yield Forward.of(listen, span, r.offset, mac)


def merge(spans: Iterable[Span]) -> list[Span]:
    """Return spans in order, those that overlap or touch as one."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1].end + 1:
            merged[-1] = Span(merged[-1].start, max(end, merged[-1].end))
        else:
            merged.append(Span(start, end))
    return merged


def overlapping(spans: Sequence[S], span: Span) -> Sequence[S]:
    """Return those of ``spans`` that overlap ``span``; they are in order, and do not overlap each other."""
    first = bisect_left(spans, span.start, key=lambda each: each.end)
    return spans[first : bisect_right(spans, span.end, key=lambda each: each.start)]


def subtract(span: Span, holes: Sequence[Span]) -> list[Span]:
    """Return what is left of ``span`` without ``holes``, which are merged."""
    if not holes:
        return [span]
    left, end = span
    pieces = []
    for hole_start, hole_end in overlapping(holes, span):
        if hole_start > left:
            pieces.append(Span(left, hole_start - 1))
        left = hole_end + 1
    return [*pieces, Span(left, end)] if left <= end else pieces


def merged(forwards: Iterable[Forward]) -> dict[Listen, list[Span]]:
    """Return the ports of forwards in order, by what these listen on."""
    return {listen: merge(each.span for each in group) for listen, group in by_listen(forwards).items()}


def cut(forward: Forward, held: Mapping[Listen, Sequence[Span]]) -> tuple[list[Forward], list[Forward]]:
    """Return ``forward`` in pieces: those with ports that are ``held`` (see ``merged``), and the others."""
    spans, span = held.get(forward.listen, ()), forward.span
    inside = [Span(max(start, span.start), min(end, span.end)) for start, end in overlapping(spans, span)]
    own, new = (
        [Forward.of(forward.listen, each, forward.offset, forward.mac) for each in found]
        for found in (inside, subtract(span, spans))
    )
    return own, new


class Spans:
    """Forwards in order of their ports; quick to search where few or none of them overlap."""

    def __init__(self, forwards: Iterable[Forward]) -> None:
        self._forwards = sorted(forwards, key=lambda forward: forward.start)
        self._starts = [forward.start for forward in self._forwards]
        # The highest port so far: in order even where forwards do overlap.
        self._reached = list(accumulate((forward.end for forward in self._forwards), max))

    def overlapping(self, span: Span) -> list[Forward]:
        """Return those with a port of ``span``, by their first port."""
        first = bisect_left(self._reached, span.start)
        if first == len(self._starts) or span.end < self._starts[first]:
            return []
        last = bisect_right(self._starts, span.end, first)
        return [forward for forward in self._forwards[first:last] if span.start <= forward.end]


def colliding(forwards: Iterable[Forward], others: Iterable[Forward]) -> list[Forward]:
    """Return those of ``forwards`` that collide with one of ``others``."""
    groups = spans_by_listen(others)
    return [
        forward
        for forward in forwards
        if forward.listen in groups and groups[forward.listen].overlapping(forward.span)
    ]


def spans_by_listen(forwards: Iterable[Forward]) -> dict[Listen, Spans]:
    """Return forwards so that those which collide with another one are found without a look at all."""
    return {listen: Spans(group) for listen, group in by_listen(forwards).items()}


def by_listen(forwards: Iterable[Forward]) -> dict[Listen, list[Forward]]:
    """Return forwards in groups of which only the ports tell whether two collide.

    This is the one rule of collisions: of two that listen alike and have a port in common, only one can be
    open. Where forwards that do not listen alike meet, the more specific one gets the packet
    (``Listen.specificity``).
    """
    groups: dict[Listen, list[Forward]] = {}
    for forward in forwards:
        groups.setdefault(forward.listen, []).append(forward)
    return groups


def specificity(forward: Forward) -> tuple[int, ...]:
    """Return a sort key that puts the more specific forward first, and of equals that with the lower port."""
    return (*forward.listen.specificity(), forward.start)


def first_collision(forwards: Iterable[Forward]) -> tuple[Forward, Forward] | None:
    """Return two of ``forwards`` that collide, the one with the lower port first, or None."""
    for group in by_listen(forwards).values():
        group.sort(key=lambda forward: forward.start)
        for before, after in pairwise(group):
            if after.start <= before.end:
                return before, after
    return None


def inside(inner: Subnet, outer: Subnet) -> bool:
    """Tell whether a network lies within another of the same family, or is the same."""
    return (
        inner.version == outer.version
        and inner.prefixlen >= outer.prefixlen
        and inner.network_address in outer
    )
