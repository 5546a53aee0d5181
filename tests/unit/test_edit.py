"""Editing metadata: what is asked for is done, and nothing else is touched."""

from __future__ import annotations

import contextlib
from unittest.mock import Mock

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from unit import strategies
from unit.build import MAC, collide, domain_xml, forward
from virt_forward import ports
from virt_forward.errors import VirtForwardError
from virt_forward.metadata import forwards
from virt_forward.metadata.domain import MetadataError, parse_domain
from virt_forward.metadata.edit import Document, Where
from virt_forward.metadata.spec import Spec, parse_spec
from virt_forward.metadata.tree import Submission
from virt_forward.model import Forward, Span

NAMESPACE = 'xmlns:vf="urn:virt-forward:1"'
WEB = """\
    <o:os xmlns:o="urn:other"/>
    <vf:forwards xmlns:vf="urn:virt-forward:1" isolate="yes">
      <!-- the web server -->
      <vf:host ip="10.10.0.200"/>
      <vf:portForward proto="tcp">
        <vf:range start="8080" to="80"/> <!-- http -->
        <vf:range start="5000" end="5020" to="6000"/>
        <vf:range start="5010" exclude="yes"/>
      </vf:portForward>
    </vf:forwards>"""


def document(metadata: str = WEB) -> Document:
    return Document(domain_xml(metadata))


def lines(text: str) -> list[str]:
    return text.splitlines()


def added_lines(before: str, after: str) -> list[str]:
    return [line.strip() for line in lines(after) if line not in lines(before)]


@pytest.mark.parametrize(
    ("new", "written"),
    [
        (forward(443), ['<vf:range start="443"/>']),
        (forward(443, to=8443), ['<vf:range start="443" to="8443"/>']),
        (forward(100, 110), ['<vf:range start="100" end="110"/>']),
        (forward(5010, to=1), ['<vf:range start="5010" to="1"/>']),  # in a portForward of its own
        (forward(53, proto="udp"), ['<vf:portForward proto="udp">', '<vf:range start="53"/>']),
        (
            forward(53, address="203.0.113.7", dev="e0", source="192.0.2.1/32", mac=MAC),
            [
                f'<vf:portForward proto="tcp" address="203.0.113.7" dev="e0" source="192.0.2.1" mac="{MAC}">',
                '<vf:range start="53"/>',
            ],
        ),
    ],
)
def test_added_forward_is_all_that_is_new(new: Forward, written: list[str]) -> None:
    edited = document()
    before = edited.text()
    assert edited.add([new])
    assert added_lines(before, edited.text()) == written
    assert [line for line in lines(before) if line not in lines(edited.text())] == []
    assert new in edited.forwards()
    assert edited.domain().declaration is not None


def test_forward_that_is_declared_is_not_added() -> None:
    edited = document()
    for same in (forward(8080, to=80), forward(5000, 5009, to=6000), forward(5015, to=6015)):
        assert not edited.add([same])
    assert not edited.changed


@pytest.mark.parametrize(
    ("new", "other"),
    [
        (forward(8080, to=81), "8080:80/tcp"),
        (forward(5000, 5020, to=6000), "5000-5009:6000-6009/tcp"),
        (forward(8000, 9000), "8080:80/tcp"),
        (forward(8080, to=80, mac=MAC), "8080:80/tcp"),
    ],
)
def test_overlapping_forward_is_refused(new: Forward, other: str) -> None:
    edited = document()
    with pytest.raises(VirtForwardError, match="overlaps") as caught:
        edited.add([new])
    assert other in caught.value.messages[0]
    assert not edited.changed


@pytest.mark.parametrize(
    ("word", "left"),
    [
        ("8080", '<vf:range start="5000" end="5020" to="6000"/>,<vf:range start="5010" exclude="yes"/>'),
        (
            "8080:80/tcp",
            '<vf:range start="5000" end="5020" to="6000"/>,<vf:range start="5010" exclude="yes"/>',
        ),
        ("5000-5020", '<vf:range start="8080" to="80"/>'),
        ("4000-6000", '<vf:range start="8080" to="80"/>'),
        (
            "5000-5004:6000-6004",
            '<vf:range start="8080" to="80"/>,<vf:range start="5005" end="5020" to="6005"/>'
            ',<vf:range start="5010" exclude="yes"/>',
        ),
        (
            "5011-5020",
            '<vf:range start="8080" to="80"/>,<vf:range start="5000" end="5010" to="6000"/>'
            ',<vf:range start="5010" exclude="yes"/>',
        ),
        (
            "5003",
            '<vf:range start="8080" to="80"/>,<vf:range start="5000" end="5002" to="6000"/>'
            ',<vf:range start="5004" end="5020" to="6004"/>,<vf:range start="5010" exclude="yes"/>',
        ),
    ],
)
def test_removed_ports_leave_the_other_ranges(word: str, left: str) -> None:
    edited = document()
    assert edited.remove([parse_spec(word)]).forwards
    ranges = [line.strip().partition(" <!--")[0] for line in lines(edited.text()) if "<vf:range" in line]
    assert ranges == left.split(",")
    assert "<!-- the web server -->" in edited.text()


