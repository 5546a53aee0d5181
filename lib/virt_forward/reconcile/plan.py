"""From guests as they are wanted to a plan: which guests change, from what to what.

Pure: nothing is changed here, and nothing asked of the host. What matters of the other guests is searched for
in the state, which is all that a plan looks at besides its arguments (``State``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from virt_forward import ports
from virt_forward.claims import index as claims
from virt_forward.errors import VirtForwardError
from virt_forward.model import Forward, Guest, Guests
from virt_forward.namedtuple import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    # A protocol takes long to make, and is nothing to a program that runs.
    from typing import Protocol

    class Queued(Protocol):
        """A queued change: what a guest is to be (None: absent)."""

        @property
        def number(self) -> int:
            """Return its number."""

        @property
        def guest(self) -> Guest | None:
            """Return the guest."""

    class State(Protocol):
        """What a plan asks of the state; see state/snapshot.py."""

        @property
        def queued(self) -> Mapping[str, Queued]:
            """Return the queued changes by UUID."""

        def recorded(self, uuid: str) -> Guest | None:
            """Return a guest's record."""

        def all_recorded(self) -> Mapping[str, Guest]:
            """Return all records by UUID."""

        def near(self, touching: Iterable[claims.Row], without: Collection[str]) -> claims.Index:
            """Return the claims of guests but some that may matter to ``touching``."""


MANY = 50
"""From so many guests on, the claims of all others are read at once."""


class Located(NamedTuple):
    """A guest as a want and the host have it (reconcile/located.py), before claims are looked at.

    ``before`` is what is known of it, ``guest`` what it is to be; ``vetoed`` are the forwards that the host
    has something against, and what. ``error`` is why it cannot be what is wanted: it becomes ``guest``
    instead, or stays what it is where that is None.
    """

    before: Guest | None
    guest: Guest | None = None
    vetoed: Mapping[Forward, str] = {}
    error: VirtForwardError | None = None

    def changes(self) -> bool:
        """Tell whether the guest is part of the change."""
        return self.guest is not None or self.error is None


class Plan(NamedTuple):
    """A change of guests, by UUID.

    ``wanted`` are those that wants are about. ``others`` are the claims of guests that do not change, as
    far as they matter. ``queued`` are the numbers of the queued changes that are part of it. ``errors``
    tell which guests could not be planned as they were wanted, and why.

    Where there are ``waiting`` guests, it is not complete: these were kept out by a claim that goes with
    it, and are to be located for another one.
    """

    before: Guests
    after: Guests
    wanted: frozenset[str] = frozenset()
    others: claims.Index = ()
    queued: Mapping[str, int] = {}
    errors: Mapping[str, VirtForwardError] = {}
    waiting: Mapping[str, Guest] = {}

    def only_wanted(self) -> Plan:
        """Return the plan without the guests that no want is about, which stay what they are."""
        stay = (guest for uuid, guest in self.before.items() if uuid not in self.wanted and guest)
        others = (*self.others, *(row for guest in stay for row in claims.rows(guest)))
        before, after = (
            {uuid: guest for uuid, guest in guests.items() if uuid in self.wanted}
            for guests in (self.before, self.after)
        )
        return Plan(before, after, self.wanted, others)


def make(state: State, wanted: Mapping[str, Located], waiting: Mapping[str, Located] | None = None) -> Plan:
    """Return the plan for guests that are wanted, with all queued changes.

    Conflicts are resolved in one place: what a running guest has is not taken from it, and of two guests
    that have learned one address the stronger origin has it. ``waiting`` are the guests that a first plan
    has found waiting for a claim that goes; None asks for them. A guest that is to run and cannot be served
    as it is declared keeps what it has, but none of it at NICs that it has no more.
    """
    located = {uuid: item for uuid, item in {**wanted, **(waiting or {})}.items() if item.changes()}
    queued = {uuid: item.guest for uuid, item in state.queued.items()}
    known = {uuid: item.before for uuid, item in {**wanted, **(waiting or {})}.items()}
    known |= {uuid: state.recorded(uuid) for uuid in queued if uuid not in located}
    changes = {**queued, **{uuid: item.guest for uuid, item in located.items()}}
    vetoes = {
        uuid: (located[uuid].vetoed if uuid in located else dict(guest.conflicts)).get
        for uuid, guest in changes.items()
        if guest
    }
    before = {uuid: state.recorded(uuid) if uuid in queued else known[uuid] for uuid in changes}
    others = _near(state, changes, before)
    after = _resolve(changes, known, others, vetoes)
    if waiting is None:
        found = _waiting(state, before, after, others)
        if found:
            return Plan(before, after, waiting=found)
    waits = {uuid: item.before for uuid, item in (waiting or {}).items()}
    after = {uuid: guest for uuid, guest in after.items() if uuid not in waits or guest != waits[uuid]}
    lost = claims.endpoints_lost(others, filter(None, after.values()))
    overruled = {uuid: guest for uuid in sorted(lost) if (guest := state.recorded(uuid))}
    after |= {uuid: claims.without_endpoints(guest, lost[uuid]) for uuid, guest in overruled.items()}
    before = {uuid: overruled.get(uuid) or before[uuid] for uuid in after}
    if waits or overruled:
        others = _near(state, after, before)
    numbers = {uuid: item.number for uuid, item in state.queued.items()}
    errors = {uuid: item.error for uuid, item in wanted.items() if item.error}
    return Plan(before, after, frozenset(wanted), others, numbers, errors)


