"""The named maps and sets of the table: the type of each, what is looked up in it, and its elements.

A key is a concatenation of fields. A field knows its nft type, the expression that takes it
from a packet, and how a value of it is written; all text about a map follows from its key.
"""

from __future__ import annotations

from virt_forward.model import Address, Proto, Span, Subnet
from virt_forward.namedtuple import NamedTuple
from virt_forward.names import interface
from virt_forward.ruleset.block import Element

Value = Address | Subnet | Span | str | int


class Field(NamedTuple):
    """One part of a key: its nft type, and its expression for a packet and for the reply to one."""

    type: str
    expression: str
    reply: str = ""

    def text(self, value: Value) -> str:
        """Return ``value`` as nft writes it."""
        return interface(str(value)) if self.type == "ifname" else str(value)


class Map(NamedTuple):
    """A set, or with ``verdict`` a map to verdicts; with ``interval`` its elements may be ranges."""

    name: str
    key: tuple[Field, ...]
    verdict: bool = False
    interval: bool = False

    def declaration(self) -> str:
        """Return the declaration inside a table block."""
        kind, data = ("map", " : verdict") if self.verdict else ("set", "")
        types = " . ".join(field.type for field in self.key)
        flags = " flags interval;" if self.interval else ""
        return f"{kind} {self.name} {{ type {types}{data};{flags} }}"

    def lookup(self) -> str:
        """Return the statement (of a map) or the match (of a set) that looks a packet up."""
        return self._lookup([field.expression for field in self.key])

    def reply_lookup(self) -> str:
        """Return the same for a packet in the reply direction: source for destination, in for out."""
        return self._lookup([field.reply for field in self.key])

    def _lookup(self, expressions: list[str]) -> str:
        return f"{' . '.join(expressions)} {'vmap ' if self.verdict else ''}@{self.name}"

    def element(self, *values: Value, verdict: str = "") -> Element:
        """Return the element with these values, in the order of the key's fields."""
        parts = [field.text(value) for field, value in zip(self.key, values, strict=True)]
        return Element(self.name, " . ".join(parts), verdict)


_PROTO = Field("inet_proto", "meta l4proto")
_PORT = Field("inet_service", "th dport")
_IN = Field("ifname", "iifname")
_OUT = Field("ifname", "oifname", reply="iifname")
_DESTINATION = {
    4: Field("ipv4_addr", "ip daddr", reply="ip saddr"),
    6: Field("ipv6_addr", "ip6 daddr", reply="ip6 saddr"),
}


class PortMaps(NamedTuple):
    """The maps of forwards that listen on one IPv4 address, on one IPv6 address, or on every address.

    ``ports`` has every single port, ``narrowed`` the protocols with wide ranges that are limited to a
    device or a source, ``ranges`` the other wide ranges. They are looked up in this order.
    """

    ports: Map
    narrowed: Map
    ranges: Map


def _port_maps(suffix: str, ports: str, *address: Field) -> PortMaps:
    return PortMaps(
        Map(ports, (*address, _PROTO, _PORT), verdict=True),
        Map(f"narrowed{suffix}", (*address, _PROTO), verdict=True),
        # The port comes first: an interval map that starts with another field is slow to change.
        Map(f"range{suffix}", (_PORT, _PROTO, *address), verdict=True, interval=True),
    )


AT = {version: _port_maps(str(version), f"at{version}", _DESTINATION[version]) for version in (4, 6)}
"""The port maps of forwards with an address, by IP version."""
ANY = _port_maps("", "ports")
"""Those of forwards without one; ``ports`` has the single ports of forwards with an address, too."""
GUEST = {n: Map(f"guest{n}", (_DESTINATION[n], _OUT), verdict=True) for n in (4, 6)}
"""Endpoints, to the chain that counts their connections."""
LAN = Map("lan", (_OUT,), verdict=True)
"""Guest bridges, to the chain that masquerades what came from the same bridge."""
GATEWAY = {n: Map(f"gateway{n}", (_DESTINATION[n],)) for n in (4, 6)}
"""The host's own addresses on guest bridges."""
ISOLATED = {n: Map(f"isolated{n}", (_DESTINATION[n], _OUT)) for n in (4, 6)}
"""Endpoints that only forwarded connections may reach."""
ISOLATED_MACS = Map("isolated", (Field("ether_addr", "ether saddr"),))
"""Hardware addresses of isolated guests, whose other addresses may be unknown."""
SAME_BRIDGE = Map("own", (_IN, _OUT))
"""Guest bridges, each paired with itself: what stays on one bridge."""
UPLINKS = Map("uplinks", (_IN,))
"""The configured uplinks."""
REVISION = Map("revision", (Field("mark", ""),))
"""One number: which change of the table this is."""

_OF_VERSION = tuple((*AT[n], GUEST[n], GATEWAY[n], ISOLATED[n]) for n in (4, 6))
ALL = (*ANY, *_OF_VERSION[0], *_OF_VERSION[1], ISOLATED_MACS, LAN, SAME_BRIDGE, UPLINKS, REVISION)
"""All of them, in the order in which they are declared."""


def port_maps(address: Address | None) -> PortMaps:
    """Return the maps of forwards that listen on ``address``, or on every address (None)."""
    return ANY if address is None else AT[address.version]


def port_element(proto: Proto, address: Address | None, port: int, verdict: str) -> Element:
    """Return the element by which one port leads to a chain."""
    return port_maps(address).ports.element(*_optional(address), proto, port, verdict=verdict)


def narrowed_element(proto: Proto, address: Address | None, verdict: str) -> Element:
    """Return the element by which the narrowed wide ranges of a protocol lead to a chain."""
    return port_maps(address).narrowed.element(*_optional(address), proto, verdict=verdict)


def range_element(proto: Proto, address: Address | None, span: Span, verdict: str) -> Element:
    """Return the element by which a wide range of ports leads to a guest's chain."""
    return port_maps(address).ranges.element(span, proto, *_optional(address), verdict=verdict)


def _optional(address: Address | None) -> tuple[Address, ...]:
    return () if address is None else (address,)
