"""What is fuzzed, and what has to be true of each: one line in TARGETS for each parser.

A target takes bytes. It passes where the parser returns what its types promise or raises the
exception that it documents; an AssertionError or any other exception is a failure.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import closing, suppress
from ipaddress import ip_address
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

from fuzz import seeds
from fuzz.engine import Target
from fuzz.invariants import (
    are_leases,
    are_listeners,
    are_sightings,
    is_address,
    is_guest,
    is_mac,
    is_network,
    is_port,
    is_told,
    is_wire_address,
)
from unit.build import domain_xml
from unit.test_nft_text import resolved
from unit.test_plain import assert_same
from unit.test_probe import ECHO_ID, GATEWAYS
from unit.test_schema import assert_agreement
from virt_forward import config, ports, portspec
from virt_forward.addresses import leases, networkd, probe
from virt_forward.check import includes, listing
from virt_forward.claims import flows, sockets
from virt_forward.claims import index as claims
from virt_forward.cli import report
from virt_forward.config import Config
from virt_forward.effects import record
from virt_forward.effects.item import Change
from virt_forward.effects.libvirt_accept import iptables, nftables, plan
from virt_forward.errors import StateError, UsageError, VirtForwardError
from virt_forward.hooks import events, prefilter
from virt_forward.host import log
from virt_forward.metadata import values, xml
from virt_forward.metadata.domain import parse_domain
from virt_forward.metadata.edit import Document, Where
from virt_forward.metadata.forwards import ROOT
from virt_forward.metadata.network import parse_network
from virt_forward.metadata.spec import Spec, parse_spec
from virt_forward.model import PROTOS, Forward, Span
from virt_forward.ruleset import static, table
from virt_forward.ruleset.block import Block
from virt_forward.state import database, records, upgrade
from virt_forward.state.snapshot import Snapshot
from virt_forward.watch import kernel_events

NOWHERE = "/nonexistent"
"""A run directory without records."""

# Parsers that raise the package's own error, and what is true of what they return.


def text_of(data: bytes) -> str:
    """Return what every reader of foreign text makes of bytes (hostfacts.text, process.run)."""
    return data.decode("utf-8", "replace")


def state_of(data: bytes) -> str | None:
    """Return what state/upgrade.py makes of the bytes of a file of an older version."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def domain(data: bytes) -> None:
    try:
        found = parse_domain(data)
    except VirtForwardError as error:
        is_told(error)
        return
    values.uuid(found.uuid)
    guest = resolved(data)
    if guest:
        is_guest(guest)


def plain(data: bytes) -> None:
    """What is read without lxml is what lxml reads, errors included."""
    assert_same(data)


def declared(document: Document) -> tuple[Forward, ...]:
    """Return the forwards of an edited document as its next reader finds them."""
    declaration = document.domain().declaration
    return ports.expand(declaration) if declaration else ()


def forwards(data: bytes) -> None:
    try:
        root = xml.parse(data, "fuzz")
    except VirtForwardError as error:
        is_told(error)
        return
    # A domain is searched for this element; no other is ever given to the parser.
    if root.tag == ROOT:
        assert_agreement(data)


def edit(data: bytes) -> None:
    try:
        document = Document(data)
    except VirtForwardError as error:
        is_told(error)
        return
    before, shown = document.forwards(), document.text()
    new = Forward("sctp", 9, 9, 10, ip_address("192.0.2.9"), "fuzz0")
    assert document.add([new])
    assert sorted(map(repr, declared(document))) == sorted(map(repr, (*before, new)))
    assert document.submission().element
    assert document.remove([Spec("sctp", Span(9, 9), new.address)], Where("fuzz0")).forwards == (new,)
    assert document.forwards() == before
    assert document.text() == shown or not before
    document.remove_all()
    assert declared(document) == ()


def spec(data: bytes) -> None:
    try:
        found = parse_spec(text_of(data))
    except UsageError as error:
        is_told(error)
        return
    forward = found.forward()
    assert parse_spec(portspec.render(forward)).forward() == forward
    # What a word says, the metadata takes.
    assert Document(domain_xml()).add([forward])


def network(data: bytes) -> None:
    try:
        found, port = parse_network(data)
    except VirtForwardError as error:
        is_told(error)
        return
    is_network(found)
    macs = [lease.mac for lease in found.reservations if lease.mac] + ([port.mac] if port else [])
    guest = resolved(seeds.domain_on(found.name, macs[:3]), (found,))
    if guest:
        is_guest(guest)


