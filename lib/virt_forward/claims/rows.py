"""The rows of the index of claims: what each guest has a claim to, and their text in the run directory.

The text has a line for every guest, followed by one for each of its rows; every line has a
word, a tab, and fields with tabs between them. A value that is not given is empty:

    guest     UUID     NAME
    STATE     START    END     PROTO  ADDRESS  DEV  SOURCE
    endpoint  ADDRESS  BRIDGE  ORIGIN
    subnet    SUBNET   BRIDGE
    gateway   ADDRESS
    lookup    NAME
    isolated  MAC

It is derived from the records of guests: where it cannot be read, it is rebuilt from them.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import cache, lru_cache
from ipaddress import ip_address, ip_network
from typing import Literal, NamedTuple, NoReturn

from virt_forward import text
from virt_forward.metadata import values
from virt_forward.model import MAX_PORT, ORIGINS, PROTOS, Address, Guest, Listen, Origin, Span, Subnet

State = Literal["open", "held", "kept out"]
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
    """A guest's address on a bridge, and where it was learned."""

    uuid: str
    name: str
    ip: Address
    bridge: str
    origin: Origin


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
    running = guest.phase == "running"
    for forward in guest.forwards:
        is_open = running and guest.endpoints_for(forward)
        yield PortRow(*who, "open" if is_open else "held", forward.listen, forward.span)
    for forward, _ in guest.conflicts:
        yield PortRow(*who, "kept out", forward.listen, forward.span)
    for endpoint in guest.endpoints:
        yield EndpointRow(*who, endpoint.ip, endpoint.bridge, endpoint.origin)
    needed = lookups(guest)
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
    if guest.phase != "running":
        return []
    served = [forward for forward in guest.forwards if guest.endpoints_for(forward)]
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


@lru_cache(maxsize=1)
def parse_index(text: str) -> Index:
    """Return the rows of an index file; raises ValueError where it is damaged."""
    # splitlines() would know more ends of a line than render_index() writes.
    *lines, rest = text.split("\n")
    try:
        if rest or (lines and not lines[0].startswith("guest\t")):
            raise ValueError
        return _parse(lines)
    except ValueError:
        raise ValueError("the index of claims is damaged") from None


_STATES: dict[str, State] = {"open": "open", "held": "held", "kept out": "kept out"}


def _parse(lines: Iterable[str]) -> Index:
    """Return the rows of lines; the loop body is what every event pays for each claim of the host.

    Only what render_index() writes is accepted, to the letter.
    """
    uuid = name = ""
    found: list[Row] = []
    header = -1
    for line in lines:
        kind, first, second, third = line.split("\t", 3)
        state = _STATES.get(kind)
        if state:
            start, end = int(first), int(second)
            if not 0 < start <= end <= MAX_PORT or str(start) != first or str(end) != second:
                raise ValueError
            found.append(PortRow(uuid, name, state, _listen(third), Span(start, end)))
        elif kind == "guest" and not third and (first, second) != (uuid, name) and len(found) > header:
            uuid, name, header = first, second, len(found)
        else:
            found.append(_OTHERS.get(kind, _damaged)(uuid, name, first, second, third))
    return tuple(found) if len(found) > header else _damaged()


@cache
def _address(text: str) -> Address:
    found = ip_address(text)
    return found if str(found) == text else _damaged()


@cache
def _network(text: str) -> Subnet:
    found = ip_network(text)
    return found if str(found) == text else _damaged()


def _damaged(*_: str) -> NoReturn:
    raise ValueError


@cache
def _listen(fields: str) -> Listen:
    proto, *limits = fields.split("\t")
    parsed = zip(limits, values.LIMITS.values(), strict=True)
    found = Listen(PROTOS[PROTOS.index(proto)], *(parse(text) if text else None for text, parse in parsed))
    return found if _listen_text(found) == fields else _damaged()


def _endpoint(uuid: str, name: str, ip: str, bridge: str, origin: str) -> Row:
    known = ORIGINS[ORIGINS.index(origin)]
    return EndpointRow(uuid, name, _address(ip), bridge, known)


def _subnet(uuid: str, name: str, subnet: str, bridge: str, rest: str) -> Row:
    return SubnetRow(uuid, name, _network(subnet), bridge) if not rest else _damaged()


def _gateway(uuid: str, name: str, ip: str, *rest: str) -> Row:
    return GatewayRow(uuid, name, _address(ip)) if not any(rest) else _damaged()


def _lookup(uuid: str, name: str, lookup: str, *rest: str) -> Row:
    return LookupRow(uuid, name, lookup) if lookup in LOOKUPS and not any(rest) else _damaged()


def _isolated(uuid: str, name: str, mac: str, *rest: str) -> Row:
    return IsolatedRow(uuid, name, mac) if values.is_mac(mac) and not any(rest) else _damaged()


_OTHERS: dict[str, Callable[[str, str, str, str, str], Row]] = {
    "endpoint": _endpoint,
    "subnet": _subnet,
    "gateway": _gateway,
    "lookup": _lookup,
    "isolated": _isolated,
}


def render_index(index: Iterable[Row]) -> str:
    """Return the text of an index."""
    return "".join(f"{line}\n" for line in _lines(index))


def _lines(index: Iterable[Row]) -> Iterator[str]:
    who = None
    for row in index:
        if row[:2] != who:
            who = row[:2]
            yield f"guest\t{row.uuid}\t{row.name}\t"
        if isinstance(row, PortRow):
            yield f"{row.state}\t{row.span[0]}\t{row.span[1]}\t{_listen_text(row.listen)}"
        elif isinstance(row, EndpointRow):
            yield f"endpoint\t{row.ip}\t{row.bridge}\t{row.origin}"
        elif isinstance(row, SubnetRow):
            yield f"subnet\t{row.subnet}\t{row.bridge}\t"
        elif isinstance(row, GatewayRow):
            yield f"gateway\t{row.ip}\t\t"
        elif isinstance(row, LookupRow):
            yield f"lookup\t{row.lookup}\t\t"
        else:
            yield f"isolated\t{row.mac}\t\t"


@cache
def _listen_text(listen: Listen) -> str:
    return "\t".join("" if value is None else str(value) for value in listen)