def test_several_specs_are_removed_as_if_one_by_one() -> None:
    at_once, one_by_one = document(), document()
    specs = [*map(parse_spec, ("8080", "5003", "5005-5012", "5012-5013", "5020", "9"))]
    removed = at_once.remove(specs)
    for spec in specs:
        one_by_one.remove([spec])
    assert at_once.forwards() == one_by_one.forwards()
    assert [*removed.absent] == [parse_spec("9")]
    assert sum(each.end - each.start + 1 for each in removed.forwards) == 11, "5010 was excluded already"


def test_last_range_takes_its_port_forward_along() -> None:
    edited = document()
    edited.remove([parse_spec("8080")])
    edited.remove([parse_spec("5000-5020")])
    assert edited.text() == (
        f'<vf:forwards {NAMESPACE} isolate="yes">\n'
        '      <!-- the web server -->\n      <vf:host ip="10.10.0.200"/>\n    </vf:forwards>'
    )


def test_remove_all_leaves_hosts_isolation_and_comments() -> None:
    edited = document()
    assert len(edited.remove_all()) == 3
    assert edited.forwards() == ()
    declaration = edited.domain().declaration
    assert declaration
    assert (declaration.isolate, len(declaration.hosts)) == (True, 1)
    assert "<!-- the web server -->" in edited.text()


def test_element_without_content_goes() -> None:
    edited = document(WHOLE)
    edited.remove_all()
    assert edited.submission() == Submission(None)
    assert edited.domain().declaration is None


WHOLE = f'<vf:forwards {NAMESPACE}><vf:portForward proto="tcp" address="203.0.113.8"/></vf:forwards>'


def test_ports_of_a_whole_address_are_excluded() -> None:
    edited = document(WHOLE)
    edited.remove([parse_spec("203.0.113.8:22")])
    assert '<vf:range start="22" exclude="yes"/>' in edited.text()
    edited.remove([parse_spec("203.0.113.8:1-65535")])
    assert edited.text() == ""


SEVERAL = f"""<vf:forwards {NAMESPACE}>
  <vf:portForward proto="tcp" dev="enp1s0"><vf:range start="443"/></vf:portForward>
  <vf:portForward proto="tcp" dev="enp1s0" source="192.0.2.0/24">
    <vf:range start="443" to="8443"/>
  </vf:portForward>
  <vf:portForward proto="tcp" address="203.0.113.7"><vf:range start="443" to="9443"/></vf:portForward>
  <vf:portForward proto="tcp" dev="wlan0"><vf:range start="80"/></vf:portForward>
</vf:forwards>"""


def test_exclusions_go_only_where_their_ports_were_open() -> None:
    ssh = '<vf:portForward proto="tcp" address="203.0.113.8"><vf:range start="22"/></vf:portForward>'
    edited = document(
        WHOLE.replace(
            "/></vf:forwards>",
            '><vf:range start="22" exclude="yes"/></vf:portForward>' + ssh + "</vf:forwards>",
        )
    )
    edited.remove([*map(parse_spec, ("203.0.113.8:22", "203.0.113.8:80"))])
    assert edited.text().count('start="22"') == 1
    assert [forward.span for forward in edited.forwards()] == [Span(1, 21), Span(23, 79), Span(81, 65535)]


def test_document_is_parsed_once_however_many_forwards_change(monkeypatch: pytest.MonkeyPatch) -> None:
    edited = document()
    read = Mock(side_effect=forwards.parse_forwards)
    monkeypatch.setattr(forwards, "parse_forwards", read)
    specs = [parse_spec(str(port)) for port in range(10_000, 10_050)]
    edited.add([spec.forward() for spec in specs])
    assert len(edited.remove(specs).forwards) == 50
    assert read.call_count == 2


def test_removed_is_the_one_of_several_that_was_named() -> None:
    edited = document(SEVERAL)
    with pytest.raises(VirtForwardError, match=r"more than once: on enp1s0, on enp1s0 from 192\.0\.2\.0/24$"):
        edited.remove([parse_spec("443")])
    assert not edited.changed
    (removed,) = edited.remove([parse_spec("443")], Where("enp1s0")).forwards
    assert removed.source is None
    (removed,) = edited.remove([parse_spec("443")]).forwards
    assert str(removed.source) == "192.0.2.0/24"
    absent = edited.remove([parse_spec("443")]).absent
    assert absent[parse_spec("443")].hint == "declared: 203.0.113.7:443:9443/tcp"
    (removed,) = edited.remove([parse_spec("80")]).forwards
    assert removed.dev == "wlan0"


def test_other_guest_port_is_not_what_is_declared() -> None:
    (error,) = document().remove([parse_spec("8080:81")]).absent.values()
    assert str(error) == "8080:81/tcp is not declared; there is 8080:80/tcp"


