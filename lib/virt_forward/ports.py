"""Port arithmetic: from declared ranges to contiguous forwards, and which forwards collide."""

from collections.abc import Callable, Iterable
from itertools import pairwise

from virt_forward.model import MAX_PORT, Declaration, Forward, PortForward, Range, Subnet

Span = tuple[int, int]


def expand(
    declaration: Declaration, spared: Callable[[PortForward], Iterable[Span]] = lambda _: ()
) -> tuple[Forward, ...]:
    """Return the forwards of a declaration, excluded ports taken out, in document order.

    ``spared`` tells which ports a forward that names none of its own leaves to the host.
    """
    return tuple(
        forward
        for item in declaration.port_forwards
        for forward in expand_one(item, spared(item) if names_no_port(item) else ())
    )


def names_no_port(item: PortForward) -> bool:
    """Tell whether a ``<portForward>`` means every (other) port of its address."""
    return all(r.exclude for r in item.ranges)


def expand_one(item: PortForward, spared: Iterable[Span] = ()) -> tuple[Forward, ...]:
    """Return the contiguous pieces of one ``<portForward>``."""
    holes = sorted([*((r.start, r.end) for r in item.ranges if r.exclude), *spared])
    mapped = [r for r in item.ranges if not r.exclude] or [Range(1, MAX_PORT, 1)]
    return tuple(
        Forward(item.proto, start, end, start - r.start + r.to, item.address, item.dev, item.source, item.mac)
        for r in mapped
        for start, end in subtract((r.start, r.end), holes)
    )


def subtract(span: Span, holes: Iterable[Span]) -> list[Span]:
    """Return what is left of ``span`` without ``holes`` (sorted by their first port)."""
    left, end = span
    pieces = []
    for hole_start, hole_end in holes:
        if hole_end < left or hole_start > end:
            continue
        if hole_start > left:
            pieces.append((left, hole_start - 1))
        left = max(left, hole_end + 1)
    return [*pieces, (left, end)] if left <= end else pieces


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
