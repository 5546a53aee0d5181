"""The vocabulary of ``urn:virt-forward:1``: a ``<forwards>`` element to a Declaration.

The grammar is data/forwards.rng; what a grammar cannot say (ranges that overlap or
overflow, families that clash) is said here. Every error of a document is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from virt_forward import ports, portspec, text
from virt_forward.metadata import values
from virt_forward.model import MAX_PORT, Declaration, HostAddress, PortForward, Range
from virt_forward.namedtuple import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TypeVar

    from virt_forward.metadata import plain
    from virt_forward.metadata.etree import etree

    T = TypeVar("T")
    Element = etree._Element | plain.Element

NAMESPACE = "urn:virt-forward:1"
ROOT = f"{{{NAMESPACE}}}forwards"
MAX_PIECES = 10_000
"""The most contiguous ranges of host ports that a guest may have: nft loads so many in a few seconds.

It takes longest for rules that differ in their source alone: they have anonymous sets of their own, for
which the kernel's work is quadratic.
"""

XML_SPACE = " \t\r\n"
"""What XML calls white space, which is less than str.strip() does."""


class Reader:
    """One element being read: takes its attributes apart and collects what is wrong."""

    def __init__(self, element: Element, errors: list[str]) -> None:
        self.element = element
        self.errors = errors
        self.name = display(element)
        self._known: set[str] = set()

    def error(self, message: str) -> None:
        """Add an error that names the element and, where known, its line."""
        line = f"line {self.element.sourceline}: " if self.element.sourceline else ""
        self.errors.append(f"{line}<{self.name}>: {message}")

    def take(self, attribute: str, convert: Callable[[str], T]) -> T | None:
        """Return the attribute's value, or None where it is absent or wrong."""
        self._known.add(attribute)
        value = self.element.get(attribute)
        if value is None:
            return None
        try:
            return convert(value)
        except values.Bad as error:
            self.error(f"{attribute}={text.quote(value)} is wrong: {error}")
            return None

    def require(self, attribute: str, example: str) -> None:
        """Complain where a required attribute is absent."""
        if self.element.get(attribute) is None:
            self.error(f'attribute {attribute} is missing; add {attribute}="{example}"')

    def children(self, *allowed: str) -> Iterator[tuple[str, Element]]:
        """Yield (local name, element) for known children; complain about all else inside."""
        for child in self.element:
            name = _local_name(child)
            if name in allowed and child.tag == f"{{{NAMESPACE}}}{name}":
                yield name, child
            else:
                Reader(child, self.errors).error(self._unknown(name, allowed))
        if any((part or "").strip(XML_SPACE) for part in self._texts()):
            self.error("text is not allowed here; remove it")

    def finish(self) -> None:
        """Complain about attributes nobody asked for."""
        for attribute in self.element.attrib:
            if attribute not in self._known:
                known = ", ".join(sorted(self._known)) or "none"
                self.error(f"unknown attribute {text.quote(str(attribute))}; known: {known}")

    def _texts(self) -> Iterable[str | None]:
        return [self.element.text, *(child.tail for child in self.element)]

    def _unknown(self, name: str, allowed: tuple[str, ...]) -> str:
        if name in allowed:
            return f"is not in the namespace {NAMESPACE}; give it the prefix of its parent"
        known = " or ".join(f"<{word}>" for word in allowed) or "nothing"
        return f"unknown element inside <{self.name}>; allowed here: {known}"


def display(element: Element) -> str:
    """Return an element's name for a message, with its prefix."""
    name = _local_name(element)
    return text.plain(f"{element.prefix}:{name}" if element.prefix else name)


def _local_name(element: Element) -> str:
    # etree.QName() raises ValueError for a name that lxml may let pass by mistake, such as ":".
    return str(element.tag).rpartition("}")[2]


