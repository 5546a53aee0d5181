"""Port arithmetic: from declared ranges to contiguous forwards, and which forwards collide."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Protocol, TypeVar

from virt_forward.model import MAX_PORT, Declaration, Forward, PortForward, Range, Subnet

Span = tuple[int, int]


class AtPort(Protocol):
    """Anything that has a protocol and a port."""

    @property
    def proto(self) -> str:
        """Return the protocol."""

    @property
    def port(self) -> int:
        """Return the port."""


T = TypeVar("T", bound=AtPort)
ByPort = Mapping[str, tuple[Sequence[int], Sequence[T]]]
"""By protocol, the ports of items in order, and the items in the same order."""


def by_port(items: Iterable[T]) -> ByPort[T]:
    """Return items so that those of a span of ports are found without a look at all others."""
    groups: dict[str, list[T]] = {}
    for item in sorted(items, key=lambda item: item.port):
        groups.setdefault(item.proto, []).append(item)
    return {proto: ([item.port for item in group], group) for proto, group in groups.items()}


def between(items: ByPort[T], proto: str, start: int, end: int) -> Sequence[T]:
    """Return the items on the ports ``start``..``end``, by port."""
    numbers, found = items.get(proto, ((), ()))
    return found[bisect_left(numbers, start) : bisect_right(numbers, end)]


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
    declared = [(r.start, r.end) for r in item.ranges if r.exclude]
    holes = merge(declared)
    wide = merge([*declared, *excluded])
    mapped = [r for r in item.ranges if not r.exclude] or [Range(1, MAX_PORT, 1)]
    return tuple(
        Forward(item.proto, start, end, start - r.start + r.to, item.address, item.dev, item.source, item.mac)
        for r in mapped
        for start, end in subtract((r.start, r.end), holes if r.start == r.end else wide)
    )


def merge(spans: Iterable[Span]) -> list[Span]:
    """Return spans in order, those that overlap or touch as one."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def overlapping(spans: Sequence[Span], start: int, end: int) -> Sequence[Span]:
    """Return those of merged ``spans`` that have a port of ``start``..``end``."""
    first = bisect_left(spans, start, key=lambda span: span[1])
    return spans[first : bisect_right(spans, end, key=lambda span: span[0])]


def subtract(span: Span, holes: Sequence[Span]) -> list[Span]:
    """Return what is left of ``span`` without ``holes``, which are merged."""
    left, end = span
    pieces = []
    for hole_start, hole_end in overlapping(holes, left, end):
        if hole_start > left:
            pieces.append((left, hole_start - 1))
        left = hole_end + 1
    return [*pieces, (left, end)] if left <= end else pieces


class Spans:
    """Forwards in order of their ports; quick to search where few or none of them overlap."""

    def __init__(self, forwards: Iterable[Forward]) -> None:
        self._forwards = sorted(forwards, key=lambda forward: forward.start)
        # The highest port so far: in order even where forwards do overlap.
        self._reached = list(accumulate((forward.end for forward in self._forwards), max))

    def overlapping(self, start: int, end: int) -> list[Forward]:
        """Return those that have a port of ``start``..``end``."""
        first = bisect_left(self._reached, start)
        last = bisect_right(self._forwards, end, key=lambda forward: forward.start)
        return [forward for forward in self._forwards[first:last] if start <= forward.end]


def collide(one: Forward, other: Forward) -> bool:
    """Tell whether neither forward is the more special one where they meet.

    The more special wins: an address before any, then a device before any, then a source
    network inside another. Only equals collide.
    """
    return (
        one.proto == other.proto
        and one.start <= other.end
        and other.start <= one.end
        and (one.address, one.dev, one.source) == (other.address, other.dev, other.source)
    )


def specificity(forward: Forward) -> tuple[bool, bool, int, int]:
    """Return a sort key that puts the more special forward first."""
    prefix = -1 if forward.source is None else forward.source.prefixlen
    return (forward.address is None, forward.dev is None, -prefix, forward.start)


def first_collision(forwards: Iterable[Forward]) -> tuple[Forward, Forward] | None:
    """Return two forwards of one guest that claim the same host port, or None."""
    groups: dict[tuple[object, ...], list[Forward]] = {}
    for forward in forwards:
        key = (forward.proto, forward.address, forward.dev, forward.source)
        groups.setdefault(key, []).append(forward)
    for group in groups.values():
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