def _near(state: State, changes: Guests, before: Guests) -> claims.Index:
    """Return the claims of guests that do not change, as far as they matter to those that do."""
    guests = [guest for guest in (*changes.values(), *before.values()) if guest]
    if len(changes) < MANY:
        return state.near((row for guest in guests for row in claims.rows(guest)), changes)
    recorded = state.all_recorded()
    return tuple(row for uuid, guest in recorded.items() if uuid not in changes for row in claims.rows(guest))


def _waiting(state: State, before: Guests, after: Guests, others: claims.Index) -> dict[str, Guest]:
    """Return the guests that were kept out by a claim that goes with this change."""
    lost, places = _lost(before, after)
    spans = ports.merged(lost)
    found: set[str] = set()
    for row in others:
        if row.uuid in found or not isinstance(row, claims.PortRow | claims.EndpointRow) or row.holds:
            continue
        if isinstance(row, claims.EndpointRow):
            waits = claims.location(row) in places
        else:
            waits = bool(ports.overlapping(spans.get(row.listen, ()), row.span))
        if waits:
            found.add(row.uuid)
    return {uuid: guest for uuid in sorted(found) if (guest := state.recorded(uuid))}


def _lost(before: Guests, after: Guests) -> tuple[list[Forward], set[claims.Location]]:
    """Return what guests held and hold no more: host ports, as pieces of forwards, and addresses."""
    lost: list[Forward] = []
    places: set[claims.Location] = set()
    for uuid, guest in before.items():
        if guest is None or guest == after.get(uuid):
            continue
        now = after.get(uuid) or guest._replace(forwards=(), endpoints=())
        held = ports.merged(now.forwards)
        lost += (piece for forward in guest.forwards for piece in ports.cut(forward, held)[1])
        places |= {*map(claims.location, guest.endpoints)} - {*map(claims.location, now.endpoints)}
    return lost, places


def _resolve(
    changes: Guests, known: Guests, others: claims.Index, vetoes: Mapping[str, claims.Veto]
) -> Guests:
    guests = {uuid: guest for uuid, guest in changes.items() if guest}
    # A guest that is to start is vetoed in full: what an earlier start was given is no longer its own.
    had = {
        uuid: guest
        for uuid, guest in known.items()
        if guest and (uuid not in guests or guests[uuid].phase == "running")
    }
    return {**changes, **resolve_all(guests, had, others, vetoes)}


def resolve_one(others: claims.Index, guest: Guest, before: Guest | None, veto: claims.Veto) -> Guest:
    """Return ``guest`` with its forwards sorted into those that it may have and those kept out.

    ``others`` are the claims of other guests. Of a forward that is kept out, the guest still has the ports
    that it had ``before``.
    """
    resolved = claims.resolve_conflicts(others, guest, veto)
    if before is None or resolved.contested or not resolved.conflicts:
        return resolved
    had = ports.merged(before.forwards)
    pieces = [(*ports.cut(forward, had), reason) for forward, reason in resolved.conflicts]
    own = (piece for found, _, _ in pieces for piece in found)
    new = {piece: reason for _, found, reason in pieces for piece in found}
    parted = resolved._replace(forwards=(*resolved.forwards, *own), conflicts=tuple(new.items()))
    return claims.resolve_conflicts(others, parted, new.get)


def resolve_all(
    wanted: Mapping[str, Guest],
    before: Mapping[str, Guest],
    others: claims.Index,
    vetoes: Mapping[str, claims.Veto],
) -> dict[str, Guest]:
    """Return guests with their conflicts resolved, among them and with the claims of ``others``.

    ``before`` is what is known of them. What a running guest has, and is to have, is not given to another
    one, and of two that have learned one address the stronger origin has it.
    """
    if len(wanted) == 1:
        ((uuid, guest),) = wanted.items()
        return {uuid: resolve_one(others, guest, before.get(uuid), vetoes[uuid])}
    order = sorted(wanted, key=lambda uuid: _turn(uuid, before))
    guests = claims.without_weaker_endpoints(wanted[uuid] for uuid in order)
    held, taken = claims.SearchIndex(), claims.SearchIndex(others)
    for guest in guests:
        held.add(claims.rows(claims.without_new_claims(guest, before.get(guest.uuid))))
    resolved: dict[str, Guest] = {}
    for guest in guests:
        uuid = guest.uuid
        near = (*taken.near(guest), *(row for row in held.near(guest) if row.uuid not in resolved))
        resolved[uuid] = resolve_one(near, guest, before.get(uuid), vetoes[uuid])
        taken.add(claims.rows(resolved[uuid]))
    return resolved


def _turn(uuid: str, before: Mapping[str, Guest]) -> tuple[bool, bool, str]:
    """Return a sort key: who has all that it wants comes first, then who was kept out, then who is new."""
    return uuid not in before, uuid in before and bool(before[uuid].conflicts), uuid


def without_clashes(guests: Iterable[Guest]) -> dict[str, Guest]:
    """Return guests by UUID; where two claim the same, the later one of them has to go without.

    nft would refuse the whole table for it. Only a state that is not of our making does that.
    """
    found = sorted(guests, key=lambda guest: (guest.phase != "running", guest.uuid))
    if not claims.clash(found):
        return {guest.uuid: guest for guest in found}
    index: claims.Index = ()
    resolved: dict[str, Guest] = {}
    for guest in found:
        resolved[guest.uuid] = claims.resolve_conflicts(index, guest, dict(guest.conflicts).get)
        index += claims.rows(resolved[guest.uuid])
    return resolved
