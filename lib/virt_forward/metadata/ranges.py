"""The ``<range>`` elements of one ``<portForward>``, changed where they stand.

Whatever is not about the ports that come or go stays as it was written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lxml import etree

from virt_forward import ports
from virt_forward.metadata import forwards, tree
from virt_forward.model import Forward, PortForward, Range, Span

_RANGE = f"{{{forwards.NAMESPACE}}}range"


def append(element: etree._Element, forward: Forward) -> None:
    """Add the ports of a forward to a ``<portForward>`` as its last ``<range>``."""
    added = tree.new_element(_RANGE, element)
    added.set("start", str(forward.start))
    if forward.end != forward.start:
        added.set("end", str(forward.end))
    if forward.shifted:
        added.set("to", str(forward.to))
    tree.append(element, added)


def exclude(element: etree._Element, item: PortForward, spans: Sequence[Span]) -> list[Forward]:
    """Take ports out of a ``<portForward>``, which goes with its last port; return what was removed."""
    pieces = ports.expand_one(item)
    met = [(piece, span) for piece in pieces for span in ports.overlapping(spans, piece.span)]
    spans = [*dict.fromkeys(span for _, span in met)]
    if ports.names_no_port(item):
        for span in spans:
            tree.append(element, _written_exclusion(element, span))
        if not ports.expand_one(item, spans):
            tree.remove(element)
    elif spans:
        _shorten_ranges(element, item, ports.merge(spans))
    return [_cut(piece, span) for piece, span in met]


def _cut(forward: Forward, span: Span) -> Forward:
    """Return the part of a forward on the ports of ``span``."""
    start, end = max(forward.start, span.start), min(forward.end, span.end)
    return forward._replace(start=start, end=end, to=start + forward.offset)


def _shorten_ranges(element: etree._Element, item: PortForward, spans: Sequence[Span]) -> None:
    ranges = [*zip(element.iterfind(_RANGE), item.ranges, strict=True)]
    for child, each in ranges:
        if not each.exclude and ports.overlapping(spans, each.span):
            _shorten(child, each, ports.subtract(each.span, spans))
    left = ports.merge(r.span for r in _read_ranges(element) if not r.exclude)
    for child, each in ranges:
        inside = each.exclude and not ports.subtract(each.span, spans)
        if inside and not ports.overlapping(left, each.span):
            tree.remove(child)
    excluded = ports.merge(r.span for r in _read_ranges(element) if r.exclude)
    if not any(ports.subtract(span, excluded) for span in left):
        tree.remove(element)


def _read_ranges(element: etree._Element) -> Iterator[Range]:
    for child in element.iterfind(_RANGE):
        start = int(child.get("start", ""))
        end, to = int(child.get("end", start)), int(child.get("to", start))
        yield Range(start, end, to, child.get("exclude") == "yes")


def _shorten(child: etree._Element, was: Range, left: list[Span]) -> None:
    """Leave of a ``<range>`` these spans: it goes, becomes shorter, or becomes two."""
    if not left:
        tree.remove(child)
        return
    parent = child.getparent()
    assert parent is not None
    at = parent.index(child)
    for number, span in enumerate(left):
        element = child
        if number:
            element = tree.new_element(_RANGE, child)
            parent.insert(at + number, element)
            before = parent[at + number - 1]
            element.tail, before.tail = before.tail, parent.text
        _set_span(element, span, was)


def _set_span(element: etree._Element, span: Span, was: Range) -> None:
    element.set("start", str(span.start))
    if span.end != span.start or "end" in element.attrib:
        element.set("end", str(span.end))
    if was.offset or "to" in element.attrib:
        element.set("to", str(span.start + was.offset))


def _written_exclusion(near: etree._Element, span: Span) -> etree._Element:
    element = tree.new_element(_RANGE, near)
    element.set("start", str(span.start))
    if span.end != span.start:
        element.set("end", str(span.end))
    element.set("exclude", "yes")
    return element
