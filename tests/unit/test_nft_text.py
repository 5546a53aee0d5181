"""No input makes anything but typed values reach nft."""

from __future__ import annotations

import json
from ipaddress import ip_interface
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unit import strategies as make
from unit.build import NoRoutes, domain_xml, forward, guest
from unit.nft_grammar import assert_spoken
from unit.simulation import Event, Simulation, events, transaction
from unit.test_records import DELETE, EVIL, FULL, changed, paths
from virt_forward.addresses.attachments import BridgeFacts, HostFacts
from virt_forward.addresses.resolve import resolve
from virt_forward.config import Config
from virt_forward.errors import StateError, VirtForwardError
from virt_forward.metadata.domain import parse_domain
from virt_forward.metadata.network import parse_network
from virt_forward.model import Guest, Network
from virt_forward.ruleset import table
from virt_forward.state.records import dump_guest, load_guest


def spoken(guests: list[Guest]) -> None:
    for config in (Config(), Config(hairpin=False)):
        for paragraph in table.whole(guests, config, 1).paragraphs:
            assert_spoken(paragraph)


@given(events)
def test_nft_text_of_guests_has_typed_values_only(happenings: list[Event]) -> None:
    simulation = Simulation()
    for happening in happenings:
        include = simulation.include
        assert_spoken(transaction(include, simulation.change(happening)))
        spoken(list(simulation.guests.values()))


class Bridges(dict[str, BridgeFacts]):
    """Bridges of any name, on each of which the host has the same addresses."""

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> BridgeFacts:
        return BridgeFacts((ip_interface("198.51.100.1/24"), ip_interface("2001:db8:10::1/64")))


def resolved(xml: bytes, networks: tuple[Network, ...] = ()) -> Guest | None:
    try:
        domain = parse_domain(xml)
        return resolve(
            domain, HostFacts(networks, Bridges(), routes=NoRoutes()), Config(), "running", lambda _: []
        )
    except VirtForwardError:
        return None


HOST = '<vf:host ip="198.51.100.200"/><vf:host ip="2001:db8:10::200"/>'


@given(make.documents, st.text(max_size=30).filter(lambda text: "]]>" not in text))
def test_nft_text_of_documents_has_typed_values_only(document: bytes, name: str) -> None:
    good = document.decode().replace("</vf:forwards>", f"{HOST}</vf:forwards>")
    for metadata in (document.decode(), good):
        found = resolved(domain_xml(metadata, name=f"<![CDATA[{name}]]>"))
        if found:
            spoken([found])


def test_good_document_does_come_to_something() -> None:
    """Or the test above would prove nothing."""
    forwards = '<portForward proto="tcp"><range start="80"/></portForward><host ip="198.51.100.200"/>'
    found = resolved(
        domain_xml(f'<forwards xmlns="urn:virt-forward:1">{forwards}</forwards>', name="&quot;;}")
    )
    assert found
    assert found.endpoints
    text = "\n".join(table.whole([found], Config(), 1).paragraphs)
    assert "dnat ip to 198.51.100.200:80" in text
    assert_spoken(text)


@pytest.mark.parametrize("bridge", ["a b", 'x" accept', "..", "", "x" * 16, "virbr1", "x;y", "x\ny"])
@pytest.mark.parametrize("ip", ["192.0.2.9", "2001:db8::9%a } accept", "2001:db8::9", "x"])
def test_nft_text_of_networks_has_typed_values_only(bridge: str, ip: str) -> None:
    written = bridge.replace('"', "&quot;").replace("\n", "&#10;")
    xml = f"""<network><name>n</name><uuid>{FULL.uuid}</uuid><bridge name="{written}"/>
    <ip address="192.0.2.1" prefix="24"><dhcp><host mac="52:54:00:00:00:01" ip="{ip}"/></dhcp></ip>
    </network>"""
    nic = "<interface type='network'><mac address='52:54:00:00:00:01'/><source network='n'/></interface>"
    forwards = '<portForward proto="tcp"><range start="80"/></portForward>'
    metadata = f'<forwards xmlns="urn:virt-forward:1">{forwards}</forwards>'
    found = resolved(domain_xml(metadata, nic), (parse_network(xml.encode())[0],))
    assert (found is None) == (bridge not in ("", "virbr1"))  # a name that nft cannot have is refused
    if found is None:
        return
    spoken([found])
    assert bool(found.endpoints) == (bridge == "virbr1" and ip == "192.0.2.9")


@pytest.mark.parametrize(
    "path", paths(json.loads(dump_guest(FULL)))[1:], ids=lambda path: ".".join(map(str, path))
)
def test_nft_text_of_records_has_typed_values_only(path: tuple[Any, ...]) -> None:
    document = json.loads(dump_guest(FULL))
    for value in (*EVIL, DELETE):
        try:
            found = load_guest(json.dumps(changed(document, path, value)), "x")
        except StateError:
            continue
        spoken([found])


@pytest.mark.parametrize(
    "line",
    [
        "flush ruleset",
        "# guest x",
        "table inet filter {",
        "add chain inet filter guest-a-12345678 {",
        "\taccept",
        '\tcomment "a" ; flush ruleset',
        "\tjump guest-web accept",
        "add element inet virt-forward ports { tcp . 80 : accept }",
        "delete chain inet virt-forward prerouting",
        "add chain inet virt-forward guest-a b {",
    ],
)
def test_grammar_is_one(line: str) -> None:
    with pytest.raises(AssertionError):
        assert_spoken(line)


def test_every_kind_of_rule_is_spoken() -> None:
    """A grammar that no text makes use of would say little."""
    guests = [
        guest(
            "a",
            forward(80, dev="enp1s0"),
            forward(1000, 3000, source="192.0.2.0/24"),
            forward(5, 7, to=50),
            forward(600, to=700),
            forward(9),
        )._replace(isolate=True),
        guest(
            "b",
            forward(1, 65535, address="203.0.113.7"),
            forward(9, dev="e", address="203.0.113.8"),
            forward(2000, 2500, dev="e"),
            forward(53),
            forward(53, proto="udp"),
            forward(3000, 3200, to=4000),
            forward(3000, 3200, proto="udp", to=4000),
            *(forward(5000 + 2 * number) for number in range(9)),
        ),
    ]
    text = "\n".join(table.whole(guests, Config(hairpin=False), 1).paragraphs)
    assert_spoken(text)
    for word in (
        "th dport 1000-3000",
        "tcp dport { 53, 5000, ",
        "counter goto to4",
        "th dport map { 3000 : 4000, ",
        "port-tcp-range",
        "jump at",
        "iifname != ",
        "meta l4proto tcp ip daddr",
        "meta l4proto { tcp, udp } th dport 3000-3200",
        "masquerade",
        "@isolated",
    ):
        assert word in text, word
