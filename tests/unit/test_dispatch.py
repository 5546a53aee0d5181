"""Where a packet goes: the rules and maps, run here as the kernel would, against what is promised.

The promise: of all forwards that match a packet the most specific one gets it: an address before
any, then a device before any, then the narrower source. What is for the gateway address of a
guest network stays with the host, unless a forward asks for that address.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from typing import NamedTuple

import pytest
from hypothesis import given, settings

from unit import strategies as make
from unit.build import endpoint, forward, guest
from unit.simulation import Event, Simulation, events
from virt_forward import ports
from virt_forward.claims import index as claims
from virt_forward.model import Address, Forward, Guest
from virt_forward.ruleset import maps, table
from virt_forward.ruleset.block import Chain


class Packet(NamedTuple):
    proto: str
    source: Address
    destination: Address
    port: int
    dev: str


V4 = tuple(map(ip_address, ("192.0.2.1", "192.0.2.200", "198.18.0.1")))
V6 = tuple(map(ip_address, ("2001:db8:2::1", "2001:db8:3::1")))
HOST = (
    *map(ip_address, ("203.0.113.7", "203.0.113.8", "2001:db8::7", "2001:db8::8")),
    *make.GATEWAYS,
)
PACKETS = [
    Packet(proto, source, destination, port, dev)
    for proto in ("tcp", "udp")
    for destination in HOST
    for source in (V4 if destination.version == 4 else V6)
    for port in (1, 80, 81, 90, 600)
    for dev in ("enp1s0", "wlan0", "eth9")
]
"""At least one for every way in which the made-up forwards can overlap."""


def promised(guests: list[Guest], packet: Packet) -> str | None:
    """Return where the packet is promised to go."""
    version = packet.destination.version
    rows = [row for guest in guests for row in claims.rows(guest)]
    gateways = {row.ip for row in rows if isinstance(row, claims.GatewayRow)}
    asked = packet.destination if packet.destination in gateways else None
    found: list[tuple[Forward, Address]] = [
        (forward, endpoint.ip)
        for guest in guests
        if guest.phase == "running"
        for forward in guest.forwards
        for endpoint in guest.endpoints_for(forward)
        if endpoint.ip.version == version and matches(forward, packet) and asked in (None, forward.address)
    ]
    if not found:
        return None
    forward, ip = min(found, key=lambda pair: ports.specificity(pair[0])[:3])
    return f"{ip} {packet.port - forward.start + forward.to}"


def matches(forward: Forward, packet: Packet) -> bool:
    return (
        forward.proto == packet.proto
        and forward.start <= packet.port <= forward.end
        and forward.address in (None, packet.destination)
        and forward.dev in (None, packet.dev)
        and (forward.source is None or packet.source in forward.source)
    )


class Kernel:
    """As much of nftables as our prerouting chain needs."""

    def __init__(self, simulation: Simulation) -> None:
        index = simulation.index()
        blocks = table.blocks_of(simulation.guests.values(), index, index, simulation.config).values()
        self.chains: dict[str, Chain] = {chain.name: chain for block in blocks for chain in block.chains}
        self.maps: dict[str, list[tuple[str, str]]] = {}
        for element in (element for block in blocks for element in block.elements):
            self.maps.setdefault(element.container, []).append((element.key, element.data))

    def dispatch(self, packet: Packet) -> str | None:
        return self._run("prerouting", packet)

    def _run(self, name: str, packet: Packet) -> str | None:
        chain = self.chains.get(name)
        for rule in chain.rules if chain else ():
            for target in self._targets(rule, packet):
                if found := self._run(target, packet):
                    return found
            match, _, name = rule.partition(" counter goto ")
            if name and self._holds(match, packet):
                return self._target(name, packet)
            if " dnat " in rule and self._holds(rule, packet):
                return self._translated(rule, packet)
        return None

    def _targets(self, rule: str, packet: Packet) -> Iterator[str]:
        key, _, name = rule.partition(" vmap @")
        if name:
            yield from self._looked_up(name, key.split(" . "), packet)
        elif rule.startswith("jump "):
            yield rule.removeprefix("jump ")
        elif " jump " in rule and self._holds(rule, packet):
            yield rule.partition(" jump ")[2]

    def _looked_up(self, name: str, key: list[str], packet: Packet) -> Iterator[str]:
        facts = facts_of(packet)
        assert name in self.maps or name == "ports", f"{name} is asked and has no elements"
        if not set(key) <= set(facts):
            return
        wanted = [facts[part] for part in key]
        found = [data for key, data in self.maps.get(name, ()) if within(wanted, key.split(" . "))]
        assert len(found) <= 1, f"{name}: two elements for {wanted}"
        yield from (data.removeprefix("jump ") for data in found)

    def _translated(self, rule: str, packet: Packet) -> str:
        text = rule.partition(" dnat ")[2].partition(" to ")[2]
        found = re.fullmatch(r"\[?([0-9a-f:]+:[0-9a-f:]*|[\d.]+)\]?(?::(.*))?", text)
        assert found, text
        address, port = found[1], found[2] or ""
        if "{" in port:
            port = dict(re.findall(r"(\d+) : (\d+)", port))[str(packet.port)]
        return f"{address} {port or packet.port}"

    def _target(self, name: str, packet: Packet) -> str:
        """Return what a map of targets has; one without it would have the label set, and no translation."""
        version = packet.destination.version
        each = next(each for (n, *_), each in maps.TARGETS.items() if (n, each.name) == (version, name))
        key = " . ".join(facts_of(packet)[field.expression] for field in each.key)
        return dict(self.maps[name])[key].replace(" . ", " ")

    def _holds(self, rule: str, packet: Packet) -> bool:
        kept = re.search(r"daddr != @(gateway\d)", rule)
        gateways = self.maps.get(kept[1], ()) if kept else ()
        return holds(rule, packet) and (str(packet.destination), "") not in gateways


def facts_of(packet: Packet) -> dict[str, str]:
    """Return what the expressions in the keys of maps take from a packet."""
    family = "ip" if packet.destination.version == 4 else "ip6"
    return {
        "th dport": str(packet.port),
        "meta l4proto": packet.proto,
        "iifname": f'"{packet.dev}"',
        f"{family} daddr": str(packet.destination),
    }


def within(wanted: list[str], key: list[str]) -> bool:
    return all(one == other or in_span(one, other) for one, other in zip(wanted, key, strict=True))


def in_span(port: str, span: str) -> bool:
    first, dash, last = span.partition("-")
    return bool(dash) and port.isdigit() and int(first) <= int(port) <= int(last)


def holds(rule: str, packet: Packet) -> bool:
    version = packet.destination.version
    dev = re.search(r'iifname "([^"]+)"', rule)
    source = re.search(r"saddr (\S+)", rule)
    daddr = re.search(r"ip6? daddr ([0-9a-f:.]+)", rule)
    family = re.search(r"nfproto ipv(\d)|ip(6?) daddr", rule)
    protos = re.search(r"\b(tcp|udp|sctp) dport|meta l4proto (?:\{ ([^}]*) \}|(\w+))", rule)
    dport = re.search(r"dport (?:\{ ([^}]*) \}|([\d-]+))", rule)
    return (
        (not dev or dev[1] == packet.dev)
        and (not source or packet.source in ip_network(source[1]))
        and (not daddr or packet.destination == ip_address(daddr[1]))
        and (not family or int(family[1] or family[2] or 4) == version)
        and (not protos or packet.proto in listed(protos))
        and (not dport or any(in_ports(packet.port, span) for span in listed(dport)))
    )


def listed(found: re.Match[str]) -> list[str]:
    text: str = next(filter(None, found.groups()))
    return text.split(", ")


def in_ports(port: int, span: str) -> bool:
    first, _, last = span.partition("-")
    return int(first) <= port <= int(last or first)


def outcomes(simulation: Simulation) -> list[str | None]:
    kernel, guests = Kernel(simulation), list(simulation.guests.values())
    expected = [promised(guests, packet) for packet in PACKETS]
    for packet, wanted in zip(PACKETS, expected, strict=True):
        assert kernel.dispatch(packet) == wanted, packet
    return expected


def test_most_specific_forward_gets_the_packet() -> None:
    arrived: set[str | None] = set()

    @settings(max_examples=40)
    @given(events)
    def check(happenings: list[Event]) -> None:
        simulation = Simulation()
        for happening in happenings:
            simulation.change(happening)
        arrived.update(outcomes(simulation))

    check()
    # A simulation in which nothing arrives would prove nothing.
    guests = {outcome.partition(" ")[0] for outcome in arrived if outcome}
    assert None in arrived
    assert len(guests) >= 4


@pytest.mark.parametrize("end", [80, 1000])
def test_guest_at_an_address_does_not_overtake_another_guest_with_its_claim_on_any_address(end: int) -> None:
    """One has the port at an address on one device, and everywhere; another has it on the other device."""
    simulation = Simulation()
    both = guest(
        "both",
        forward(80),
        forward(80, end, address="203.0.113.7", dev="enp1s0"),
        endpoints=[endpoint("198.51.100.20")],
    )
    one = guest("one", forward(80, dev="wlan0"), endpoints=[endpoint("198.51.100.21")])
    for number, item in enumerate((both, one)):
        simulation.change(Event(number, item))
    assert {"198.51.100.20 80", "198.51.100.21 80"} <= set(outcomes(simulation))


@pytest.mark.parametrize("edge", [1, 600])
def test_narrowed_wide_range_has_its_first_and_last_port_before_a_plain_forward(edge: int) -> None:
    simulation = Simulation()
    wide = guest("wide", forward(1, 600, dev="enp1s0"), endpoints=[endpoint("198.51.100.20")])
    one = guest("one", forward(edge), endpoints=[endpoint("198.51.100.21")])
    for number, item in enumerate((wide, one)):
        simulation.change(Event(number, item))
    assert {f"198.51.100.20 {edge}", f"198.51.100.21 {edge}"} <= set(outcomes(simulation))


def test_restricted_port_precedes_a_less_restricted_wide_range() -> None:
    simulation = Simulation()
    wide = guest("wide", forward(1, 1000, dev="enp1s0"), endpoints=[endpoint("198.51.100.20")])
    one = guest(
        "one", forward(80, dev="enp1s0", source="192.0.2.0/24"), endpoints=[endpoint("198.51.100.21")]
    )
    for number, item in enumerate((wide, one)):
        simulation.change(Event(number, item))
    assert {"198.51.100.20 80", "198.51.100.21 80"} <= set(outcomes(simulation))
