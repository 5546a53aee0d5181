"""The rows of the index of claims: what each guest has a claim to. They follow from the guest's record."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from virt_forward import text
from virt_forward.metadata import values
from virt_forward.model import Address, Forward, Guest, Listen, Origin, Span, Subnet
from virt_forward.namedtuple import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Literal

    State = Literal["open", "held", "kept out"]
else:
    State = str

STATES: tuple[State, ...] = ("open", "held", "kept out")
"""Of a claim to host ports: its rules are in the table; it only keeps the ports for a guest that does
not run, or whose address is not known; a conflict keeps it out, so that it holds nothing."""

MAX_NAME = 100
"""Characters of a guest's name: more than a message or a chain's name takes of it."""


class PortRow(NamedTuple):
    """A guest's claim to host ports."""

    uuid: str
    name: str
    state: State
    listen: Listen
    span: Span

    @property
    def holds(self) -> bool:
        """Whether it keeps others from these ports."""
        return self.state != "kept out"


class EndpointRow(NamedTuple):
    """A guest's address on a bridge, and where it was learned; it holds none that another guest has."""

    uuid: str
    name: str
    ip: Address
    bridge: str
    origin: Origin
    holds: bool = True


class SubnetRow(NamedTuple):
    """A subnet that the host has on the bridge of a running guest with forwards."""

    uuid: str
    name: str
    subnet: Subnet
    bridge: str


class GatewayRow(NamedTuple):
    """An address that the host itself has on such a bridge."""

    uuid: str
    name: str
    ip: Address


LOOKUPS = frozenset(
    ("ports", "at4", "at6", "range", "range4", "range6", "narrowed", "narrowed4", "narrowed6", "isolated")
)


class LookupRow(NamedTuple):
    """A lookup that packets need because of a guest that is in the table.

    It is "ports" for every such guest; "at4" or "at6" for single ports, "range4" or "range6" for wide
    ranges, "narrowed4" or "narrowed6" for those narrowed to a device or source, of forwards with an
    address; "range" and "narrowed" for wide ranges without one; "isolated" for an isolated guest.
    """

    uuid: str
    name: str
    lookup: str


class IsolatedRow(NamedTuple):
    """A hardware address of an isolated guest that runs."""

    uuid: str
    name: str
    mac: str


Row = PortRow | EndpointRow | SubnetRow | GatewayRow | LookupRow | IsolatedRow
"""``name`` is the guest's, on one line and at most MAX_NAME characters long."""

Index = tuple[Row, ...]


def rows(guest: Guest) -> Index:
    """Return what one guest adds to the index."""
    return tuple(_rows(guest))


def _rows(guest: Guest) -> Iterator[Row]:
    who = guest.uuid, text.plain(guest.name, MAX_NAME)
    served = _served(guest)
    for forward in guest.forwards:
        yield PortRow(*who, "open" if forward in served else "held", forward.listen, forward.span)
    for forward, _ in guest.conflicts:
        yield PortRow(*who, "kept out", forward.listen, forward.span)
    for endpoint in guest.endpoints:
        yield EndpointRow(*who, endpoint.ip, endpoint.bridge, endpoint.origin)
    for endpoint in guest.contested:
        yield EndpointRow(*who, endpoint.ip, endpoint.bridge, endpoint.origin, holds=False)
    needed = _lookups(guest, served)
    if needed:
        for subnet, bridge in guest.lans:
            yield SubnetRow(*who, subnet, bridge)
        for address in guest.gateways:
            yield GatewayRow(*who, address)
    for each in needed:
        yield LookupRow(*who, each)
    for mac in _macs(guest) if "isolated" in needed else ():
        yield IsolatedRow(*who, mac)


def lookups(guest: Guest) -> list[str]:
    """Return the lookups that packets need because of a guest; none where it has nothing in the table."""
    return _lookups(guest, _served(guest))


def _served(guest: Guest) -> set[Forward]:
    """Return the forwards that have rules in the table."""
    return {forward for forward, _ in guest.served()} if guest.phase == "running" else set()


def _lookups(guest: Guest, served: Iterable[Forward]) -> list[str]:
    if guest.phase != "running":
        return []
    found = {lookup(forward.listen, forward.span) for forward in served}
    found |= {"isolated"} if guest.isolate and _macs(guest) else set()
    return sorted({"ports", *found}) if found else []


def _macs(guest: Guest) -> list[str]:
    """Return the hardware addresses of a guest, those of its addresses included."""
    found = dict.fromkeys((*(nic.mac for nic in guest.nics), *(endpoint.mac for endpoint in guest.endpoints)))
    return [mac for mac in found if values.is_mac(mac)]


def lookup(listen: Listen, span: Span) -> str:
    """Return the name of the lookup that finds a claim."""
    version = str(listen.address.version) if listen.address else ""
    if span.wide:
        return f"{'narrowed' if listen.restricted else 'range'}{version}"
    return f"at{version}" if version else "ports"
