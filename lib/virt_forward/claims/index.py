"""Who holds which host port: the index over all guests, one row a claim.

The index is derived from the records and kept beside them as text, so that one guest's
event need not read every other guest's record.
"""

from collections.abc import Callable, Container, Iterable, Iterator
from functools import cache, lru_cache
from ipaddress import ip_address, ip_network
from typing import NamedTuple

from virt_forward import names, ports, text
from virt_forward.model import LEARNED, ORIGINS, Address, Endpoint, Forward, Guest, Proto, Subnet, rank

PORT, HELD, OUT, ENDPOINT, LAN, GATEWAY = "port", "held", "out", "endpoint", "lan", "gateway"
"""The kinds of row: a forward with rules in the table, one only claimed yet (the guest does not
run, or its address is not known), one kept out by a conflict, a guest's address, a subnet of
the host on a guest's bridge, and the host's own address there."""


class Row(NamedTuple):
    """One line of the index. ``label`` is the guest's name as messages have it.

    For an endpoint, ``address`` and ``dev`` are the guest's address and bridge, and ``origin``
    tells where the address was learned; for a lan,
    ``source`` and ``dev`` are the subnet and the bridge; for a gateway, ``address`` is it.
    """

    kind: str
    uuid: str
    label: str
    chain: str
    proto: str = ""
    start: str = "0"
    end: str = "0"
    address: str = ""
    dev: str = ""
    source: str = ""
    origin: str = ""


Index = tuple[Row, ...]

Veto = Callable[[Forward], str | None]
"""Says what, apart from other guests, stands against a forward."""


@lru_cache(maxsize=1)
def parse_index(text: str) -> Index:
    """Return the rows of an index file; raises ValueError where it is damaged."""
    # splitlines() would know more ends of a line than render_index() writes.
    *lines, rest = text.split("\n")
    fields = [line.split("\t") for line in lines]
    if rest or any(len(row) != len(Row._fields) for row in fields):
        raise ValueError("the index of claims is damaged")
    return tuple(map(Row._make, fields))


def render_index(index: Iterable[Row]) -> str:
    """Return the text of an index."""
    return "".join("\t".join(row) + "\n" for row in index)


def rows(guest: Guest) -> Index:
    """Return what one guest adds to the index."""
    return tuple(_rows(guest))


def _rows(guest: Guest) -> Iterator[Row]:
    who = (guest.uuid, text.word(guest.name), names.suffix(guest.name, guest.uuid))
    running = guest.phase == "running"
    for forward in guest.forwards:
        yield _port_row(PORT if running and guest.endpoints_for(forward) else HELD, who, forward)
    for forward, _ in guest.conflicts:
        yield _port_row(OUT, who, forward)
    for endpoint in guest.endpoints:
        yield Row(ENDPOINT, *who, address=str(endpoint.ip), dev=endpoint.bridge, origin=endpoint.origin)
    if running and guest.endpoints and (guest.forwards or guest.isolate):
        for subnet, bridge in guest.lans:
            yield Row(LAN, *who, dev=bridge, source=str(subnet))
        for address in guest.gateways:
            yield Row(GATEWAY, *who, address=str(address))


def _port_row(kind: str, who: tuple[str, str, str], forward: Forward) -> Row:
    return Row(
        kind,
        *who,
        forward.proto,
        str(forward.start),
        str(forward.end),
        str(forward.address or ""),
        forward.dev or "",
        str(forward.source or ""),
    )


def without(index: Iterable[Row], uuids: Iterable[str]) -> Index:
    """Return the index less all rows of some guests."""
    gone = frozenset(uuids)
    return tuple(row for row in index if row.uuid not in gone)


def conflicts(index: Iterable[Row], forwards: Iterable[Forward]) -> dict[Forward, str]:
    """Return which of ``forwards`` collide with a claim in the index, and why."""
    wanted = {listen: ports.Spans(group) for listen, group in ports.by_listen(forwards).items()}
    found: dict[Forward, str] = {}
    for row in index if wanted else ():
        if row.kind not in (PORT, HELD):
            continue
        mine = wanted.get(forward_of(row).listen)
        for forward in mine.overlapping(int(row.start), int(row.end)) if mine else ():
            port = max(forward.start, int(row.start))
            found.setdefault(forward, f"host port {forward.proto}/{port} is taken by guest {row.label}")
    return found


def endpoint_conflict(index: Iterable[Row], guest: Guest) -> str | None:
    """Return why an address that was written down for a guest is written down for another one, or None."""
    mine = {
        (str(endpoint.ip), endpoint.bridge) for endpoint in guest.endpoints if endpoint.origin not in LEARNED
    }
    for row in index:
        if row.kind == ENDPOINT and row.origin not in LEARNED and (row.address, row.dev) in mine:
            return f"address {row.address} on {row.dev} is already that of guest {row.label}"
    return None


def undisputed(index: Iterable[Row], guest: Guest) -> tuple[Endpoint, ...]:
    """Return a guest's endpoints less the learned ones that another guest has by an origin no weaker."""
    lost = {
        (row.address, row.dev)
        for row in index
        if row.kind == ENDPOINT
        for endpoint in guest.endpoints
        if (row.address, row.dev) == (str(endpoint.ip), endpoint.bridge)
        and ORIGINS.index(row.origin) <= rank(endpoint)
    }
    return without_endpoints(guest, lost).endpoints


