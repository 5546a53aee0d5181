"""Plain XML documents to elements by expat, which the interpreter has built in: lxml takes 7 ms to import.

What is plain is decided so that lxml would find the same elements. All else is left to lxml, which knows more
of a document (lines, prefixes) and says what is wrong with it.
"""

from __future__ import annotations

import pyexpat
import re
from collections.abc import Iterator

from virt_forward.namedtuple import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

MAX_BYTES = 1 << 15
"""libvirt's XML of a guest has some 5 to 20 KiB. Far below this are libxml2's limits of a name or a text."""

MAX_DEPTH = 256
"""xmlParserMaxDepth of libxml2."""

_URI = re.compile(r"urn:[\w.:-]+|http://[\w./-]+", re.ASCII)
"""The names that libvirt and its programs give to their namespaces are of this form."""


class Element:
    """An element as lxml has it, as far as the parsers of the metadata ask for it; no line is known."""

    __slots__ = ("attrib", "children", "tag", "tail", "text")

    prefix = None
    sourceline = None

    def __init__(self, tag: str, attrib: dict[str, str]) -> None:
        self.tag = tag
        self.attrib = attrib
        self.text: str | None = None
        self.tail: str | None = None
        self.children: list[Element] = []

    def __iter__(self) -> Iterator[Element]:
        return iter(self.children)

    def get(self, name: str, default: Any = None) -> Any:
        """Return an attribute."""
        return self.attrib.get(name, default)


class _NotPlainError(Exception):
    """Nothing is wrong: lxml is to read this document."""


def parse(data: bytes) -> Element | None:
    """Return the root element of a plain document; None for any other.

    A plain one begins with its root element, ``<domain``: so it is UTF-8, and has no document type
    declaration and no entities but those of XML itself. It has nothing that libxml2 checks and expat does
    not: the values of xml:id, and whether the name of a namespace is a URI.
    """
    if not data.startswith(b"<domain") or len(data) > MAX_BYTES or b"xml:id" in data:
        return None
    builder = _Builder()
    parser = pyexpat.ParserCreate(namespace_separator="}")
    parser.buffer_text = True
    parser.StartNamespaceDeclHandler = builder.namespace
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.text
    try:
        parser.Parse(data, True)
    except (pyexpat.ExpatError, _NotPlainError):
        return None
    return builder.root.children[0]


class _Builder:
    """Puts elements together. Comments and processing instructions leave nothing."""

    def __init__(self) -> None:
        self.root = Element("", {})
        self._open = [self.root]

    def namespace(self, _prefix: str | None, uri: str | None) -> None:
        if not _URI.fullmatch(uri or ""):
            raise _NotPlainError

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if len(self._open) > MAX_DEPTH:
            raise _NotPlainError
        element = Element(_tag(name), {_tag(key): value for key, value in attributes.items()})
        self._open[-1].children.append(element)
        self._open.append(element)

    def end(self, _name: str) -> None:
        del self._open[-1]

    def text(self, data: str) -> None:
        inside = self._open[-1]
        if inside.children:
            inside.children[-1].tail = (inside.children[-1].tail or "") + data
        else:
            inside.text = (inside.text or "") + data


def _tag(name: str) -> str:
    """Return the name of an element or attribute as lxml writes it: ``{namespace}name``."""
    return "{" + name if "}" in name else name
