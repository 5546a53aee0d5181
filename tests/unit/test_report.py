"""What ``list`` shows: state, reason and origin of each forward."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from unit.build import BRIDGE, MAC, UUID, endpoint, forward, guest
from virt_forward import names
from virt_forward.claims import absent
from virt_forward.cli import report
from virt_forward.model import Declaration, Domain, Forward, Guest, HostAddress, Nic, PortForward, Range
from virt_forward.ruleset import guest as guest_block

HOST = absent.Host(
    frozenset({ip_address("192.0.2.1")}), (ip_network("127.0.0.0/8"),), frozenset({"enp1s0", BRIDGE})
)
DECLARED = Declaration((PortForward("tcp", (Range(8080, 8080, 8080),)),))


def counted(record: Guest) -> report.Counters:
    chain = guest_block.count_chain(names.suffix(record.name, record.uuid))
    return {(chain, guest_block.counter_comment(number)): (3, 180) for number in range(len(record.forwards))}


def reached(record: Guest) -> frozenset[str]:
    return frozenset({guest_block.nat_chain(names.suffix(record.name, record.uuid))})


def only_line(record: Guest, host: absent.Host | None = HOST) -> report.Line:
    item = record.forwards[0]
    declared = PortForward(
        item.proto, (Range(item.start, item.end, item.to),), item.address, item.dev, item.source, item.mac
    )
    domain = Domain(record.name, record.uuid, declaration=Declaration((declared,)))
    (line,) = report.lines(domain, True, record, report.HostState(counted(record), (), host, reached(record)))
    return line


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        (forward(), None),
        (forward(address="192.0.2.1", dev="enp1s0"), None),
        (forward(address="127.0.0.1"), None),
        (forward(address="203.0.113.7"), "no interface of this host has 203.0.113.7 now"),
        (forward(dev="enp9s0"), "interface enp9s0 does not exist now"),
        (
            forward(address="203.0.113.7", dev="enp9s0"),
            "no interface of this host has 203.0.113.7 now; interface enp9s0 does not exist now",
        ),
    ],
)
def test_active_forward_has_missing_address_or_device_as_reason(wanted: Forward, reason: str | None) -> None:
    line = only_line(guest("web", wanted))
    assert (line.state, line.reason) == ("active", reason)
    assert only_line(guest("web", wanted), None).reason is None


def test_active_forward_has_missing_bridge_as_reason() -> None:
    line = only_line(guest("web", forward(), endpoints=(endpoint(bridge="virbr9"),)))
    assert (line.state, line.reason) == ("active", "the guest's bridge virbr9 does not exist now")


def test_forward_is_missing_where_no_packet_comes_to_its_rules() -> None:
    record = guest("web", forward())
    domain = Domain(record.name, record.uuid, declaration=DECLARED)
    (line,) = report.lines(domain, True, record, report.HostState(counted(record)))
    assert line.state == "missing"


RULE = {"rule": {"chain": "guest-web", "expr": [{"counter": {}}, {"dnat": {"addr": "192.0.2.1"}}]}}
BASE = {"rule": {"chain": "prerouting", "expr": [{"vmap": {"key": {}, "data": "@ports"}}]}}
VERDICT = {"jump": {"target": "guest-web"}}
PORTS = {"map": {"name": "ports", "elem": [[{"concat": ["tcp", 8080]}, VERDICT]]}}
SLOT = {"rule": {"chain": "port-tcp-8080", "expr": [{"match": {}}, {"goto": {"target": "guest-web"}}]}}


@pytest.mark.parametrize(
    ("items", "found"),
    [
        ([RULE, BASE, PORTS], {"guest-web"}),
        ([RULE, BASE, SLOT], {"guest-web"}),
        ([BASE, PORTS], set()),
        ([RULE, PORTS], set()),
        ([RULE, BASE, {"map": {"name": "ports"}}], set()),
        (None, set()),
    ],
    ids=["map", "rule", "no rules", "no base chain", "no element", "no table"],
)
def test_chains_that_packets_come_to(items: list[dict[str, object]] | None, found: set[str]) -> None:
    assert report.reached_chains(items) == found


def test_line_has_origin_of_each_address() -> None:
    endpoints = (
        endpoint("2001:db8:10::2")._replace(origin="neighbour"),
        endpoint()._replace(origin="leased"),
    )
    shown = report.as_json(only_line(guest("web", forward(), endpoints=endpoints)))
    assert shown["guest"] == ["198.51.100.200", "2001:db8:10::2"]
    assert shown["origins"] == ["leased", "neighbour"]


def test_inactive_guest_has_declared_addresses() -> None:
    declaration = DECLARED._replace(hosts=(HostAddress(ip_address("198.51.100.9")),))
    (line,) = report.lines(Domain("web", UUID, (), declaration), False, None, report.HostState({}))
    shown = report.as_json(line)
    assert (shown["guest"], shown["origins"], shown["state"]) == (["198.51.100.9"], ["declared"], "inactive")


@pytest.mark.parametrize(
    ("nics", "reason"),
    [
        ((Nic(MAC, "bridge", BRIDGE),), "declared since the guest started, or the state was lost; run"),
        ((Nic(MAC, "bridge", "br\n0"),), 'the name of its bridge, "br?0", is not supported'),
        ((Nic(MAC, "direct", "enp1s0"),), "its NIC is of type direct (macvtap)"),
    ],
)
def test_forward_without_record_has_reason(nics: tuple[Nic, ...], reason: str) -> None:
    (line,) = report.lines(Domain("web", UUID, nics, DECLARED), True, None, report.HostState({}))
    assert line.state == "missing"
    assert line.reason
    assert line.reason.startswith(reason)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", ()),
        ("[", ()),
        ('[{"type":"local","dst":"127.0.0.0/8","dev":"lo"}]', ("127.0.0.0/8",)),
        ('[{"type":"local","dst":"::1"},{"type":"local","dst":"default"}]', ("::1/128",)),
    ],
)
def test_local_routes_are_parsed(text: str, found: tuple[str, ...]) -> None:
    assert absent.parse_local_routes(text) == tuple(map(ip_network, found))
