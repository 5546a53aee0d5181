"""Who holds which host port and which address: the index over all guests, and what it lets through.

The rows follow from the guests' records. The state keeps them beside these, so that one guest's event
reads the rows near its own (state/snapshot.py) and no other guest's record.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from itertools import pairwise

from virt_forward import ports, text
from virt_forward.claims.rows import (
    EndpointRow,
    GatewayRow,
    Index,
    IsolatedRow,
    LookupRow,
    PortRow,
    Row,
    SubnetRow,
    rows,
)
from virt_forward.model import LEARNED, Address, Endpoint, Forward, Guest, Listen, Span, rank
from virt_forward.namedtuple import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TypeGuard

__all__ = [
    "EndpointRow",
    "GatewayRow",
    "Index",
    "IsolatedRow",
    "Location",
    "LookupRow",
    "PortRow",
    "Row",
    "SearchIndex",
    "SubnetRow",
    "Veto",
    "clash",
    "conflicts",
    "endpoint_conflict",
    "endpoints_kept",
    "endpoints_lost",
    "location",
    "resolve_conflicts",
    "rows",
    "without",
    "without_endpoints",
    "without_new_claims",
    "without_weaker_endpoints",
]

Veto = Callable[[Forward], str | None]
"""Returns what, apart from other guests, rules a forward out, or None."""

Location = tuple[Address, str]
"""An address and the bridge it is on: what only one guest can have."""


def without(index: Iterable[Row], uuids: Iterable[str]) -> Index:
    """Return the index less all rows of some guests."""
    left_out = frozenset(uuids)
    return tuple(row for row in index if row.uuid not in left_out)


def conflicts(index: Iterable[Row], forwards: Iterable[Forward]) -> dict[Forward, str]:
    """Return which of ``forwards`` collide with a claim in the index, and why."""
    wanted = ports.spans_by_listen(forwards)
    found: dict[Forward, str] = {}
    for row in index if wanted else ():
        if not isinstance(row, PortRow) or not row.holds:
            continue
        mine = wanted.get(row.listen)
        for forward in mine.overlapping(row.span) if mine else ():
            port = max(forward.start, row.span.start)
            taken = f"host port {forward.proto}/{port} is taken by guest {text.word(row.name)}"
            found.setdefault(forward, taken)
    return found


def endpoint_conflict(index: Iterable[Row], guest: Guest) -> str | None:
    """Return why an address declared or reserved for a guest is that of another guest, too, or None."""
    mine = {location(endpoint) for endpoint in guest.endpoints if endpoint.origin not in LEARNED}
    for row in index if mine else ():
        if _holds_endpoint(row) and row.origin not in LEARNED and location(row) in mine:
            return f"address {row.ip} on {row.bridge} is already that of guest {text.word(row.name)}"
    return None


def endpoints_kept(index: Iterable[Row], guest: Guest) -> tuple[Endpoint, ...]:
    """Return a guest's endpoints less the learned ones that another guest has by an origin no weaker."""
    mine: dict[Location, int] = {}
    for endpoint in guest.endpoints:
        mine[location(endpoint)] = max(mine.get(location(endpoint), -1), rank(endpoint))
    lost = {
        location(row)
        for row in (index if mine else ())
        if _holds_endpoint(row) and rank(row) <= mine.get(location(row), -1)
    }
    return without_endpoints(guest, lost).endpoints


def endpoints_lost(index: Iterable[Row], guests: Iterable[Guest]) -> dict[str, set[Location]]:
    """Return the locations of learned endpoints in the index that ``guests`` overrule, by UUID."""
    mine: dict[Location, int] = {}
    for endpoint in (endpoint for guest in guests for endpoint in guest.endpoints):
        mine[location(endpoint)] = min(mine.get(location(endpoint), rank(endpoint)), rank(endpoint))
    found: dict[str, set[Location]] = {}
    for row in index if mine else ():
        if not _holds_endpoint(row) or row.origin not in LEARNED:
            continue
        if mine.get(location(row), rank(row)) < rank(row):
            found.setdefault(row.uuid, set()).add(location(row))
    return found


def _holds_endpoint(row: Row) -> TypeGuard[EndpointRow]:
    return isinstance(row, EndpointRow) and row.holds


def location(item: Endpoint | EndpointRow) -> Location:
    """Return where an endpoint is."""
    return item.ip, item.bridge


def without_endpoints(guest: Guest, lost: Container[Location]) -> Guest:
    """Return a guest less its learned endpoints at some locations."""
    kept = (item for item in guest.endpoints if item.origin not in LEARNED or location(item) not in lost)
    return guest._replace(endpoints=tuple(kept))


