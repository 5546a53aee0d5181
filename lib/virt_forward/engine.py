"""One change of the guests: read, plan, one transaction, write, end stale connections.

A change is cut into steps any of which may be the last (a kill, a full disk). The file
``unfinished`` stands from before the first to after the last, and whoever finds it makes
everything anew from the records. The kernel's side needs no such mark: each transaction
names the revision of the table that it changes.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from virt_forward import claims, conntrack, flows, localnet, log, nft
from virt_forward.config import Config
from virt_forward.errors import NftError, StateError
from virt_forward.model import Address, Guest
from virt_forward.ruleset import table
from virt_forward.store import Store

Changes = Mapping[str, Guest | None]


class Before(NamedTuple):
    """What stood before a change; ``include`` is None where it must be made anew from the records."""

    claimed: claims.Index
    include: table.Include | None
    guests: dict[str, Guest | None]


class Engine:
    """Changes guests in a store and in the kernel. Every method wants the store's lock held."""

    def __init__(self, store: Store, config: Config, own: frozenset[Address] = frozenset()) -> None:
        self.store = store
        self.config = config
        self.own = own

    def index(self) -> claims.Index:
        """Return the index of claims, made anew from the records where it is not to be trusted."""
        text = None if self._unfinished() else self.store.read("claims")
        try:
            if text is not None:
                return claims.parse_index(text)
        except ValueError as error:
            log.warning(f"{error}; it is made anew")
        return tuple(row for guest in self._records() for row in claims.rows(guest))

    def change(self, changes: Changes, *, afresh: bool = False) -> None:
        """Make guests what ``changes`` says by UUID; None removes one.

        ``afresh`` makes the whole table anew, whatever it is now. Raises NftError or
        StateError; what was not finished then is made good by the next change.
        """
        changes = {**self._left(changes), **changes}
        before = self._before(changes, afresh)
        changes = self._freed(before, changes)
        after = claims.without(before.claimed, changes)
        after += tuple(row for guest in changes.values() if guest for row in claims.rows(guest))
        self._begin(changes)
        loopback = self._loopback_bridges(after)
        localnet.switch_off(self.store, loopback)
        include = self._apply(before, after, changes)
        localnet.switch_on(self.store, loopback)
        self._finish(include, after)
        self._end_flows(before, changes)

    def _loopback_bridges(self, index: claims.Index) -> set[str]:
        return {row.dev for row in index if row.kind == claims.LAN} if self.config.localhost else set()

    def _left(self, changes: Changes) -> Changes:
        """Return the changes that others had to leave to us, settled against everybody else's claims."""
        found: dict[str, Guest | None] = {}
        for uuid, guest in self.store.take_todo().items():
            others = claims.without(self.index(), [*changes, uuid])
            others += tuple(
                row for other in (*changes.values(), *found.values()) if other for row in claims.rows(other)
            )
            found[uuid] = claims.settle(others, guest) if guest else None
        return found

    def _unfinished(self) -> bool:
        return self.store.read("unfinished") is not None

    def _records(self) -> list[Guest]:
        guests, errors = self.store.guests()
        for error in errors:
            log.error(f"{error}; it is left out")
        return guests

    def _before(self, changes: Changes, afresh: bool) -> Before:
        trusted = not afresh and not self._unfinished()
        text = self.store.read("ruleset.nft") if trusted else None
        include = table.parse(text, self.config) if text else None
        return Before(self.index(), include, {uuid: self._guest(uuid) for uuid in changes})

    def _guest(self, uuid: str) -> Guest | None:
        try:
            return self.store.guest(uuid)
        except StateError as error:
            log.error(f"{error}; it is made anew")
            return None

    def _freed(self, before: Before, changes: Changes) -> Changes:
        """Return the changes with those guests added whose conflicts they may end."""
        waiting = {row.uuid for row in before.claimed if row.kind == claims.OUT} - set(changes)
        added: dict[str, Guest | None] = {}
        for uuid in sorted(waiting):
            guest = self._guest(uuid)
            others = claims.without(before.claimed, [*changes, uuid])
            others += tuple(row for g in (*changes.values(), *added.values()) if g for row in claims.rows(g))
            settled = claims.settle(others, guest) if guest else None
            if settled and settled != guest:
                before.guests[uuid] = guest
                added[uuid] = settled
        return {**changes, **added}

    def _begin(self, changes: Changes) -> None:
        try:
            self.store.write("unfinished", "")
            for uuid, guest in changes.items():
                self.store.put(uuid, guest)
        except StateError as error:
            if any(changes.values()):
                raise
            # Rules that must go do go, even where that cannot be written down.
            log.error(f"{error}; virt-forward sync makes it good")

    def _apply(self, before: Before, after: claims.Index, changes: Changes) -> table.Include:
        if before.include is None or not before.include.paragraphs:
            return self._make_anew(before, changes)
        change = self._plan(before, after, changes)
        include = table.splice(before.include, change)
        if change.same() and not self._running(before, changes):
            return before.include
        try:
            if include.paragraphs:
                nft.apply(table.transaction(before.include, change))
            else:
                nft.delete_table()
        except NftError as error:
            log.warning(f"the table is not as it was left ({error}); it is made anew")
            return self._make_anew(before, changes)
        return include

    def _running(self, before: Before, changes: Changes) -> bool:
        """Tell whether the change is about a running guest, whose rules deserve a look at the kernel."""
        return any(
            guest.phase == "running" for guest in (*before.guests.values(), *changes.values()) if guest
        )

    def _plan(self, before: Before, after: claims.Index, changes: Changes) -> table.Change:
        old = [guest for guest in before.guests.values() if guest]
        new = [guest for guest in changes.values() if guest]
        touching = tuple(row for guest in (*old, *new) for row in claims.rows(guest))
        return table.Change(
            table.blocks_of(old, before.claimed, touching, self.config),
            table.blocks_of(new, after, touching, self.config),
        )

    def _make_anew(self, before: Before, changes: Changes) -> table.Include:
        guests = {**{guest.uuid: guest for guest in self._records()}, **changes}
        revision = before.include.revision + 1 if before.include else 1
        include = table.whole((guest for guest in guests.values() if guest), self.config, revision)
        known_empty = before.include is not None and not before.include.paragraphs
        if not include.paragraphs:
            if not known_empty:
                nft.delete_table()
        elif known_empty:
            nft.apply(table.text(include))
        else:
            self._replace(include)
        return include

    def _replace(self, include: table.Include) -> None:
        chains = nft.chains()
        if chains is None:
            nft.apply(table.text(include))
            return
        try:
            nft.apply(table.rebuild(include, self.config, chains))
        except NftError as error:
            # Another version's table may have maps of other types: then nothing but a new one will do.
            log.warning(f"the table cannot be mended ({error}); it is replaced")
            nft.apply(table.text(include))

    def _finish(self, include: table.Include, after: claims.Index) -> None:
        try:
            self.store.write("ruleset.nft", table.text(include))
            self.store.write("claims", claims.render_index(after))
            self.store.remove("unfinished")
        except StateError as error:
            log.error(f"{error}; the table is right, but the include file may be out of date")

    def _end_flows(self, before: Before, changes: Changes) -> None:
        old = {pair for guest in before.guests.values() for pair in flows.pairs(guest)}
        new = {pair for guest in changes.values() for pair in flows.pairs(guest)}
        gateways = {ip for guest in changes.values() if guest for ip in guest.gateways}
        problem = conntrack.end_flows(old - new, new - old, self.own - gateways)
        if problem:
            log.warning(problem)


def judged(index: Iterable[claims.Row], guest: Guest, before: Guest | None, judge: claims.Judge) -> Guest:
    """Return ``guest`` settled against the index; what it has already is not judged again."""
    had = set(before.forwards) if before else set()
    return claims.settle(index, guest, lambda forward: None if forward in had else judge(forward))
