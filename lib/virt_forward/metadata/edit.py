"""Editing the ``<forwards>`` of a domain where they stand: all that is not asked for stays as it is.

The element is changed as a tree and never rendered from values, so that comments, attributes, prefixes
and the order of elements survive.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Sequence

from lxml import etree

from virt_forward import ports, portspec
from virt_forward.errors import VirtForwardError
from virt_forward.metadata import forwards, ranges, tree, values, xml
from virt_forward.metadata.domain import parse_domain
from virt_forward.metadata.spec import Spec
from virt_forward.metadata.tree import Submission, submission
from virt_forward.model import MAX_PORT, Domain, Forward, Listen, PortForward, Span, Subnet
from virt_forward.namedtuple import NamedTuple

_PORT_FORWARD = f"{{{forwards.NAMESPACE}}}portForward"
_ATTRIBUTES = (*values.LIMITS, "mac")


class Where(NamedTuple):
    """What narrows the forwards that a SPEC means and has no place in it; None where it was not given."""

    dev: str | None = None
    source: Subnet | None = None
    mac: str | None = None


class NotDeclaredError(VirtForwardError):
    """Nothing that a SPEC names is declared."""


class Removed(NamedTuple):
    """The forwards that were removed from a document, and by SPEC why there was nothing to remove."""

    forwards: tuple[Forward, ...]
    absent: dict[Spec, NotDeclaredError]


class Document:
    """The ``<forwards>`` of one domain XML while it is edited.

    Raises VirtForwardError where the XML, or what it declares to us, is wrong: it is not edited then.
    """

    def __init__(self, domain: bytes) -> None:
        parse_domain(domain)
        root = xml.parse(domain, "domain XML", comments=True)
        inner = root.find("domain")  # in a domstatus
        self._tree = root if inner is None else inner
        self._root = self._tree.find(f"metadata/{forwards.ROOT}")
        if self._root is not None:
            # A second prefix that nothing uses is what libvirt has declared; new elements must not get it.
            kept = [name for name, uri in self._root.nsmap.items() if name and uri != forwards.NAMESPACE]
            etree.cleanup_namespaces(self._root, keep_ns_prefixes=kept)
        self.before = self.submission()

    @property
    def changed(self) -> bool:
        """Whether the document is not as it was read."""
        return self.submission() != self.before

    def domain(self) -> Domain:
        """Return the domain, with what it declares as it is now."""
        return parse_domain(etree.tostring(self._tree, with_tail=False, encoding="utf-8"))

    def forwards(self) -> tuple[Forward, ...]:
        """Return the declared forwards, as they are now."""
        return tuple(forward for _, item in self._items() for forward in ports.expand_one(item))

    def add(self, wanted: Iterable[Forward]) -> list[Forward]:
        """Declare forwards; return those that were not declared already.

        Raises VirtForwardError if one overlaps another one.
        """
        items = self._items()
        declared = _Declared(items)
        homes = _homes(items)
        return [forward for forward in wanted if self._add(forward, declared, homes)]

    def _add(self, forward: Forward, declared: _Declared, homes: _Homes) -> bool:
        meeting = declared.colliding(forward)
        if meeting and _same(meeting, forward):
            return False
        if meeting:
            one, other = portspec.render(forward), portspec.render(meeting[0])
            raise VirtForwardError(
                f"{one} overlaps {other}, and each host port leads to one place only",
                f"use another port, or remove {other} first",
            )
        root = self._root if self._root is not None else self._new_root()
        ranges.append(_parent(root, forward, homes), forward)
        declared.add(forward)
        return True

    def _new_root(self) -> etree._Element:
        metadata = self._tree.find("metadata")
        if metadata is None:
            metadata = etree.SubElement(self._tree, "metadata")
        self._root = etree.SubElement(metadata, forwards.ROOT, nsmap={tree.KEY: forwards.NAMESPACE})
        return self._root

    def remove(self, specs: Iterable[Spec], where: Where = Where()) -> Removed:  # noqa: B008 - it is frozen
        """Remove the ports of SPECs from the declaration.

        Of forwards that listen alike but for ``dev``, ``source`` and ``mac``, those are meant that have
        exactly what ``where`` says; if there are none, the one that has at least that.
        Raises VirtForwardError if it is not clear which one is meant.
        """
        items = self._items()
        declared = _Declared(items)
        spans: dict[_Kind, list[Span]] = {}
        absent: dict[Spec, NotDeclaredError] = {}
        for spec in specs:
            try:
                spans.setdefault(_meant(declared, spec, where), []).append(spec.span)
            except NotDeclaredError as error:
                absent[spec] = error
        removed = [
            forward
            for element, item in items
            for forward in ranges.exclude(element, item, ports.merge(spans.get(_kind(item), ())))
        ]
        self._drop_empty()
        return Removed(tuple(removed), absent)

    def remove_all(self) -> list[Forward]:
        """Remove every ``<portForward>``; ``<host>``, ``isolate`` and comments stay."""
        removed = list(self.forwards())
        for element, _ in self._items():
            tree.remove(element)
        self._drop_empty()
        return removed

    def submission(self) -> Submission:
        """Return the element as libvirt takes it, so that its own spelling comes out again."""
        return Submission(None) if self._root is None else submission(self._root)

    def text(self) -> str:
        """Return the element as text that stands on its own; empty if there is none."""
        if self._root is None:
            return ""
        root = tree.detached(self._root)
        if not root.text:
            etree.indent(root)
        return etree.tostring(root, encoding="unicode")

    def _items(self) -> list[tuple[etree._Element, PortForward]]:
        """Return each ``<portForward>`` with its values, which are valid."""
        if self._root is None:
            return []
        bare = tree.detached(self._root)
        etree.strip_elements(bare, etree.Comment, etree.ProcessingInstruction, with_tail=False)
        declaration, _ = forwards.parse_forwards(bare)
        return [*zip(self._root.iterfind(_PORT_FORWARD), declaration.port_forwards, strict=True)]

    def _drop_empty(self) -> None:
        """Drop the element if nothing is left in it, not even a comment."""
        if self._root is not None and not len(self._root) and not self._root.attrib:
            tree.remove(self._root)
            self._root = None


_Item = tuple[etree._Element, PortForward]
_Kind = tuple[Listen, str | None]
"""What the forwards of one ``<portForward>`` have in common."""

_Homes = dict[_Kind, list[tuple[etree._Element, list[Span]]]]
"""The ``<portForward>``s that ranges can be added to, in order, with the ports that each excludes."""


def _kind(item: PortForward | Forward) -> _Kind:
    return item.listen, item.mac


class _Declared:
    """Declared forwards, by what they listen on and in the order of their ports; none of them collide."""

    def __init__(self, items: Iterable[_Item]) -> None:
        self._groups = ports.by_listen(piece for _, item in items for piece in ports.expand_one(item))
        for group in self._groups.values():
            group.sort(key=_start)

    def add(self, forward: Forward) -> None:
        insort(self._groups.setdefault(forward.listen, []), forward, key=_start)

    def colliding(self, forward: Forward) -> Sequence[Forward]:
        return ports.overlapping(self._groups.get(forward.listen, ()), forward.span)

    def overlapping(self, span: Span) -> list[Forward]:
        """Return those with a port of ``span``, whatever they listen on."""
        return [forward for group in self._groups.values() for forward in ports.overlapping(group, span)]


def _start(forward: Forward) -> int:
    return forward.start


def _homes(items: Iterable[_Item]) -> _Homes:
    homes: _Homes = {}
    for element, item in items:
        if not ports.names_no_port(item):
            excluded = ports.merge(each.span for each in item.ranges if each.exclude)
            homes.setdefault(_kind(item), []).append((element, excluded))
    return homes


def _parent(root: etree._Element, forward: Forward, homes: _Homes) -> etree._Element:
    """Return the ``<portForward>`` that a new range belongs into: the last one alike, or a new one."""
    alike = homes.setdefault(_kind(forward), [])
    for element, excluded in reversed(alike):
        if not ports.overlapping(excluded, forward.span):
            return element
    element = tree.new_element(_PORT_FORWARD, root)
    element.set("proto", forward.proto)
    for name in _ATTRIBUTES:
        value = getattr(forward, name)
        if value is not None:
            element.set(name, _limit(value))
    tree.append(root, element)
    alike.append((element, []))
    return element


def _meant(declared: _Declared, spec: Spec, where: Where) -> _Kind:
    """Return the kind of the declared forwards that a SPEC removes ports of."""
    near = declared.overlapping(spec.span)
    here = [each for each in near if (each.proto, each.address) == (spec.proto, spec.address)]
    found = [each for each in here if _is_narrowed(each, where)]
    exact = [each for each in found if Where(each.dev, each.source, each.mac) == where]
    meant = exact or found
    if not meant:
        raise _not_declared(spec, near or declared.overlapping(Span(1, MAX_PORT)))
    if len({_kind(each) for each in meant}) > 1:
        ways = ", ".join(dict.fromkeys(portspec.qualifiers(each) for each in meant))
        raise VirtForwardError(
            f"{_host_words(spec)} is declared more than once: {ways}",
            "say which one is meant with --dev, --source or --mac",
        )
    _check_guest_ports(spec, meant)
    return _kind(meant[0])


def _check_guest_ports(spec: Spec, meant: Iterable[Forward]) -> None:
    for forward in meant if spec.guest else ():
        if forward.offset != spec.forward().offset:
            raise NotDeclaredError(
                f"{portspec.render(spec.forward())} is not declared; there is {portspec.render(forward)}"
            )


def _same(declared: Iterable[Forward], forward: Forward) -> bool:
    """Tell whether ``declared`` lead every port of a forward where it does."""
    alike = [each for each in declared if each.offset == forward.offset]
    nics = {each.mac for each in declared} <= {forward.mac} or forward.mac is None
    return nics and not ports.subtract(forward.span, ports.merge(each.span for each in alike))


def _is_narrowed(forward: Forward, where: Where) -> bool:
    """Tell whether a forward has what was asked for."""
    return all(
        wanted in (None, value)
        for wanted, value in zip(where, (forward.dev, forward.source, forward.mac), strict=True)
    )


def _not_declared(spec: Spec, near: Iterable[Forward]) -> NotDeclaredError:
    shown = [*dict.fromkeys(map(portspec.described, near))]
    more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
    hint = f"declared: {', '.join(shown[:3])}{more}" if shown else "no forward is declared"
    return NotDeclaredError(f"{_host_words(spec)} is not declared", hint)


def _host_words(spec: Spec) -> str:
    return portspec.host_part(spec.forward())


def _limit(value: object) -> str:
    """Return an attribute's value as a person writes it: a source that is one address without a prefix."""
    if isinstance(value, Subnet) and value.prefixlen == value.max_prefixlen:
        return str(value.network_address)
    return str(value)
