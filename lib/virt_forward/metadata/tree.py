"""Changing our element as a tree: with the white space around it, and as libvirt takes it."""

from __future__ import annotations

from collections.abc import Iterator

from lxml import etree

from virt_forward.metadata.forwards import NAMESPACE, XML_SPACE
from virt_forward.namedtuple import NamedTuple

KEY = "vf"
"""The usual prefix of our namespace."""

_OURS = f"{{{NAMESPACE}}}*"


class Submission(NamedTuple):
    """What virDomainSetMetadata() takes for our namespace; ``element`` is None to remove it.

    libvirt declares the namespace with the prefix ``key`` and gives it to all elements that have none
    (virXMLInjectNamespace() in src/util/virxml.c). It refuses an element that declares ``key`` itself.
    """

    element: str | None
    key: str = KEY


def submission(ours: etree._Element) -> Submission:
    """Return our element as libvirt takes it, so that its own spelling comes out again."""
    root = detached(ours)
    # Without a prefix, elements would be in the default namespace where there is one.
    if root.prefix and not any(None in element.nsmap for element in root.iter(etree.Element)):
        key = root.prefix
        for element in [each for each in root.iter(_OURS) if each.prefix == key]:
            element.tag = etree.QName(element).localname
    else:
        key = next(name for name in _keys() if not _uses(root, name))
    kept = [name for name in root.nsmap if name and name != key]
    etree.cleanup_namespaces(root, keep_ns_prefixes=kept)
    return Submission(etree.tostring(root, encoding="unicode"), key)


def new_element(tag: str, near: etree._Element) -> etree._Element:
    """Return a new element with the prefix that ``near`` has."""
    return etree.Element(tag, nsmap={near.prefix: NAMESPACE})


def append(parent: etree._Element, child: etree._Element) -> None:
    """Append a child, with the white space that the children before it have."""
    outer = parent.getparent()
    if len(parent):
        last = parent[-1]
        child.tail, last.tail = last.tail, parent.text
    elif outer is not None and outer.text and not outer.text.strip(XML_SPACE):
        parent.text, child.tail = f"{outer.text}  ", outer.text
    parent.append(child)


def remove(child: etree._Element) -> None:
    """Remove an element with the white space before it."""
    parent, before = child.getparent(), child.getprevious()
    assert parent is not None
    if before is not None:
        before.tail = child.tail if child.getnext() is None else before.tail
    elif child.getnext() is None:
        parent.text = None
    child.tail = None
    parent.remove(child)


def detached(root: etree._Element) -> etree._Element:
    """Return a copy that stands on its own."""
    return etree.fromstring(etree.tostring(root, with_tail=False, encoding="utf-8"))


def _keys() -> Iterator[str]:
    yield KEY
    yield from (f"{KEY}{number}" for number in range(1, 1000))


def _uses(root: etree._Element, prefix: str) -> bool:
    """Tell whether an element or attribute has a prefix, or the root needs it for another namespace."""
    if root.nsmap.get(prefix, NAMESPACE) != NAMESPACE:
        return True
    return any(element.prefix == prefix for element in root.iter(etree.Element))