def configuration(data: bytes) -> None:
    text = state_of(data)
    try:
        found = config.parse_config(text or "")
    except VirtForwardError as error:
        is_told(error)
        return
    assert all(map(values.is_dev, found.uplinks))
    for item in found.reserved:
        assert item.proto in PROTOS
        is_port(item.port)
    assert static.render(found)
    assert static.render_rules(found)


def guest_record(data: bytes) -> None:
    with suppress(StateError):
        is_guest(records.load_guest(state_of(data) or "", "x"))


def network_record(data: bytes) -> None:
    with suppress(StateError):
        is_network(records.load_network(state_of(data) or "", "x"))


def unfinished(data: bytes) -> None:
    before, after, _ = upgrade._read_unfinished(state_of(data) or "")
    for guest in (*before.values(), *after.values()):
        if guest:
            is_guest(guest)


def whole_database(data: bytes) -> None:
    """Read all that an event may read; what is not as we write it is logged, or raised as damage."""
    with TemporaryDirectory(dir="/dev/shm") as directory, mock.patch.object(log, "_log"):
        Path(directory, database.FILE).write_bytes(data)
        with suppress(StateError):
            _read_all(directory)


def _read_all(directory: str) -> None:
    connection = database.connect(directory)
    if connection is None:
        return
    with closing(Snapshot(connection, directory)) as state:
        guests = [*state.guests().values(), *filter(None, state.previous.values())]
        for guest in guests:
            is_guest(guest)
        for row in state.near((row for guest in guests for row in claims.rows(guest)), ()):
            assert not isinstance(row, claims.EndpointRow) or values.is_dev(row.bridge)
            assert not isinstance(row, claims.PortRow) or 0 < row.span.start <= row.span.end < 65536
        assert all(values.is_dev(bridge) for _, bridge in state.sides())
        assert all(map(values.is_dev, state.bridges()))
        assert all(values.is_dev(item.dev) for item in record.load(state))
        state.networks(), state.revision, state.has_table()


def include(data: bytes) -> None:
    """A block that the file does not have is inserted, and removed again: all else is kept."""
    added = table.Change({}, {"guest 7": Block("guest 7"), "port tcp-7": Block("port tcp-7")})
    found = table.splice(data, 7, 8, added, Config())
    if found is not None:
        back = table.splice(b"".join(found), 8, 7, table.Change(added.after, {}), Config())
        assert back is None or b"".join(back) == data


# Text that programs print and kernels write: nothing is raised, damaged parts are passed over.


def neighbour_events(data: bytes) -> None:
    kernel_events.concerns_guests(data)
    for neighbour in kernel_events.neighbours(data):
        is_wire_address(neighbour.ip)
        if neighbour.mac or not neighbour.removed:
            is_mac(neighbour.mac)


def monitor(data: bytes) -> None:
    assert plan.chain_changed(data) in (True, False)
    assert all(isinstance(words, bytes) for words in kernel_events.TABLE_DELETED if words in data)


def neighbour_table(data: bytes) -> None:
    found = leases.neighbours(text_of(data))
    are_leases((*found.confirmed, *found.others))


def network_files(data: bytes) -> None:
    found = networkd.bridge_config({"a.network": text_of(data)}, "virbr0", "52:54:00:9a:8a:d1")
    for interface in found.addresses:
        assert not interface.ip.is_unspecified
        is_address(interface.ip)
    for lease in found.leases:
        is_address(lease.ip)
        is_mac(lease.mac or "")


def connections(data: bytes) -> None:
    everybody = frozenset(map(ip_address, ("198.51.100.200", "2001:db8:10::200", "192.0.2.1")))
    for flow, messages in flows.parse([data], everybody).items():
        assert messages == [data]
        assert flow.answering in everybody
        assert flow.source
        for ip in (flow.source, flow.destination):
            is_wire_address(ip)
        for port in (flow.destination_port, flow.answering_port):
            is_port(port, 0)


def admit(parse: Callable[[str], list[plan.Rule]]) -> Callable[[bytes], None]:
    def target(data: bytes) -> None:
        try:
            found = parse(text_of(data))
        except VirtForwardError as error:
            is_told(error)
            return
        for rule in found:
            assert all(isinstance(word, str) for word in (*rule.handle, rule.bridge))
        seen = plan.Seen(
            frozenset({plan.Side("ip", "virbr5"), plan.Side("ip", "virbr6")}),
            (plan.Chain("nftables", "ip", tuple(found)),),
        )
        desired = plan.desired(Change(Config()), seen)
        assert all(plan.present(item, seen) is not None for item in desired)

    return target


