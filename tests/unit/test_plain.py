"""Plain documents: what expat makes of them is what lxml makes of them, and all others are left to lxml."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support import xml as guests
from unit import strategies as make
from unit.build import UUID, domain_xml, forwards_xml
from virt_forward.errors import VirtForwardError
from virt_forward.metadata import plain, xml
from virt_forward.metadata.domain import parse_domain, parse_known
from virt_forward.namedtuple import TYPE_CHECKING

if TYPE_CHECKING:
    from virt_forward.metadata.forwards import Element

GOLDEN = sorted(Path(__file__).with_name("golden").glob("*/*.xml"))
FORWARD = forwards_xml('<vf:portForward proto="tcp"><vf:range start="80"/></vf:portForward>').decode()


def tree(element: Element) -> tuple[object, ...]:
    """Return all that the parsers can see of an element."""
    inside = [tree(child) for child in element]
    return element.tag, dict(element.attrib), element.text or "", element.tail or "", inside


def outcome(parse: object, data: bytes) -> object:
    try:
        return parse(data)  # type: ignore[operator]
    except VirtForwardError as error:
        return error.messages, error.hint


def assert_same(data: bytes) -> bool:
    """Tell whether a document is plain; if it is, lxml has to accept it and find the same elements."""
    assert outcome(parse_known, data) == outcome(parse_domain, data)
    root = plain.parse(data)
    if root is not None:
        assert tree(root) == tree(xml.parse(data, "test"))
    return root is not None


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.parent.name)
def test_guests_of_the_golden_files_are_plain(path: Path) -> None:
    assert assert_same(path.read_bytes().lstrip())


@pytest.mark.parametrize("phase", ["prepare", "started"])
def test_guest_as_libvirt_gives_it_to_a_hook_is_plain(phase: guests.Phase) -> None:
    metadata = guests.forwards(guests.host_ip("10.10.0.200"), guests.port_forward("8080:80"))
    data = guests.domain("web", metadata, phase=phase).encode()
    assert assert_same(data.lstrip())
    declaration = parse_known(data).declaration
    assert declaration and declaration.port_forwards


NAMES = st.sampled_from(
    ["domain", "name", "metadata", "a", "vf:forwards", "o:x", "xml:id", "a:b:c", ":", "é", "\u0370"]
)
URIS = st.sampled_from(
    ["urn:x", "urn:virt-forward:1", "http://libvirt.org/x/1.0", "", "a b", "http://[x", "urn://a:"]
)
TEXTS = st.sampled_from(
    [
        *(
            "",
            " ",
            "\n",
            "x",
            "&amp;",
            "&#10;",
            "&#x41;",
            "&foo;",
            "&#0;",
            "<![CDATA[<x>]]>",
            "]]>",
            "\r\n",
            "\0",
        ),
        *(
            "<!-- c -->",
            "<!-- a--b -->",
            "<?p q?>",
            "<?xml x?>",
            "<!DOCTYPE x>",
            "\uffff",
            "☃",
            "<",
            "&",
            "\t",
        ),
    ]
)


def elements(inside: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    attributes = st.lists(
        st.builds(' {}="{}"'.format, NAMES, TEXTS)
        | st.builds(' xmlns:{}="{}"'.format, st.sampled_from(["vf", "o", "xml", "xmlns", "a"]), URIS)
        | st.builds(' xmlns="{}"'.format, URIS),
        max_size=2,
    ).map("".join)
    return st.builds("<{0}{1}>{2}</{0}>".format, NAMES, attributes, st.lists(inside, max_size=3).map("".join))


MESS = st.recursive(TEXTS, elements, max_leaves=8)


@given(st.lists(MESS, max_size=4).map("".join), TEXTS)
def test_any_document_is_as_lxml_has_it_or_not_plain(inside: str, after: str) -> None:
    assert_same(f'<domain xmlns:vf="urn:virt-forward:1" xmlns:o="urn:o">{inside}</domain>{after}'.encode())


@given(make.documents)
def test_any_forwards_are_as_lxml_has_them(document: bytes) -> None:
    assert_same(domain_xml(document.decode()))


@given(st.integers(0, 400), st.integers(0, 400), st.binary(max_size=3))
def test_damaged_document_is_as_lxml_has_it_or_not_plain(at: int, cut: int, patch: bytes) -> None:
    whole = domain_xml(FORWARD)
    assert_same(whole[:at] + patch + whole[at + cut % 5 :])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<domain>",
        b"\n<domain/>",
        b"<?xml version='1.0' encoding='latin1'?><domain/>",
        b"<!DOCTYPE domain [<!ENTITY x 'y'>]><domain>&x;</domain>",
        "\ufeff<domain/>".encode(),
        "<domain/>".encode("utf-16"),
        "<domain/>".encode("utf-16-le"),
        b"<domain>" + b"<a>" * 256 + b"</a>" * 256 + b"</domain>",
        b"<domain>" + b" " * plain.MAX_BYTES + b"</domain>",
        b"<domain><a xml:id='1'/></domain>",
        b"<domain xmlns:x='a b'/>",
    ],
)
def test_document_that_is_not_plain(data: bytes) -> None:
    assert plain.parse(data) is None


def test_deepest_document_that_lxml_reads_is_plain() -> None:
    assert assert_same(b"<domain>" + b"<a>" * 255 + b"</a>" * 255 + b"</domain>")


def test_error_of_a_plain_document_has_its_line() -> None:
    data = domain_xml(FORWARD.replace("80", "0"))
    assert plain.parse(data)
    with pytest.raises(VirtForwardError, match="line 5: <vf:range>"):
        parse_known(data)
    assert parse_known(domain_xml(FORWARD)).uuid == UUID
