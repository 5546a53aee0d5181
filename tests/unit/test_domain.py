"""Domain XML to a Domain, and XML that wants to do harm."""

from __future__ import annotations

from pathlib import Path

import pytest

from unit.build import BRIDGE, MAC, UUID, domain_xml, forwards_xml
from virt_forward.errors import VirtForwardError
from virt_forward.metadata import xml
from virt_forward.metadata.domain import MetadataError, foreign_macs, parse_domain
from virt_forward.metadata.forwards import NAMESPACE
from virt_forward.model import Declaration, Nic

GOOD = forwards_xml('<vf:portForward proto="tcp"><vf:range start="80"/></vf:portForward>').decode()


def test_domain_without_our_metadata() -> None:
    domain = parse_domain(
        domain_xml("<x:app xmlns:x='urn:other'><vf:forwards xmlns:vf='urn:not-us'/></x:app>")
    )
    assert (domain.name, domain.uuid, domain.declaration) == ("web", UUID, None)


def test_nics_of_every_type_are_told_apart() -> None:
    nics = f"""
    <interface type='bridge'><mac address='{MAC.upper()}'/><source bridge='br0'/></interface>
    <interface type='network'><mac address='52:54:00:00:00:02'/>
      <source network='default' portid='x' bridge='virbr1'/></interface>
    <interface type='user'><mac address='52:54:00:00:00:03'/><backend type='passt'/></interface>
    <interface type='direct'><source dev='enp1s0' mode='bridge'/></interface>"""
    assert parse_domain(domain_xml(GOOD, nics)).nics == (
        Nic(MAC, "bridge", "br0"),
        Nic("52:54:00:00:00:02", "network", "default"),
        Nic("52:54:00:00:00:03", "user", ""),
        Nic("", "direct", ""),
    )


def test_status_file_of_a_running_domain_is_read_as_well() -> None:
    status = b"<domstatus state='running' pid='1'>" + domain_xml(GOOD) + b"</domstatus>"
    assert parse_domain(status) == parse_domain(domain_xml(GOOD))


def test_uuid_is_lower_case_whatever_was_written() -> None:
    assert parse_domain(domain_xml(uuid=f" {UUID.upper()}\n")).uuid == UUID


@pytest.mark.parametrize(
    "name", ["with spaces", 'it\'s "quoted"', "two\nlines", "x" * 200, "größer-☃-дом", "; drop", "a\tb", ".."]
)
def test_any_name_is_kept_as_it_is(name: str) -> None:
    written = name.replace('"', "&quot;").replace("\n", "&#10;")
    assert parse_domain(domain_xml(GOOD, name=written)).name == name


@pytest.mark.parametrize("name", ["with spaces", "it's &quot;quoted&quot;", "two&#10;lines", "x" * 200, "☃"])
def test_error_names_the_guest_on_one_line(name: str) -> None:
    with pytest.raises(MetadataError) as caught:
        parse_domain(domain_xml(GOOD.replace("80", "80;drop"), name=name))
    (message,) = caught.value.messages
    assert message.startswith('guest "')
    assert message.isprintable()
    assert 'line 5: <vf:range>: start="80;drop" is wrong' in message
    assert caught.value.domain.uuid == UUID


def test_all_errors_of_a_document_are_told() -> None:
    bad = '<vf:wrong xmlns:vf="urn:virt-forward:1"/>' + GOOD.replace("80", "0") + GOOD.replace("tcp", "ip")
    with pytest.raises(MetadataError) as caught:
        parse_domain(domain_xml(bad))
    told = [message.removeprefix('guest "web": ') for message in caught.value.messages]
    assert [words.split(": ", 2)[:2] for words in told] == [
        ["line 4", "<vf:wrong>"],
        ["line 6", "<forwards>"],
        ["line 5", "<vf:range>"],
    ]
    assert caught.value.hint == "correct it with: virsh edit web"


