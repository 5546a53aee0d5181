"""One change of the guests: read, plan, one transaction, write, end stale connections.

A change is cut into steps any of which may be the last (a kill, a full disk). The file
``unfinished`` says what was begun, from before the first step to after the last; whoever
finds it does all of that again. The kernel's side needs no such mark: each transaction
names the revision of the table that it changes.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from virt_forward import text
from virt_forward.claims import flows
from virt_forward.claims import index as claims
from virt_forward.config import Config
from virt_forward.effects import hairpin_port, libvirt_accept, route_localnet
from virt_forward.errors import NftError, NftUnusableError, StateError, VirtForwardError
from virt_forward.host import conntrack, log, nft
from virt_forward.model import Address, Guest
from virt_forward.ruleset import static, table
from virt_forward.state.journal import Guests
from virt_forward.state.ledger import Ledger
from virt_forward.state.store import Store

Changes = Mapping[str, Guest | None]


class Work(NamedTuple):
    """A change: the guests before and after, and what stood before.

    ``include`` is None where the table must be made anew from the records; ``taken`` are
    the names of the left changes that are part of this one; ``all`` tells whether whatever
    was begun before is, too.
    """

    ledger: Ledger
    claimed: claims.Index
    include: table.Include | None
    before: Guests
    after: Guests
    taken: frozenset[str] = frozenset()
    all: bool = True


class Engine:
    """Changes guests in a store and in the kernel. Every method wants the store's lock held."""

    def __init__(self, store: Store, config: Config, own: frozenset[Address] = frozenset()) -> None:
        self.store = store
        self.config = config
        self.own = own
        self.rebuilt = False

    def index(self) -> claims.Index:
        """Return the index of claims, made anew from the records where it is not to be trusted."""
        return Ledger(self.store).index()

    def guests(self) -> dict[str, Guest]:
        """Return all guests by UUID, with the changes that were begun or left to others."""
        return Ledger(self.store).merged()

    def known(self, uuid: str) -> Guest | None:
        """Return what is known of a guest, likewise; a damaged record counts as nothing."""
        ledger = Ledger(self.store)
        for item in ledger.left()[0]:
            if item.uuid == uuid:
                return item.guest
        return ledger.pending.after[uuid] if uuid in ledger.pending.after else ledger.guest(uuid)

    def catch_up(self) -> None:
        """Do what others began and did not finish, and what they had to leave; a failure is only logged."""
        ledger = Ledger(self.store)
        if ledger.unfinished or ledger.left()[1]:
            try:
                self.change({})
            except VirtForwardError as error:
                log.error(f"what was left cannot be done now, either: {error}")

    def change(self, changes: Changes, *, afresh: bool = False) -> None:
        """Make guests what ``changes`` says by UUID; None removes one.

        ``afresh`` makes the whole table anew, whatever it is now. Raises NftError or
        StateError; what was not finished then is made good by the next change.
        """
        work = self._begun(changes, afresh)
        after = claims.without(work.claimed, work.after)
        after += tuple(row for guest in work.after.values() if guest for row in claims.rows(guest))
        good = work.ledger.put(work.before, work.after)
        loopback = self._loopback_bridges(after)
        self._guarded(lambda: route_localnet.switch_off(self.store, loopback))
        self.rebuilt = False
        include = self._apply(work, after)
        self._guarded(lambda: route_localnet.switch_on(self.store, loopback))
        self._guarded(lambda: self._follow_ports(work))
        good = work.ledger.derive(self._derived(work, include, after)) and good
        libvirt_accept.follow(self.store, self.config, after, afresh=afresh or work.ledger.unfinished)
        self._end_flows(work)
        if good and work.all:
            work.ledger.finish(work.taken)

    def _follow_ports(self, work: Work) -> None:
        was = (*work.before.values(), *work.ledger.pending.before.values())
        hairpin_port.follow(self.store, self.config, was, work.after.values())

    def _begun(self, changes: Changes, afresh: bool) -> Work:
        ledger = Ledger(self.store, afresh=afresh)
        work = self._overruled(self._freed(self._work(ledger, changes)))
        try:
            ledger.begin(work.before, work.after, work.taken)
        except StateError as error:
            if any(changes.values()):
                raise
            # Rules that must go do go, even where that cannot be written down.
            log.error(f"{error}; virt-forward sync makes it good")
            ledger.mark()
            before = {uuid: ledger.guest(uuid) for uuid in changes}
            rest = not ledger.pending.after
            return work._replace(before=before, after=dict(changes), taken=frozenset(), all=rest)
        return work

    def _work(self, ledger: Ledger, changes: Changes) -> Work:
        left, taken = self._left(ledger, changes)
        after = {**ledger.pending.after, **left, **changes}
        before = {uuid: ledger.guest(uuid) for uuid in after}
        text = ledger.derived("ruleset.nft")
        include = table.parse(text, self.config) if text else None
        return Work(ledger, ledger.index(), include, before, after, taken)

    def _derived(self, work: Work, include: table.Include, after: claims.Index) -> dict[str, str]:
        """Return the derived files that change, by name."""
        files = {}
        if include is not work.include:
            files["ruleset.nft"] = table.text(include)
        if after != work.claimed or work.ledger.counted:
            files["claims"] = claims.render_index(after)
        return files

    def _guarded(self, step: Callable[[], None]) -> None:
        """Run a step that serves 127.0.0.1 or hairpin only: it must not stand in the way of all else."""
        try:
            step()
        except StateError as error:
            log.error(f"{error}; forwards may not work on 127.0.0.1, or for the guest itself")

    def _loopback_bridges(self, index: claims.Index) -> set[str]:
        return {row.dev for row in index if row.kind == claims.LAN} if self.config.localhost else set()

    def _left(self, ledger: Ledger, changes: Changes) -> tuple[Guests, frozenset[str]]:
        """Return the changes that others had to leave to us, settled against everybody else's claims."""
        left, names = ledger.left()
        found: Guests = {}
        for uuid, guest in ((item.uuid, item.guest) for item in left if item.uuid not in changes):
            others = _beside(ledger.index(), {**changes, **found}, uuid)
            found[uuid] = (self.settled(others, guest) or _upheld(others, guest)) if guest else None
        return found, names

    def settled(self, index: claims.Index, guest: Guest) -> Guest | None:
        """Return a guest as the host's facts are now, settled; None where they cannot be had."""
        from virt_forward.addresses import attachments, resolve
        from virt_forward.host import collect, hostports

        try:
            facts = collect.host_facts(self.config, self.store.networks(), guest.networks)
        except VirtForwardError as error:
            log.error(str(error))
            return None
        attached = attachments.find_attachments(guest.nics, facts)
        veto, _ = hostports.port_checks(self.config, attached, hosts=guest.hosts)
        return resolve_conflicts(index, resolve.locate(guest, facts), self.known(guest.uuid), veto)

    def _freed(self, work: Work) -> Work:
        """Return the work with those guests added whose conflicts it may end."""
        waiting = {row.uuid for row in work.claimed if row.kind == claims.OUT} - set(work.after)
        after = dict(work.after)
        before = dict(work.before)
        for uuid in sorted(waiting):
            guest = work.ledger.guest(uuid)
            settled = self.settled(_beside(work.claimed, after, uuid), guest) if guest else None
            if settled and settled != guest:
                before[uuid], after[uuid] = guest, settled
        return work._replace(before=before, after=after)

    def _overruled(self, work: Work) -> Work:
        """Return the work with those guests added that had learned an address which now is another's."""
        guests = [guest for guest in work.after.values() if guest]
        lost = claims.overruled(claims.without(work.claimed, work.after), guests)
        known = {uuid: guest for uuid in sorted(lost) if (guest := work.ledger.guest(uuid))}
        now = {uuid: claims.without_endpoints(guest, lost[uuid]) for uuid, guest in known.items()}
        work = work._replace(before={**work.before, **known}, after={**work.after, **now})
        _tell_of_lost_endpoints(work)
        return work

    def _apply(self, work: Work, after: claims.Index) -> table.Include:
        if work.include is None or not work.include.paragraphs:
            return self._make_anew(work)
        change = self._plan(work, after)
        if table.knows_more(work.include, change):
            return self._make_anew(work)
        include = table.splice(work.include, change)
        if change.same() and not self._running(work):
            return work.include
        try:
            if include.paragraphs:
                nft.apply(table.transaction(work.include, change))
            else:
                nft.delete_table()
        except NftUnusableError:
            raise
        except NftError as error:
            log.warning(f"the table is not as it was left ({error}); it is made anew")
            return self._make_anew(work)
        return include

    def _running(self, work: Work) -> bool:
        """Tell whether the change is about a running guest, whose rules deserve a look at the kernel."""
        guests = (*work.before.values(), *work.after.values())
        return any(guest.phase == "running" for guest in guests if guest)

    def _plan(self, work: Work, after: claims.Index) -> table.Change:
        old = [guest for guest in work.before.values() if guest]
        new = [guest for guest in work.after.values() if guest]
        touching = tuple(row for guest in (*old, *new) for row in claims.rows(guest))
        return table.Change(
            table.blocks_of(old, work.claimed, touching, self.config),
            table.blocks_of(new, after, touching, self.config),
        )

    def _make_anew(self, work: Work) -> table.Include:
        self.rebuilt = True
        guests: Guests = {**work.ledger.guests(), **work.after}
        # Never one that a table somebody saved and loaded again may have by chance.
        revision = work.include.revision + 1 if work.include else int.from_bytes(os.urandom(3))
        include = table.whole((guest for guest in guests.values() if guest), self.config, revision)
        known_empty = work.include is not None and not work.include.paragraphs
        if not include.paragraphs:
            if not known_empty:
                nft.delete_table()
        elif known_empty:
            nft.apply(table.text(include))
        else:
            self._replace(include)
        return include

    def _replace(self, include: table.Include) -> None:
        found = nft.parts()
        if found is None or found.others - set(static.containers()):
            nft.apply(table.text(include))
            return
        try:
            nft.apply(table.rebuild(include, self.config, found.chains))
        except NftUnusableError:
            raise
        except NftError as error:
            # Another version's table may have maps of other types: then nothing but a new one will do.
            log.warning(f"the table cannot be mended ({error}); it is replaced")
            nft.apply(table.text(include))

    def _end_flows(self, work: Work) -> None:
        was = (*work.before.values(), *work.ledger.pending.before.values())
        old = frozenset(pair for guest in was for pair in flows.pairs(guest))
        new = frozenset(pair for guest in work.after.values() for pair in flows.pairs(guest))
        # While there was no table, clients may have opened UDP flows to the host's own ports.
        everybody = {**work.ledger.guests(), **work.after} if self.rebuilt else work.after
        added = frozenset(pair for guest in everybody.values() for pair in flows.pairs(guest))
        knocking = added if self.rebuilt else added - old
        gateways = {ip for guest in everybody.values() if guest for ip in guest.gateways}
        problem = conntrack.end_flows(old, new, knocking, self._own_addresses(knocking) - gateways)
        if problem:
            log.warning(problem)

    def _own_addresses(self, knocking: Iterable[flows.Pair]) -> frozenset[Address]:
        """Return the host's addresses, where UDP flows to them may have to end."""
        if self.own or not any(forward.proto == "udp" for forward, _ in knocking):
            return self.own
        from virt_forward.host import collect

        try:
            return collect.own_addresses()
        except VirtForwardError as error:
            log.warning(str(error))
            return frozenset()


def _tell_of_lost_endpoints(work: Work) -> None:
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


def resolve_conflicts(
    index: Iterable[claims.Row], guest: Guest, before: Guest | None, veto: claims.Veto
) -> Guest:
    """Return ``guest`` settled against the index; what it has already is not judged again."""
    had = set(before.forwards) if before else set()
    return claims.settle(index, guest, lambda forward: None if forward in had else veto(forward))


def _beside(index: claims.Index, changes: Changes, uuid: str) -> claims.Index:
    """Return the index after ``changes``, less the rows of one guest."""
    rows = (row for other, guest in changes.items() if guest and other != uuid for row in claims.rows(guest))
    return claims.without(index, [*changes, uuid]) + tuple(rows)


def _upheld(index: claims.Index, guest: Guest) -> Guest:
    """Return a guest settled against the index alone, with what the host had against it upheld."""
    return claims.settle(index, guest, dict(guest.conflicts).get)