def without_weaker_endpoints(guests: Iterable[Guest]) -> list[Guest]:
    """Return guests, each less the learned addresses that another one has by a stronger origin.

    Of equals, the first in ``guests`` keeps it.
    """
    guests = list(guests)
    best: dict[Location, tuple[int, int]] = {}
    for number, guest in enumerate(guests):
        for endpoint in guest.endpoints:
            claim = rank(endpoint), number
            best[location(endpoint)] = min(best.get(location(endpoint), claim), claim)
    lost: list[set[Location]] = [set() for _ in guests]
    for number, guest in enumerate(guests):
        lost[number] = {at for at in map(location, guest.endpoints) if best[at][1] != number}
    return [without_endpoints(guest, found) for guest, found in zip(guests, lost, strict=True)]


def without_new_claims(guest: Guest, before: Guest | None) -> Guest:
    """Return ``guest`` with those of its host ports and configured addresses alone that it had before."""
    if before is None:
        return guest._replace(forwards=(), conflicts=(), endpoints=(), contested=())
    had, places = frozenset(before.forwards), frozenset(map(location, before.endpoints))
    forwards = [forward for forward in guest.forwards if forward in had]
    new = [f for f in (*guest.forwards, *(f for f, _ in guest.conflicts)) if f not in had]
    held = ports.merged(had) if new else {}
    forwards += (piece for forward in new for piece in ports.cut(forward, held)[0])
    endpoints = (item for item in guest.endpoints if item.origin not in LEARNED and location(item) in places)
    return guest._replace(forwards=tuple(forwards), conflicts=(), endpoints=tuple(endpoints), contested=())


class _Claimed:
    """The claims that listen alike, by number: those of single ports by port, wide ranges, and all."""

    def __init__(self) -> None:
        self.at: dict[int, list[int]] = {}
        self.wide: list[int] = []
        self.every: list[int] = []


class SearchIndex:
    """The claims of many guests, searched for those that may conflict with one guest's."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self._rows: dict[Row, None] = {}
        self._by_number: list[Row] = []
        self._claimed: dict[Listen, _Claimed] = {}
        self._endpoints: dict[Location, list[int]] = {}
        self.add(rows)

    def add(self, rows: Iterable[Row]) -> None:
        """Add claims; those that are known already change nothing."""
        for row in rows:
            if row not in self._rows:
                self._rows[row] = None
                self._by_number.append(row)
                self._add(len(self._by_number) - 1, row)

    def _add(self, number: int, row: Row) -> None:
        if _holds_endpoint(row):
            self._endpoints.setdefault(location(row), []).append(number)
        elif isinstance(row, PortRow) and row.holds:
            claimed = self._claimed.setdefault(row.listen, _Claimed())
            claimed.every.append(number)
            if row.span.wide:
                claimed.wide.append(number)
                return
            for port in range(row.span.start, row.span.end + 1):
                claimed.at.setdefault(port, []).append(number)

    def near(self, guest: Guest) -> Index:
        """Return the claims of others at the addresses and host ports that a guest declares.

        They are in the order in which they were added.
        """
        found: set[int] = set()
        for endpoint in guest.endpoints:
            found.update(self._endpoints.get(location(endpoint), ()))
        for forward in (*guest.forwards, *(forward for forward, _ in guest.conflicts)):
            found.update(self._near(forward))
        near = (self._by_number[number] for number in sorted(found))
        return tuple(row for row in near if row.uuid != guest.uuid)

    def _near(self, forward: Forward) -> Iterable[int]:
        claimed = self._claimed.get(forward.listen)
        if claimed is None:
            return ()
        if forward.span.wide:
            return claimed.every
        single = (claimed.at.get(port, ()) for port in range(forward.start, forward.end + 1))
        return (*claimed.wide, *(number for numbers in single for number in numbers))


def clash(guests: Iterable[Guest]) -> bool:
    """Tell whether two guests hold the same address, or two claims that listen alike the same port."""
    endpoints: dict[Location, str] = {}
    spans: dict[Listen, list[Span]] = {}
    for guest in guests:
        for endpoint in guest.endpoints:
            if endpoints.setdefault(location(endpoint), guest.uuid) != guest.uuid:
                return True
        for forward in guest.forwards:
            spans.setdefault(forward.listen, []).append(forward.span)
    return any(one.overlaps(other) for found in map(sorted, spans.values()) for one, other in pairwise(found))


def resolve_conflicts(index: Iterable[Row], guest: Guest, veto: Veto = lambda _: None) -> Guest:
    """Return ``guest`` with its forwards sorted into those it may have and those in conflict.

    ``index`` has the rows of the other guests, ``veto`` tells what else rules a forward out.
    """
    guest = guest._replace(endpoints=guest.endpoints or guest.contested)
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
    endpoints, contested = ((), guest.endpoints) if blocked else (endpoints_kept(index, guest), ())
    return guest._replace(
        forwards=tuple(good), conflicts=tuple(bad), endpoints=endpoints, contested=contested
    )