def overruled(index: Iterable[Row], guests: Iterable[Guest]) -> dict[str, set[tuple[str, str]]]:
    """Return the learned endpoints in the index that ``guests`` overrule: (address, bridge) by UUID."""
    mine: dict[tuple[str, str], int] = {}
    for endpoint in (endpoint for guest in guests for endpoint in guest.endpoints):
        place = (str(endpoint.ip), endpoint.bridge)
        mine[place] = min(mine.get(place, rank(endpoint)), rank(endpoint))
    found: dict[str, set[tuple[str, str]]] = {}
    for row in index:
        place = (row.address, row.dev)
        if row.kind == ENDPOINT and row.origin in LEARNED and mine.get(place, 99) < ORIGINS.index(row.origin):
            found.setdefault(row.uuid, set()).add(place)
    return found


def without_endpoints(guest: Guest, lost: Container[tuple[str, str]]) -> Guest:
    """Return a guest less its learned endpoints at some (address, bridge)."""
    kept = (s for s in guest.endpoints if s.origin not in LEARNED or (str(s.ip), s.bridge) not in lost)
    return guest._replace(endpoints=tuple(kept))


def reconciled(guests: Iterable[Guest]) -> list[Guest]:
    """Return guests, each less the learned addresses that another one has by a stronger origin.

    Of equals, the one that comes first keeps it.
    """
    guests = list(guests)
    best: dict[tuple[str, str], tuple[int, int]] = {}
    for number, guest in enumerate(guests):
        for endpoint in guest.endpoints:
            place, claim = (str(endpoint.ip), endpoint.bridge), (rank(endpoint), number)
            best[place] = min(best.get(place, claim), claim)
    lost: list[set[tuple[str, str]]] = [set() for _ in guests]
    for number, guest in enumerate(guests):
        places = {(str(endpoint.ip), endpoint.bridge) for endpoint in guest.endpoints}
        lost[number] = {place for place in places if best[place][1] != number}
    return [without_endpoints(guest, places) for guest, places in zip(guests, lost, strict=True)]


def incumbent(guest: Guest, before: Guest | None) -> Guest:
    """Return ``guest`` with those of its forwards alone that it had before."""
    had = frozenset(before.forwards) if before else frozenset()
    return guest._replace(forwards=tuple(f for f in guest.forwards if f in had), conflicts=(), endpoints=())


class Held:
    """The claims of many guests, to be asked for those that may stand against one."""

    WIDE = 128
    """Ports of a range from which it is kept as a range."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self._ports: dict[tuple[str, ...], dict[Row, None]] = {}
        self._places: dict[tuple[str, ...], dict[Row, None]] = {}
        self._wide: dict[tuple[str, ...], dict[Row, None]] = {}
        self._endpoints: dict[tuple[str, str], dict[Row, None]] = {}
        self.add(rows)

    def add(self, rows: Iterable[Row]) -> None:
        """Add claims; those that are there already change nothing."""
        for row in rows:
            if row.kind == ENDPOINT:
                self._endpoints.setdefault((row.address, row.dev), {})[row] = None
            elif row.kind in (PORT, HELD):
                self._add_ports(row)

    def _add_ports(self, row: Row) -> None:
        place = (row.proto, row.address, row.dev, row.source)
        self._places.setdefault(place, {})[row] = None
        start, end = int(row.start), int(row.end)
        if end - start >= self.WIDE:
            self._wide.setdefault(place, {})[row] = None
        else:
            for port in range(start, end + 1):
                self._ports.setdefault((*place, str(port)), {})[row] = None

    def near(self, guest: Guest) -> Index:
        """Return the claims of others at the addresses and host ports that a guest declares."""
        found: dict[Row, None] = {}
        for endpoint in guest.endpoints:
            found |= self._endpoints.get((str(endpoint.ip), endpoint.bridge), {})
        for forward in (*guest.forwards, *(forward for forward, _ in guest.conflicts)):
            found |= self._near(forward)
        return tuple(row for row in found if row.uuid != guest.uuid)

    def _near(self, forward: Forward) -> dict[Row, None]:
        place = (forward.proto, str(forward.address or ""), forward.dev or "", str(forward.source or ""))
        if forward.end - forward.start >= self.WIDE:
            return self._places.get(place, {})
        found = dict(self._wide.get(place, {}))
        for port in range(forward.start, forward.end + 1):
            found |= self._ports.get((*place, str(port)), {})
        return found


def settle(index: Iterable[Row], guest: Guest, veto: Veto = lambda _: None) -> Guest:
    """Return ``guest`` with its forwards sorted anew into those it may have and those in conflict.

    ``index`` holds the other guests; ``veto`` says what else stands against a forward.
    """
    index = tuple(index)
    blocked = endpoint_conflict(index, guest)
    good: list[Forward] = []
    bad: list[tuple[Forward, str]] = []
    everything = [*guest.forwards, *(forward for forward, _ in guest.conflicts)]
    taken = conflicts(index, everything)
    for forward in sorted(everything, key=lambda f: (f.proto, *ports.specificity(f))):
        reason = blocked or veto(forward) or taken.get(forward)
        if reason is None:
            good.append(forward)
        else:
            bad.append((forward, reason))
    endpoints = () if blocked else undisputed(index, guest)
    return guest._replace(forwards=tuple(good), conflicts=tuple(bad), endpoints=endpoints)


def forward_of(row: Row) -> Forward:
    """Return what a row of kind port, held or out claims (``to`` is not in the index)."""
    proto: Proto = row.proto  # type: ignore[assignment]
    start = int(row.start)
    return Forward(
        proto, start, int(row.end), start, _address(row.address), row.dev or None, _subnet(row.source)
    )


@cache
def _address(text: str) -> Address | None:
    return ip_address(text) if text else None


@cache
def _subnet(text: str) -> Subnet | None:
    return ip_network(text) if text else None