def counters(data: bytes) -> None:
    """Check only what is JSON of the right outline: nft is trusted for the rest."""
    with suppress(ValueError, RecursionError, KeyError, TypeError, AttributeError):
        for packets, size in report.counters(json.loads(text_of(data))["nftables"]).values():
            assert packets + size is not None


def arguments(data: bytes) -> None:
    words = [os.fsdecode(word) for word in data.split(b"\0")]
    for driver in ("qemu", "network"):
        found = events.parse_event(driver, words)
        assert found.policy.action in events.Action
    before = os.environ.get("VIRT_FORWARD_RUN_DIR")
    os.environ["VIRT_FORWARD_RUN_DIR"] = NOWHERE
    try:
        assert prefilter.concerns_us(words[:3], data) in (True, False)
        assert prefilter.network_concerns_us(words[:3], data) in (True, False)
    finally:
        del os.environ["VIRT_FORWARD_RUN_DIR"]
        os.environ |= {} if before is None else {"VIRT_FORWARD_RUN_DIR": before}


def ruleset(data: bytes) -> None:
    """A ruleset that includes itself, as often as it likes."""
    text = text_of(data)

    def read(pattern: str) -> list[tuple[str, str]]:
        return [(pattern, text)]

    assert includes.flushes(text, read) in (True, False)
    assert includes.included_after(text, "/run/virt-forward/ruleset.nft", read) in (True, False)


def table_listing(data: bytes) -> None:
    found = listing.parse(text_of(data))
    assert not listing.differences(found, found)


LEASE_TIME = 1795380000.0
"""When the leases of the seeds are valid."""

TARGETS = (
    # from the wire and from netlink
    Target("arp", lambda data: are_sightings([probe.parse_arp_reply(data, GATEWAYS)]), seeds.ARP),
    Target("echo", lambda data: are_sightings([probe.parse_echo_reply(data, GATEWAYS, ECHO_ID)]), seeds.ECHO),
    Target("dhcp", lambda data: are_sightings([probe.parse_dhcp_ack(data, GATEWAYS)]), seeds.DHCP),
    Target("netlink", neighbour_events, seeds.NETLINK),
    Target("nft-monitor", monitor, seeds.MONITOR),
    # what DHCP servers, networkd and libvirt write
    Target("networkd-leases", lambda d: are_leases(leases.networkd(text_of(d), LEASE_TIME)), seeds.NETWORKD),
    Target("dnsmasq-leases", lambda d: are_leases(leases.dnsmasq(text_of(d), LEASE_TIME)), seeds.DNSMASQ),
    Target("ip-neighbour", neighbour_table, seeds.NEIGHBOURS),
    Target("networkd", network_files, seeds.NETWORK_FILES),
    Target("domain", domain, seeds.DOMAINS),
    Target("plain", plain, seeds.DOMAINS),
    Target("forwards", forwards, seeds.FORWARDS),
    Target("network", network, seeds.NETWORKS),
    Target("hook-arguments", arguments, seeds.ARGUMENTS),
    # what a person writes
    Target("config", configuration, seeds.CONFIGS),
    Target("spec", spec, seeds.SPECS),
    Target("edit", edit, seeds.DOMAINS),
    Target("includes", ruleset, seeds.RULESETS),
    # our own state
    Target("guest-record", guest_record, seeds.GUEST_RECORDS),
    Target("network-record", network_record, seeds.NETWORK_RECORDS),
    Target("database", whole_database, seeds.DATABASES),
    Target("unfinished", unfinished, seeds.UNFINISHED),
    Target("include-file", include, seeds.INCLUDES),
    # what the kernel and other programs print
    Target("proc-tcp", lambda data: are_listeners(sockets.parse("tcp", text_of(data))), seeds.PROC_TCP),
    Target("proc-udp", lambda data: are_listeners(sockets.parse("udp", text_of(data))), seeds.PROC_UDP),
    Target("proc-sctp", lambda data: are_listeners(sockets.parse_sctp(text_of(data))), seeds.PROC_SCTP),
    Target("conntrack", connections, seeds.CONNTRACK),
    Target("iptables", admit(iptables.parse), seeds.IPTABLES),
    Target("nft-chain", admit(nftables.parse), seeds.NFT_CHAINS),
    Target("nft-counters", counters, seeds.NFT_CHAINS),
    Target("nft-listing", table_listing, seeds.LISTINGS),
)