def test_mac_that_is_no_nic_of_the_guest() -> None:
    strange = f'<forwards xmlns="{NAMESPACE}"><host ip="198.51.100.9" mac="52:54:00:00:00:99"/></forwards>'
    assert str(foreign_macs(parse_domain(domain_xml(strange)))) == (
        f'guest "web": mac="52:54:00:00:00:99" is no NIC of this guest; its NICs: {MAC}'
    )
    assert "its NICs: none" in str(foreign_macs(parse_domain(domain_xml(strange, nics=""))))
    assert foreign_macs(parse_domain(domain_xml(strange.replace("52:54:00:00:00:99", MAC)))) is None
    assert foreign_macs(parse_domain(domain_xml())) is None


def test_prefix_does_not_matter() -> None:
    plain = GOOD.replace("vf:", "").replace("xmlns:vf", "xmlns")
    assert parse_domain(domain_xml(plain)) == parse_domain(domain_xml(GOOD))


def test_empty_declaration_is_one() -> None:
    assert parse_domain(domain_xml(f'<forwards xmlns="{NAMESPACE}"/>')).declaration == Declaration()


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (b"", "not well-formed"),
        (b"<domain>", "not well-formed"),
        (b"\xff\xfe\x00", "not well-formed"),
        (b"<domain><name>\xff</name></domain>", "not well-formed"),
        (b"<domain><name>a&#0;b</name></domain>", "not well-formed"),
        (b"<network/>", "the root element is <network>; it should be <domain>"),
        (b"<domstatus/>", "has no <domain> inside"),
        (b"<domain/>", '<uuid> is "", which is no UUID'),
        (domain_xml(uuid="../../etc/passwd"), '<uuid> is "../../etc/passwd", which is no UUID'),
        (domain_xml(uuid=UUID + "/x"), "which is no UUID"),
        (domain_xml(uuid=UUID.replace("9", "٩")), "which is no UUID"),
    ],
)
def test_xml_without_a_domain_is_refused(document: bytes, said: str) -> None:
    with pytest.raises(VirtForwardError, match=said) as caught:
        parse_domain(document)
    assert not isinstance(caught.value, MetadataError)


def lol(inside: str) -> bytes:
    entities = "".join(
        f'<!ENTITY l{number} "{f"&l{number - 1};" * 10 if number else "lol"}">' for number in range(10)
    )
    return f"<!DOCTYPE domain [{entities}]>".encode() + domain_xml(inside)


@pytest.mark.parametrize(
    "document",
    [
        lol(GOOD),
        lol("&l9;"),
        lol(f'<vf:forwards xmlns:vf="{NAMESPACE}" isolate="&l9;"/>'),
        b'<!DOCTYPE domain SYSTEM "http://203.0.113.1/x.dtd">' + domain_xml(GOOD),
        b'<!DOCTYPE domain [<!ENTITY % p SYSTEM "file:///etc/hostname"> %p;]>' + domain_xml(GOOD),
        b"<!DOCTYPE domain>" + domain_xml(GOOD),
    ],
    ids=["unused", "text", "attribute", "external", "parameter", "plain"],
)
def test_document_type_is_refused_quickly(document: bytes) -> None:
    with pytest.raises(VirtForwardError, match=r"DOCTYPE|not well-formed"):
        parse_domain(document)


def test_external_entity_is_never_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hidden")
    document = f'<!DOCTYPE domain [<!ENTITY e SYSTEM "file://{secret}">]>'.encode() + domain_xml("&e;")
    with pytest.raises(VirtForwardError) as caught:
        parse_domain(document)
    assert "hidden" not in str(caught.value)


def test_nesting_that_is_too_deep_is_refused() -> None:
    with pytest.raises(VirtForwardError, match="not well-formed XML: Excessive depth"):
        parse_domain(domain_xml("<a>" * 10_000 + "</a>" * 10_000))


def test_document_that_is_too_large_is_refused_unread() -> None:
    with pytest.raises(VirtForwardError, match="larger than 4194304 bytes; refused unread"):
        parse_domain(domain_xml(" " * xml.MAX_BYTES))


def test_comments_and_instructions_are_passed_over() -> None:
    noisy = GOOD.replace("<vf:range", "<!-- - --><?x y?><vf:range")
    assert parse_domain(domain_xml(noisy)) == parse_domain(domain_xml(GOOD))


def test_bridge_of_the_default_document() -> None:
    assert parse_domain(domain_xml(GOOD)).nics == (Nic(MAC, "bridge", BRIDGE),)
