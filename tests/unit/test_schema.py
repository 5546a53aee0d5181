"""data/forwards.rng and the parser agree in all that a grammar can say."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree

import virt_forward
from unit import strategies as make
from unit.build import declared, forwards_xml
from unit.test_forwards import CONTRADICTIONS, ERRORS
from virt_forward.errors import VirtForwardError
from virt_forward.metadata import xml
from virt_forward.metadata.forwards import parse_forwards

RNG = Path(virt_forward.__file__).parent / "data" / "forwards.rng"
SCHEMA = etree.RelaxNG(etree.parse(RNG))

# The only reasons for which the parser may refuse what the grammar lets pass; docs/metadata.md lists them.
BEYOND_GRAMMAR = (
    "is below start=",
    "the guest's last port would be",
    "every port is excluded",
    "overlap on the host",
    "is a second IPv",
    "give both of one family",
    "has bits set beyond the prefix",
    "leave the attribute out to listen on every address",
    "the kernel cannot forward ::1",
    "use a unicast address of this host that is not link-local",
    "use the guest's own unicast address",
    "use the IPv4 address itself",
)


def reasons(document: bytes) -> tuple[str, ...]:
    return parse_forwards(xml.parse(document, "test"))[1]


def accepts(document: bytes) -> bool:
    return bool(SCHEMA.validate(etree.fromstring(document)))


def assert_agreement(document: bytes) -> None:
    errors = reasons(document)
    if accepts(document):
        unlisted = [error for error in errors if not any(word in error for word in BEYOND_GRAMMAR)]
        assert not unlisted, document.decode()
    else:
        assert errors, f"only the schema refuses it: {SCHEMA.error_log}\n{document.decode()}"


@pytest.mark.parametrize(
    "inside", [inside for inside, _, _ in ERRORS] + [inside for inside, _ in CONTRADICTIONS]
)
def test_agreement_on_every_known_error(inside: str) -> None:
    assert_agreement(forwards_xml(inside))


@settings(max_examples=500)
@given(make.documents)
def test_agreement_on_made_up_documents(document: bytes) -> None:
    try:
        xml.parse(document, "test")
    except VirtForwardError:
        return
    assert_agreement(document)


@settings(max_examples=300)
@given(make.addresses | st.text("0123456789abcdefABCDEF:.", max_size=40), make.prefixes)
def test_agreement_on_addresses(text: str, prefix: str) -> None:
    assert_agreement(forwards_xml(f'<vf:host ip="{text}"/>'))
    assert_agreement(
        forwards_xml(
            f'<vf:portForward proto="tcp" source="{text}{prefix}"><vf:range start="80"/></vf:portForward>'
        )
    )


def test_agreement_on_ports_of_every_shape() -> None:
    ports = sorted({*range(1, 65536, 17), *range(1, 101), *range(65000, 65536)})
    ranges = "".join(f'<vf:range start="{port}"/>' for port in ports)
    inside = f'<vf:portForward proto="tcp">{ranges}</vf:portForward>'
    assert declared(inside)[1] == ()
    assert accepts(forwards_xml(inside))


def test_made_up_documents_are_good_and_bad() -> None:
    """A generator that made nothing but errors would prove nothing."""
    verdicts = set()

    @settings(max_examples=300)
    @given(make.documents)
    def collect(document: bytes) -> None:
        try:
            root = xml.parse(document, "test")
        except VirtForwardError:
            return
        verdicts.add((accepts(document), not reasons(document), len(root) > 0))

    collect()
    assert {(True, True, True), (True, False, True), (False, False, True)} <= verdicts


@pytest.mark.parametrize("reason", BEYOND_GRAMMAR)
def test_every_listed_reason_is_one_that_the_grammar_cannot_say(reason: str) -> None:
    documents = [inside for inside, *_ in (*ERRORS, *CONTRADICTIONS)]
    saying = [inside for inside in documents if any(reason in error for error in declared(inside)[1])]
    assert saying
    assert any(accepts(forwards_xml(inside)) for inside in saying)
