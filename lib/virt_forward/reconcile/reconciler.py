"""One change of guests from start to end: state, plan, kernel, files, connections.

A change is cut into steps any of which may be the last (a kill, a full disk). The file
``unfinished`` says what was begun, from before the first step to after the last; whoever
finds it does all of that again. The kernel's side needs no such mark: each transaction
names the revision of the table that it changes.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from virt_forward import text
from virt_forward.claims import flows
from virt_forward.claims import index as claims
from virt_forward.config import Config
from virt_forward.effects import converge
from virt_forward.effects.item import Change, Search
from virt_forward.errors import StateError, VirtForwardError
from virt_forward.host import conntrack, log
from virt_forward.model import Address, Guest
from virt_forward.reconcile import kernel, plan
from virt_forward.reconcile.wants import Absent, Lasting, Present, Replugged, Want
from virt_forward.ruleset import table
from virt_forward.state.journal import Guests
from virt_forward.state.ledger import Ledger
from virt_forward.state.store import Store

if TYPE_CHECKING:
    from virt_forward.reconcile.view import HostView


class Planned(NamedTuple):
    """The guests that wants come to, by UUID, and why some could not be planned as they were wanted."""

    guests: dict[str, Guest | None]
    errors: dict[str, VirtForwardError]


class Work(NamedTuple):
    """A change with all that it brings along: the guests before and after, and what stood before.

    ``include`` is None where the table must be rebuilt; ``taken`` are the names of the queued
    changes that are part of this one; ``all`` tells whether whatever was begun before is, too.
    """

    claimed: claims.Index
    include: table.Include | None
    before: Guests
    after: Guests
    taken: frozenset[str] = frozenset()
    all: bool = True


def recover(store: Store, config: Config) -> None:
    """Do what others began and did not finish, and what they queued; a failure is only logged.

    Wants the lock held.
    """
    ledger = Ledger(store)
    if ledger.unfinished or ledger.queued()[1]:
        try:
            Reconciler(store, config, ledger=ledger).apply({})
        except VirtForwardError as error:
            log.error(f"what was queued cannot be done now, either: {error}")


class Reconciler:
    """One change. Wants the store's lock held from its making on: it reads state and host once.

    With ``rebuild``, nothing derived is trusted, and the whole table is rebuilt.
    """

    def __init__(
        self,
        store: Store,
        config: Config,
        host: "HostView | None" = None,
        *,
        rebuild: bool = False,
        ledger: Ledger | None = None,
    ) -> None:
        self.store = store
        self.config = config
        self._host = host
        self.rebuild = rebuild
        self.ledger = ledger or Ledger(store, rebuild=rebuild)

    @property
    def host(self) -> "HostView":
        """Return the host as this change sees it; a guest that stops needs nothing of it."""
        if self._host is None:
            from virt_forward.reconcile.view import HostView

            self._host = HostView(self.config, self.store.networks)
        return self._host

    def reconcile(self, wants: Sequence[Want]) -> Planned:
        """Plan wants and apply them; raises NftError or StateError as ``apply`` does."""
        planned = self.plan(wants)
        self.apply(planned.guests)
        return planned

    def plan(self, wants: Sequence[Want]) -> Planned:
        """Return what wants come to, their conflicts with others and among themselves resolved.

        A guest that is to run and cannot be served as it is declared keeps what it has, but
        none of it at NICs that it has no more.
        """
        before = {want.uuid: self.ledger.known(want.uuid) for want in wants}
        wanted: dict[str, Guest | None] = {}
        errors: dict[str, VirtForwardError] = {}
        for want in wants:
            if isinstance(want, Absent):  # and nothing of the host is read or even loaded
                wanted[want.uuid] = None
                continue
            try:
                wanted[want.uuid] = plan.wanted(want, before[want.uuid], self.host)
            except VirtForwardError as error:
                errors[want.uuid] = error
                if isinstance(want, Present) and want.phase == "running":
                    kept = Replugged(want.uuid, want.domain.nics)
                    wanted[want.uuid] = self._located(kept, before[want.uuid])
        return Planned({**wanted, **self._resolved(wanted, before)}, errors)

    def _located(self, want: Lasting, before: Guest | None) -> Guest | None:
        try:
            return plan.wanted(want, before, self.host)
        except VirtForwardError:
            return before

    def _resolved(self, wanted: Mapping[str, Guest | None], before: Guests) -> dict[str, Guest]:
        """Return the guests that are wanted with their conflicts resolved."""
        guests = {uuid: guest for uuid, guest in wanted.items() if guest}
        # A guest that is to start is vetoed in full: what an earlier start was given is no longer its own.
        had = {
            uuid: known
            for uuid, known in before.items()
            if known and (uuid not in guests or guests[uuid].phase == "running")
        }
        vetoes = {uuid: self.host.veto(guest) for uuid, guest in guests.items()}
        others = claims.without(self.ledger.index(), wanted) if guests else ()
        return plan.resolve_all(guests, had, others, vetoes)

    def apply(self, changes: Mapping[str, Guest | None]) -> None:
        """Make guests what ``changes`` says by UUID, in named steps; None removes one.

        What was queued or interrupted before is part of it, and so are guests whose conflicts
        it ends. Raises NftError or StateError; the next change finishes what was not finished then.
        """
        work = self._begun(changes)
        after = claims.without(work.claimed, work.after)
        after += tuple(row for guest in work.after.values() if guest for row in claims.rows(guest))
        good = self.ledger.put(work.before, work.after)
        outside = converge.withdraw(self.store, self._outside(work, after))
        now = kernel.change(self._step(work, after), lambda: self._all(work), self.config)
        good = self.ledger.derive(self._derived(work, now.include, after)) and good
        converge.establish(self.store, outside)
        self._end_flows(work, rebuilt=now.rebuilt)
        if good and work.all:
            self.ledger.finish(work.taken)

    def _all(self, work: Work) -> Guests:
        return {**self.ledger.guests(), **work.after}

    def _step(self, work: Work, after: claims.Index) -> kernel.Step:
        before = tuple(guest for guest in work.before.values() if guest)
        return kernel.Step(
            work.include, before, tuple(g for g in work.after.values() if g), work.claimed, after
        )

    def _outside(self, work: Work, index: claims.Index) -> Change:
        """Return what the effects outside our table follow from."""
        was = (*work.before.values(), *self.ledger.pending.before.values())
        before, after = (tuple(filter(None, guests)) for guests in (was, work.after.values()))
        search: Search = "known" if self.rebuild or self.ledger.unfinished else "recorded"
        return Change(self.config, index, before, after, search)

    def _begun(self, changes: Mapping[str, Guest | None]) -> Work:
        ledger = self.ledger
        work = self._overruled(self._freed(self._work(changes)))
        try:
            ledger.begin(work.before, work.after, work.taken)
        except StateError as error:
            if any(changes.values()):
                raise
            # Rules that must go do go, even where that cannot be written down.
            log.error(f"{error}; virt-forward sync writes it again")
            ledger.mark()
            before = {uuid: ledger.guest(uuid) for uuid in changes}
            rest = not ledger.pending.after
            return work._replace(before=before, after=dict(changes), taken=frozenset(), all=rest)
        return work

    def _work(self, changes: Mapping[str, Guest | None]) -> Work:
        queued, taken = self._queued(changes)
        after = {**self.ledger.pending.after, **queued, **changes}
        before = {uuid: self.ledger.guest(uuid) for uuid in after}
        include = self.ledger.derived("ruleset.nft")
        parsed = table.parse(include, self.config) if include else None
        return Work(self.ledger.index(), parsed, before, after, taken)

    def _queued(self, changes: Mapping[str, Guest | None]) -> tuple[Guests, frozenset[str]]:
        """Return the changes that others queued, resolved against all other claims, and their names."""
        queued, names = self.ledger.queued()
        found: Guests = {}
        for uuid, guest in ((item.uuid, item.guest) for item in queued if item.uuid not in changes):
            others = _beside(self.ledger.index(), {**changes, **found}, uuid)
            found[uuid] = self._again(others, guest, self.ledger.recorded(uuid)) if guest else None
        return found, names

    def _again(self, others: claims.Index, guest: Guest, before: Guest | None) -> Guest:
        """Return a guest as the host has it now, its conflicts resolved; as it was where that is unknown."""
        try:
            located = plan.located(guest, self.host)
            return plan.resolve_conflicts(others, located, before, self.host.veto(located))
        except VirtForwardError as error:
            log.error(str(error))
            return claims.settle(others, guest, dict(guest.conflicts).get)

    def _freed(self, work: Work) -> Work:
        """Return the work with those guests added whose conflicts it may end."""
        out = (row for row in work.claimed if isinstance(row, claims.PortRow) and row.state == "kept out")
        waiting = {row.uuid for row in out} - set(work.after)
        after = dict(work.after)
        before = dict(work.before)
        for uuid in sorted(waiting):
            guest = self.ledger.guest(uuid)
            now = self._again(_beside(work.claimed, after, uuid), guest, guest) if guest else None
            if now and now != guest:
                before[uuid], after[uuid] = guest, now
        return work._replace(before=before, after=after)

    def _overruled(self, work: Work) -> Work:
        """Return the work with those guests added that had learned an address which now is another's."""
        guests = [guest for guest in work.after.values() if guest]
        lost = claims.overruled(claims.without(work.claimed, work.after), guests)
        known = {uuid: guest for uuid in sorted(lost) if (guest := self.ledger.guest(uuid))}
        now = {uuid: claims.without_endpoints(guest, lost[uuid]) for uuid, guest in known.items()}
        work = work._replace(before={**work.before, **known}, after={**work.after, **now})
        _log_lost_endpoints(work)
        return work

    def _derived(self, work: Work, include: table.Include, after: claims.Index) -> dict[str, str]:
        """Return the derived files that change, by name."""
        files = {}
        if include is not work.include:
            files["ruleset.nft"] = table.text(include)
        if after != work.claimed or self.ledger.counted:
            files["claims"] = claims.render_index(after)
        return files

    def _end_flows(self, work: Work, *, rebuilt: bool) -> None:
        was = (*work.before.values(), *self.ledger.pending.before.values())
        old = frozenset(pair for guest in was for pair in flows.pairs(guest))
        new = frozenset(pair for guest in work.after.values() for pair in flows.pairs(guest))
        # While there was no table, clients may have opened UDP flows to the host's own ports.
        guests = self._all(work) if rebuilt else work.after
        added = frozenset(pair for guest in guests.values() for pair in flows.pairs(guest))
        opened = added if rebuilt else added - old
        gateways = {ip for guest in guests.values() if guest for ip in guest.gateways}
        problem = conntrack.end_flows(old, new, opened, self._own_addresses(opened) - gateways)
        if problem:
            log.warning(problem)

    def _own_addresses(self, opened: Iterable[flows.Pair]) -> frozenset[Address]:
        """Return the host's addresses, where UDP flows to them may have to end."""
        if not any(forward.proto == "udp" for forward, _ in opened):
            return frozenset()
        try:
            return self.host.own
        except VirtForwardError as error:
            log.warning(str(error))
            return frozenset()


def _log_lost_endpoints(work: Work) -> None:
    """Log which guests that run do without an address that they had learned."""
    for uuid, now in work.after.items():
        was = work.before.get(uuid)
        if was and now and was.nics == now.nics and was.phase == now.phase == "running":
            kept = {(endpoint.ip.version, endpoint.mac, endpoint.bridge) for endpoint in now.endpoints}
            for endpoint in was.endpoints:
                if (endpoint.ip.version, endpoint.mac, endpoint.bridge) not in kept:
                    log.warning(
                        f"guest {text.quote(now.name)}: address {endpoint.ip} on {endpoint.bridge} "
                        f"({endpoint.origin}) is given up, as another has it; its forwards wait"
                    )


def _beside(index: claims.Index, changes: Mapping[str, Guest | None], uuid: str) -> claims.Index:
    """Return the index after ``changes``, less the rows of one guest."""
    rows = (row for other, guest in changes.items() if guest and other != uuid for row in claims.rows(guest))
    return claims.without(index, [*changes, uuid]) + tuple(rows)
