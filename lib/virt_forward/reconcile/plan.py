"""From wants to a plan: which guests change, from what to what. Nothing is changed here, and no kernel asked.

The state is read through a Snapshot and the host through a HostView, each as far as the wants need it:
a guest that stops needs nothing of the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from virt_forward.claims import index as claims
from virt_forward.errors import VirtForwardError
from virt_forward.host import log
from virt_forward.model import Guest
from virt_forward.namedtuple import TYPE_CHECKING, NamedTuple
from virt_forward.reconcile.wants import Absent, Lasting, Present, Replugged, Restoring, Want
from virt_forward.state.snapshot import Guests, Snapshot

if TYPE_CHECKING:
    from virt_forward.reconcile.view import HostView

Host = Callable[[], "HostView"]
"""Returns the host, which is read, and even loaded, only for guests that need something of it."""

MANY = 50
"""From so many guests on, the claims of all others are read at once."""


class Plan(NamedTuple):
    """A change of guests, by UUID.

    ``wanted`` are those that wants are about. ``others`` are the claims of guests that do not change, as
    far as they matter. ``queued`` are the numbers of the queued changes that are part of it. ``errors``
    tell which guests could not be planned as they were wanted, and why.
    """

    before: Guests
    after: Guests
    wanted: frozenset[str] = frozenset()
    others: claims.Index = ()
    queued: Mapping[str, int] = {}
    errors: Mapping[str, VirtForwardError] = {}

    def only_wanted(self) -> Plan:
        """Return the plan without the guests that no want is about, which stay what they are."""
        stay = (guest for uuid, guest in self.before.items() if uuid not in self.wanted and guest)
        others = (*self.others, *(row for guest in stay for row in claims.rows(guest)))
        before, after = (
            {uuid: guest for uuid, guest in guests.items() if uuid in self.wanted}
            for guests in (self.before, self.after)
        )
        return Plan(before, after, self.wanted, others)


def make(state: Snapshot, host: Host, wants: Sequence[Want]) -> Plan:
    """Return the plan for some wants, with all queued changes.

    Conflicts are resolved in one place: what a running guest has is not taken from it, and of two guests
    that have learned one address the stronger origin has it. Guests that were kept out by a claim that
    now goes are part of the plan. A guest that is to run and cannot be served as it is declared keeps
    what it has, but none of it at NICs that it has no more.
    """
    known = {want.uuid: state.guest(want.uuid) for want in wants}
    wanted, errors = _wanted(wants, known, host)
    queued = {uuid: item.guest for uuid, item in state.queued.items()}
    known |= {uuid: state.recorded(uuid) for uuid in queued if uuid not in wanted}
    changes = {**queued, **wanted}
    vetoes = {
        uuid: host().veto(guest) if uuid in wanted else dict(guest.conflicts).get
        for uuid, guest in changes.items()
        if guest
    }
    before = {uuid: state.recorded(uuid) if uuid in queued else known[uuid] for uuid in changes}
    others = _near(state, changes, before)
    after = _resolve(changes, known, others, vetoes)
    waiting = _waiting(state, before, after, others)
    if waiting:
        known, before = {**known, **waiting}, {**before, **waiting}
        again = {uuid: _located(guest, host) for uuid, guest in waiting.items()}
        changes = {**changes, **again}
        vetoes |= {uuid: host().veto(guest) for uuid, guest in again.items()}
        others = _near(state, changes, before)
        after = _resolve(changes, known, others, vetoes)
        after = {
            uuid: guest for uuid, guest in after.items() if uuid not in waiting or guest != waiting[uuid]
        }
    lost = claims.endpoints_lost(others, filter(None, after.values()))
    overruled = {uuid: guest for uuid in sorted(lost) if (guest := state.recorded(uuid))}
    after |= {uuid: claims.without_endpoints(guest, lost[uuid]) for uuid, guest in overruled.items()}
    before = {uuid: overruled.get(uuid) or before[uuid] for uuid in after}
    if waiting or overruled:
        others = _near(state, after, before)
    numbers = {uuid: item.number for uuid, item in state.queued.items()}
    return Plan(before, after, frozenset(want.uuid for want in wants), others, numbers, errors)


def _wanted(wants: Sequence[Want], known: Guests, host: Host) -> tuple[Guests, dict[str, VirtForwardError]]:
    """Return the guests that wants ask for, before claims are looked at, and what is wrong with some."""
    wanted: Guests = {}
    errors: dict[str, VirtForwardError] = {}
    for want in wants:
        if isinstance(want, Absent):
            wanted[want.uuid] = None
            continue
        try:
            wanted[want.uuid] = _guest(want, known[want.uuid], host)
        except VirtForwardError as error:
            errors[want.uuid] = error
            before = known[want.uuid]
            if isinstance(want, Present) and want.phase == "running" and before:
                wanted[want.uuid] = _located(before._replace(nics=want.domain.nics), host, before)
    return wanted, errors


def _guest(want: Lasting, before: Guest | None, host: Host) -> Guest | None:
    """Return the guest that a want asks for.

    ``before`` is what is known of it. Raises VirtForwardError, with every reason, where the
    declaration cannot be served as it is.
    """
    from virt_forward.addresses import resolve

    if isinstance(want, Present):
        return wanted_guest(want, before, host)
    if isinstance(want, Restoring):
        return Guest(want.uuid, want.name, "restoring")
    if before is None or before.phase == "restoring":
        return before
    moved = before._replace(nics=want.nics) if isinstance(want, Replugged) else before
    return resolve.locate(moved, host().facts(moved.nics))


def wanted_guest(want: Present, before: Guest | None, host: Host) -> Guest:
    """Return the guest of a domain as it is to be, before claims are looked at; raises VirtForwardError."""
    from virt_forward.addresses import resolve

    domain = want.domain
    runs = want.phase == "running"
    hosts = domain.declaration.hosts if domain.declaration else ()
    held = before.forwards if before and runs else ()
    _, excluded = host().port_checks(domain.nics, hosts, held)
    facts = host().facts(domain.nics)
    guest = resolve.resolve(domain, facts, host().config, want.phase, excluded)
    # A libvirtd that restarts is no reason to forget an address that only the guest's traffic told.
    return resolve.locate_known(guest, before, facts) if runs else guest


def _located(guest: Guest, host: Host, otherwise: Guest | None = None) -> Guest:
    """Return a guest with its endpoints as the host has them now, or as it was where that is not known."""
    from virt_forward.addresses import resolve

    try:
        return resolve.locate(guest, host().facts(guest.nics))
    except VirtForwardError as error:
        log.error(str(error))
        return otherwise or guest


def _near(state: Snapshot, changes: Guests, before: Guests) -> claims.Index:
    """Return the claims of guests that do not change, as far as they matter to those that do."""
    guests = [guest for guest in (*changes.values(), *before.values()) if guest]
    if len(changes) < MANY:
        return state.near((row for guest in guests for row in claims.rows(guest)), changes)
    recorded = state.all_recorded()
    return tuple(row for uuid, guest in recorded.items() if uuid not in changes for row in claims.rows(guest))


def _waiting(state: Snapshot, before: Guests, after: Guests, others: claims.Index) -> dict[str, Guest]:
    """Return the guests that were kept out by a claim that goes with this change."""
    freed = [row for uuid in before for row in _lost(before[uuid], after.get(uuid))]
    out = [row for row in others if isinstance(row, claims.PortRow | claims.EndpointRow) and not row.holds]
    found = {row.uuid for row in out if any(_waits_for(row, claim) for claim in freed)}
    return {uuid: guest for uuid in sorted(found) if (guest := state.recorded(uuid))}


def _waits_for(row: claims.Row, claim: claims.Row) -> bool:
    """Tell whether a row that holds nothing is one that ``claim`` has kept out."""
    if isinstance(row, claims.PortRow) and isinstance(claim, claims.PortRow):
        return row.listen == claim.listen and row.span.overlaps(claim.span)
    if isinstance(row, claims.EndpointRow) and isinstance(claim, claims.EndpointRow):
        return claims.location(row) == claims.location(claim)
    return False


def _lost(before: Guest | None, after: Guest | None) -> Iterable[claims.Row]:
    """Return the claims that a guest held and holds no more."""
    if before is None or before == after:
        return []
    kept = {_claim(row) for row in (claims.rows(after) if after else ()) if _holds(row)}
    return [row for row in claims.rows(before) if _holds(row) and _claim(row) not in kept]


def _holds(row: claims.Row) -> bool:
    return isinstance(row, claims.PortRow | claims.EndpointRow) and row.holds


def _claim(row: claims.Row) -> tuple[object, ...]:
    """Return what a row claims, whatever state it is in."""
    if isinstance(row, claims.PortRow):
        return row.listen, row.span
    return claims.location(row) if isinstance(row, claims.EndpointRow) else ()


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


def resolve_one(others: Iterable[claims.Row], guest: Guest, before: Guest | None, veto: claims.Veto) -> Guest:
    """Return ``guest`` with its forwards sorted into those that it may have and those kept out.

    ``others`` are the claims of other guests. What it has already the host does not veto any more.
    """
    had = frozenset(before.forwards) if before else frozenset()
    return claims.resolve_conflicts(others, guest, lambda forward: None if forward in had else veto(forward))


def resolve_all(
    wanted: Mapping[str, Guest],
    before: Mapping[str, Guest],
    others: claims.Index,
    vetoes: Mapping[str, claims.Veto],
) -> dict[str, Guest]:
    """Return guests with their conflicts resolved, among them and with the claims of ``others``.

    ``before`` is what is known of them. What a running guest has is not given to another one,
    and of two that have learned one address the stronger origin has it.
    """
    if len(wanted) == 1:
        ((uuid, guest),) = wanted.items()
        return {uuid: resolve_one(others, guest, before.get(uuid), vetoes[uuid])}
    order = sorted(wanted, key=lambda uuid: _turn(uuid, before))
    guests = claims.without_weaker_endpoints(wanted[uuid] for uuid in order)
    held = claims.SearchIndex(others)
    for guest in guests:
        held.add(claims.rows(claims.without_new_forwards(guest, before.get(guest.uuid))))
    resolved: dict[str, Guest] = {}
    for guest in guests:
        uuid = guest.uuid
        resolved[uuid] = resolve_one(held.near(guest), guest, before.get(uuid), vetoes[uuid])
        held.add(claims.rows(resolved[uuid]))
    return resolved


def _turn(uuid: str, before: Mapping[str, Guest]) -> tuple[bool, bool, str]:
    """Return a sort key: who has all that it wants comes first, then who was kept out, then who is new."""
    return uuid not in before, uuid in before and bool(before[uuid].conflicts), uuid


def without_clashes(guests: Iterable[Guest]) -> dict[str, Guest]:
    """Return guests by UUID; where two claim the same, the later one of them has to go without.

    nft would refuse the whole table for it. Only a state that is not of our making does that.
    """
    found = sorted(guests, key=lambda guest: (guest.phase != "running", guest.uuid))
    if not claims.clash(row for guest in found for row in claims.rows(guest)):
        return {guest.uuid: guest for guest in found}
    log.error("records of different guests claim the same; the later ones are kept out")
    index: claims.Index = ()
    resolved: dict[str, Guest] = {}
    for guest in found:
        resolved[guest.uuid] = claims.resolve_conflicts(index, guest, dict(guest.conflicts).get)
        index += claims.rows(resolved[guest.uuid])
    return resolved