def parse_forwards(root: Element) -> tuple[Declaration, tuple[str, ...]]:
    """Return the declaration of a ``<forwards>`` element and all its errors, in line order."""
    errors: list[str] = []
    reader = Reader(root, errors)
    isolate = reader.take("isolate", values.yes_no)
    reader.finish()
    items: list[PortForward] = []
    hosts: list[HostAddress] = []
    for name, child in reader.children("host", "portForward"):
        if name == "host":
            hosts += _host(Reader(child, errors))
        else:
            items += _port_forward(Reader(child, errors))
    declaration = Declaration(tuple(items), tuple(hosts), bool(isolate))
    if not errors:
        errors += _contradictions(declaration)
    return declaration, tuple(errors)


def _host(reader: Reader) -> list[HostAddress]:
    reader.require("ip", "10.10.0.200")
    ip = reader.take("ip", values.guest_address)
    mac = reader.take("mac", values.mac)
    reader.finish()
    list(reader.children())
    return [] if ip is None else [HostAddress(ip, mac)]


def _port_forward(reader: Reader) -> list[PortForward]:
    reader.require("proto", "tcp")
    proto = reader.take("proto", values.proto)
    limits = {name: reader.take(name, parse) for name, parse in values.LIMITS.items()}
    mac = reader.take("mac", values.mac)
    reader.finish()
    before = len(reader.errors)
    found = [_range(Reader(child, reader.errors)) for _, child in reader.children("range")]
    # A range that cannot be read (in no namespace, say) was meant as one all the same.
    unread = len(reader.errors) > before
    address, source = limits["address"], limits["source"]
    if address and source and address.version != source.version:
        reader.error(
            f"address is IPv{address.version} but source is IPv{source.version}; give both of one family"
        )
    if (
        not unread
        and reader.element.get("address") is None
        and all(r is not None and r.exclude for r in found)
    ):
        reader.error(
            "forwards every port of the host; add a <range>, or say with address which address is meant"
        )
    if proto is None:
        return []
    item = PortForward(proto, tuple(r for r in found if r is not None), **limits, mac=mac)
    if None not in found and next(ports.pieces(item), None) is None:
        reader.error("every port is excluded; remove an exclude range, or the whole element")
    return [item]


def _range(reader: Reader) -> Range | None:
    before = len(reader.errors)
    reader.require("start", "8080")
    start = reader.take("start", values.port)
    end = reader.take("end", values.port)
    to = reader.take("to", values.port)
    exclude = reader.take("exclude", values.yes_no)
    reader.finish()
    list(reader.children())
    if start is None or len(reader.errors) > before:
        return None
    result = Range(start, end or start, to or start, bool(exclude))
    problem = _range_problem(result, to)
    if problem:
        reader.error(problem)
        return None
    return result


def _range_problem(item: Range, to: int | None) -> str | None:
    if item.end < item.start:
        return f"end={item.end} is below start={item.start}; exchange them"
    if item.exclude and to is not None:
        return "an excluded range goes nowhere; remove to"
    last = item.to + item.end - item.start
    if last > MAX_PORT:
        return f"the guest's last port would be {last}, beyond {MAX_PORT}; lower to or shorten the range"
    return None


def _contradictions(declaration: Declaration) -> Iterator[str]:
    found = (piece for item in declaration.port_forwards for piece in ports.pieces(item))
    pieces = tuple(islice(found, MAX_PIECES + 1))
    if len(pieces) > MAX_PIECES:
        yield (
            f"<forwards>: has more than {MAX_PIECES} separate ranges of ports, the limit for a guest; "
            "join ranges, or forward an address as a whole"
        )
    elif collision := ports.first_collision(pieces):
        one, other = (portspec.render(forward) for forward in collision)
        yield f"<portForward>: {one} and {other} overlap on the host; give each host port once"
    seen: set[tuple[str | None, int]] = set()
    for host in declaration.hosts:
        key = (host.mac, host.ip.version)
        if key in seen:
            yield (
                f"<host>: {host.ip} is a second IPv{host.ip.version} address for one NIC; "
                "keep one, or give each its mac"
            )
        seen.add(key)