@pytest.mark.parametrize(
    ("declared", "hint"),
    [
        ((), "no forward is declared"),
        ((1, 3), "declared: 1/tcp, 3/tcp"),
        ((1, 3, 5, 7, 9), "declared: 1/tcp, 3/tcp, 5/tcp and 2 more"),
    ],
)
def test_spec_of_a_port_that_no_forward_has_is_told_which_are_declared(
    declared: tuple[int, ...], hint: str
) -> None:
    edited = document("")
    edited.add([forward(port) for port in declared])
    (error,) = edited.remove([parse_spec("9999")]).absent.values()
    assert (str(error), error.hint) == ("tcp/9999 is not declared", hint)


@pytest.mark.parametrize(
    ("metadata", "nics"),
    [
        ("text\n" + WHOLE, ""),  # beside our element anything goes, and none of it gets into ours
        (WHOLE, "<interface ٣='' type='bridge'/>"),
    ],
)
def test_rest_of_the_domain_is_no_obstacle(metadata: str, nics: str) -> None:
    edited = Document(domain_xml(metadata, nics))
    assert edited.add([forward(443)])
    assert edited.domain().declaration
    assert edited.text().startswith(f"<vf:forwards {NAMESPACE}>")


def test_metadata_with_an_error_is_not_edited() -> None:
    with pytest.raises(MetadataError, match="unknown attribute"):
        document(WEB.replace("isolate", "isolated"))


SPELLINGS = {
    "usual": (WEB, "<forwards isolate", "vf"),
    "other prefix": (WEB.replace("vf:", "x:").replace(":vf", ":x"), "<forwards isolate", "x"),
    "default namespace": (
        WEB.replace("vf:", "").replace("xmlns:vf", "xmlns"),
        '<forwards xmlns="urn:virt-forward:1" isolate',
        "vf",
    ),
    "default namespace, and a prefix that libvirt has added": (
        WEB.replace("vf:", "").replace("xmlns:vf", f"{NAMESPACE} xmlns"),
        '<forwards xmlns="urn:virt-forward:1" isolate',
        "vf",
    ),
    "declared above": (f"<x {NAMESPACE}/>{WEB}", "<forwards isolate", "vf"),
    "prefix of somebody else": (
        WEB.replace("vf:", "").replace("xmlns:vf", 'xmlns:vf="urn:other" xmlns'),
        '<forwards xmlns:vf="urn:other" xmlns="urn:virt-forward:1" isolate',
        "vf1",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("metadata", "begin", "key"), SPELLINGS.values(), ids=SPELLINGS)
def test_spelling_survives(metadata: str, begin: str, key: str) -> None:
    edited = document(metadata)
    edited.add([forward(443)])
    element = edited.submission().element
    assert element
    assert element.startswith(begin)
    assert edited.submission().key == key
    assert ("<!-- the web server -->" in element, "<!-- http -->" in element) == (True, True)


@pytest.mark.parametrize(("metadata", "begin", "key"), SPELLINGS.values(), ids=SPELLINGS)
def test_libvirt_takes_what_is_submitted(metadata: str, begin: str, key: str) -> None:
    """By libvirt's test driver, which runs in this process."""
    libvirt = pytest.importorskip("libvirt")
    opened = libvirt.open("test:///default")
    domain = opened.lookupByName("test")
    for round_ in range(3):  # what it makes of a submission is what the next one is made of
        edited = document(metadata)
        edited.add([forward(443 + round_)])
        element, used = edited.submission()
        domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, element, used, "urn:virt-forward:1", 1)
        shown = domain.XMLDesc(0)
        metadata = shown[shown.index("<metadata>") + 10 : shown.index("</metadata>")]
        assert edited.domain().declaration == parse_domain(shown.encode()).declaration
    opened.close()


def spec_of(item: Forward) -> Spec:
    return Spec(item.proto, item.span, item.address)


def where_of(item: Forward) -> Where:
    return Where(item.dev, item.source, item.mac)


def valid(xml: bytes) -> Document:
    try:
        return document(xml.decode())
    except VirtForwardError:
        assume(False)
        raise


@given(strategies.documents_of(mess=False), strategies.forwards())
def test_add_then_remove_changes_nothing(xml: bytes, item: Forward) -> None:
    edited = valid(xml)
    assume(not any(collide(item, each) for each in edited.forwards()))
    before = edited.text()
    assert edited.add([item])
    assert item in edited.forwards()
    assert edited.remove([spec_of(item)], where_of(item)).forwards == (item,)
    assert edited.text() == before or not edited.forwards()


@given(st.lists(strategies.forwards(), min_size=1, max_size=6), st.data())
def test_remove_takes_just_the_ports_that_are_named(items: list[Forward], data: st.DataObject) -> None:
    edited = document("")
    for each in items:
        with contextlib.suppress(VirtForwardError):
            edited.add([each])
    declared = edited.forwards()
    item = data.draw(st.sampled_from(declared))
    start = data.draw(st.integers(item.start, item.end))
    span = Span(start, data.draw(st.integers(start, item.end)))
    edited.remove([spec_of(item)._replace(span=span)], where_of(item))
    named = item.listen, item.mac
    expected = [
        each
        for old in declared
        for part in (ports.subtract(old.span, [span]) if (old.listen, old.mac) == named else [old.span])
        for each in [Forward.of(old.listen, part, old.offset, old.mac)]
    ]
    assert sorted(map(repr, edited.forwards())) == sorted(map(repr, expected))
