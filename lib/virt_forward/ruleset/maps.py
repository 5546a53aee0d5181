"""The named maps and sets of the table: the type of each, what is looked up in it, and its elements.

A key is a concatenation of fields. A field knows its nft type, the expression that takes it
from a packet, and how a value of it is written; all text about a map follows from its key.
"""

from __future__ import annotations

from virt_forward.model import Address, Listen, Proto, Span, Subnet
from virt_forward.namedtuple import NamedTuple
from virt_forward.names import interface
from virt_forward.ruleset.block import Element

Value = Address | Subnet | Span | str | int

VERDICT = "verdict"
"""The data of a map that leads to chains."""


class Field(NamedTuple):
    """One part of a key: its nft type, and its expression for a packet and for the reply to one."""

    type: str
    expression: str
    reply: str = ""

    def text(self, value: Value) -> str:
        """Return ``value`` as nft writes it."""
        return interface(str(value)) if self.type == "ifname" else str(value)


class Map(NamedTuple):
    """A set, or a map where its elements have ``data``; with ``interval`` their keys may be ranges."""

    name: str
    key: tuple[Field, ...]
    data: str = ""
    interval: bool = False

    def declaration(self) -> str:
        """Return the declaration inside a table block."""
        kind, data = ("map", f" : {self.data}") if self.data else ("set", "")
        types = " . ".join(field.type for field in self.key)
        flags = " flags interval;" if self.interval else ""
        return f"{kind} {self.name} {{ type {types}{data};{flags} }}"

    def lookup(self) -> str:
        """Return the match (of a set), statement (of a verdict map) or expression that looks a packet up."""
        return self._lookup([field.expression for field in self.key])

    def reply_lookup(self) -> str:
        """Return the same for a packet in the reply direction: source for destination, in for out."""
        return self._lookup([field.reply for field in self.key])

    def _lookup(self, expressions: list[str]) -> str:
        word = {"": "", VERDICT: "vmap "}.get(self.data, "map ")
        return f"{' . '.join(expressions)} {word}@{self.name}"

    def element(self, *values: Value, data: str = "") -> Element:
        """Return the element with these values, in the order of the key's fields."""
        parts = [field.text(value) for field, value in zip(self.key, values, strict=True)]
        return Element(self.name, " . ".join(parts), data)


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
        Map(ports, (*address, _PROTO, _PORT), data=VERDICT),
        Map(f"narrowed{suffix}", (*address, _PROTO), data=VERDICT),
        # The port comes first: an interval map that starts with another field is slow to change.
        Map(f"range{suffix}", (_PORT, _PROTO, *address), data=VERDICT, interval=True),
    )


AT = {version: _port_maps(str(version), f"at{version}", _DESTINATION[version]) for version in (4, 6)}
"""The port maps of forwards with an address, by IP version."""
ANY = _port_maps("", "ports")
"""Those of forwards without one; ``ports`` has the single ports of forwards with an address, too."""
TARGETS = {
    (n, at, limited): Map(
        f"to{n}{'-at' if at else ''}{'-dev' if limited else ''}",
        (*((_IN,) if limited else ()), *((_DESTINATION[n],) if at else ()), _PROTO, _PORT),
        data=f"{_DESTINATION[n].type} . {_PORT.type}",
    )
    for n in (4, 6)
    for at in (False, True)
    for limited in (False, True)
}
"""Ports that differ at the guest, to its address and port there: by IP version, and whether the forwards
have an address or a device."""
GUEST = {n: Map(f"guest{n}", (_DESTINATION[n], _OUT), data=VERDICT) for n in (4, 6)}
"""Endpoints, to the chain that counts their connections."""
LAN = Map("lan", (_OUT,), data=VERDICT)
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
ALL = (
    *ANY,
    *TARGETS.values(),
    *_OF_VERSION[0],
    *_OF_VERSION[1],
    ISOLATED_MACS,
    LAN,
    SAME_BRIDGE,
    UPLINKS,
    REVISION,
)
"""All of them, in the order in which they are declared."""


def port_maps(address: Address | None) -> PortMaps:
    """Return the maps of forwards that listen on ``address``, or on every address (None)."""
    return ANY if address is None else AT[address.version]


def port_element(proto: Proto, address: Address | None, port: int, verdict: str) -> Element:
    """Return the element by which one port leads to a chain."""
    return port_maps(address).ports.element(*_optional(address), proto, port, data=verdict)


def narrowed_element(proto: Proto, address: Address | None, verdict: str) -> Element:
    """Return the element by which the narrowed wide ranges of a protocol lead to a chain."""
    return port_maps(address).narrowed.element(*_optional(address), proto, data=verdict)


def range_element(proto: Proto, address: Address | None, span: Span, verdict: str) -> Element:
    """Return the element by which a wide range of ports leads to a guest's chain."""
    return port_maps(address).ranges.element(span, proto, *_optional(address), data=verdict)


def targets(listen: Listen, version: int) -> Map | None:
    """Return the map with the targets in one family of forwards that listen like this.

    None for those limited to a source: networks nest, so that no key finds the narrowest.
    """
    limits = listen.address is not None, listen.dev is not None
    return None if listen.source else TARGETS[version, *limits]


def target_element(listen: Listen, port: int, to: Address, to_port: int) -> Element:
    """Return the element of that map by which one port leads to an address and port of the guest."""
    found = targets(listen, to.version)
    assert found, listen
    dev = () if listen.dev is None else (listen.dev,)
    key = (*dev, *_optional(listen.address), listen.proto, port)
    return found.element(*key, data=f"{to} . {to_port}")


def _optional(address: Address | None) -> tuple[Address, ...]:
    return () if address is None else (address,)
