"""Making a plan true, in named steps in a fixed order, each of which may be the last.

stage     the include file of the new revision is written beside the present one
commit    the state has the guests, the new revision, and which file is its include file
withdraw  what a guard in the table covers and is not wanted any more is taken back
kernel    one transaction, which fails as a whole where the kernel has another revision: then a rebuild
establish the other effects outside the table
flows     connections that the table would now send elsewhere are ended
publish   the new include file takes its name

What was interrupted is found by comparison: the include file is not the one that the state names, or
the kernel does not have the state's revision. Either way the table is rebuilt, and that is all of
the recovery. It is rebuilt as well where the state's table was rendered from other settings than those
in force, whatever the change is about: the guard is in the table before what it guards is set.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from functools import cached_property

from virt_forward import text
from virt_forward.claims import index as claims
from virt_forward.claims.rows import lookups
from virt_forward.effects import converge
from virt_forward.effects.item import Change
from virt_forward.errors import NftError, NftTimeout, NftUnusableError, StateError
from virt_forward.host import log, nft, process, starter
from virt_forward.model import Guest, Guests
from virt_forward.reconcile import connections
from virt_forward.reconcile import plan as plans
from virt_forward.reconcile.plan import Plan
from virt_forward.reconcile.planning import Context, make_plan
from virt_forward.reconcile.wants import Want
from virt_forward.ruleset import static, table
from virt_forward.state.include import IncludeFile
from virt_forward.state.snapshot import Commit


def reconcile(context: Context, wants: Sequence[Want], *, rebuild: bool = False) -> Plan:
    """Plan wants and apply the plan; raises NftError or StateError as ``apply`` does."""
    plan = make_plan(context, wants)
    apply(context, plan, rebuild=rebuild)
    return plan


def apply(context: Context, plan: Plan, *, rebuild: bool = False) -> None:
    """Make guests what the plan says. With ``rebuild``, nothing that is derived is trusted.

    Raises NftError, or StateError where guests that are to be present cannot be written; the next
    change finishes what was not finished then.
    """
    try:
        _Application(context, plan, rebuild=rebuild).run()
    except StateError as error:
        if any(plan.after.get(uuid) for uuid in plan.wanted) or not plan.wanted:
            raise
        # Rules that must go do go, even where that cannot be written.
        log.error(f"{error}; virt-forward sync writes it again")
        _Application(context, plan.only_wanted(), rebuild=rebuild, written=False).run()


def follow_load(context: Context) -> None:
    """Do what has to follow after the whole table of the state was loaded, from its include file.

    Effects outside the table are set, and flows that began while there was no table are ended.
    """
    application = _Application(context, Plan({}, {}), rebuild=True)
    converge.follow(context.state, application.outside())
    application.end_flows()


class _Application:
    """One plan on its way into the kernel.

    ``rebuilt`` tells that the whole table is rebuilt, ``loaded`` that the kernel is known to have a table,
    which is that of this change.
    """

    def __init__(self, context: Context, plan: Plan, *, rebuild: bool, written: bool = True) -> None:
        self.store, self.state, self.config, self.host = context
        self.plan = plan
        self.before = {uuid: guest for uuid, guest in plan.before.items() if guest}
        self.after = {uuid: guest for uuid, guest in plan.after.items() if guest}
        self.include = IncludeFile(self.store.include_path)
        self.interrupted = not self.include.is_named(self.state.value("include"))
        self.unfinished = self.state.previous if self.interrupted else {}
        self.previous = {**plan.before, **self.unfinished}
        self.revision = self.state.revision
        others = any(isinstance(row, claims.LookupRow) for row in plan.others)
        self.had_table = others or any(map(lookups, self.before.values()))
        self.has_table = others or any(map(lookups, self.after.values()))
        self.settings = static.settings(self.config)
        other_settings = self.state.value("settings") != self.settings
        self.rebuilt = rebuild or self.interrupted or self.state.damaged or other_settings
        self.search_all = rebuild or self.interrupted
        self.written = written
        self.loaded = False

    def run(self) -> None:
        changes = self.rebuilt or not self.blocks.same()
        if changes and not self.had_table:
            self.rebuilt = True
        now = self.revision
        if changes:
            # One that no state has, where none is written: the next change rebuilds.
            self.revision = now + 1 if self.written else 1 << 31 | int.from_bytes(os.urandom(3))
            self._stage(now)
        if self.written:
            self._commit(renewed=changes)
        has_table = bool(self.whole.paragraphs) if self.rebuilt else self.has_table or not self.had_table
        self.effects = converge.withdraw(self.state, self.outside(), guard=has_table)
        try:
            self._kernel(now)
        except NftError:
            self.include.discard()
            raise
        converge.establish(self.state, self.effects, guard=self.loaded)
        self.end_flows()
        self.include.publish()
        if self.written:
            gone = {uuid for uuid, guest in self.plan.after.items() if not guest}
            others = self.store.marked() - self.all.keys() if self.rebuilt else set()
            self.store.unmark(self.state, gone | others)

    @cached_property
    def blocks(self) -> table.Change:
        """The blocks of the guests that change; not made where the whole table is rebuilt."""
        before, after = self.before.values(), self.after.values()
        touching = tuple(row for guest in (*before, *after) for row in claims.rows(guest))
        indexes = (
            # In the same order as in a rebuild: equal claims come in the order of their guests' UUIDs.
            sorted(
                (*self.plan.others, *(row for guest in guests for row in claims.rows(guest))),
                key=lambda row: row.uuid,
            )
            for guests in (before, after)
        )
        one, other = (
            table.blocks_of(guests, index, touching, self.config)
            for guests, index in zip((before, after), indexes, strict=True)
        )
        return table.Change(one, other)

    # stage

    def _stage(self, now: int) -> None:
        """Write the include file of the new revision; where that fails, the next change does it."""
        pieces = None
        if not self.rebuilt and self.has_table:
            pieces = table.splice(self.include.read(), now, self.revision, self.blocks, self.config)
            self.rebuilt = pieces is None
        self.include.stage(pieces or [table.text(self.whole).encode()])

    @cached_property
    def all(self) -> dict[str, Guest]:
        """All guests as they are after the change; read only where the table is rebuilt."""
        found: Guests = {**self.state.all_recorded(), **self.plan.after}
        guests = {uuid: guest for uuid, guest in found.items() if guest}
        resolved = plans.without_clashes(guests.values())
        if resolved != guests:
            log.error("records of different guests claim the same; the later ones are kept out")
        return resolved

    @cached_property
    def whole(self) -> table.Include:
        """The whole table of the new revision."""
        return table.whole(self.all.values(), self.config, self.revision)

    # commit

    def _commit(self, *, renewed: bool) -> None:
        """Write the state; raises StateError, and then nothing has happened."""
        after = self.plan.after
        changed = {uuid: g for uuid, g in after.items() if g != self.plan.before[uuid] or not g}
        try:
            self.store.mark(self.all if self.rebuilt else self.after)
            if changed or self.plan.queued or renewed:
                revision = self.revision if renewed else None
                name, by = self.include.name, starter.current()
                entry = Commit(changed, self.previous, self.plan.queued, revision, name, self.settings, by)
                self.state.commit(entry)
        except StateError:
            self.include.discard()
            raise

    # kernel

    def _kernel(self, now: int) -> None:
        """Bring the kernel's table to the new revision. Raises NftError."""
        runs = any(guest.phase == "running" for guest in (*self.before.values(), *self.after.values()))
        if not self.rebuilt and (self.revision != now or runs):
            try:
                self._change(now)
            except NftUnusableError:
                raise
            except NftError as error:
                log.warning(f"the table is not as it was left ({error}); it is rebuilt")
                self.rebuilt = True
        if self.rebuilt:
            self._rebuild()

    def _change(self, now: int) -> None:
        if self.has_table:
            nft.apply(table.transaction(now, self.revision, self.blocks))
            self.loaded = True
        elif self.had_table:
            nft.delete_table()

    def _rebuild(self) -> None:
        """Load the whole table, or else all of it but one guest's rules; raises NftError."""
        suspects = self._suspects()
        try:
            with process.half_of_time_left() if suspects else contextlib.nullcontext():
                self._load(self.whole)
        except NftTimeout as error:
            self._load_without(suspects, error)
        except NftUnusableError:
            raise
        except NftError as error:
            self._load_without([*suspects, *self._with_rules(self.all)[-1:]], error)

    def _suspects(self) -> list[str]:
        """Return the guests of a change that nft has not finished, perhaps because of one of them.

        What began before the last one comes first, as the changes before it were finished.
        """
        return self._with_rules(u for u, guest in self.unfinished.items() if guest != self.all.get(u))[:3]

    def _with_rules(self, uuids: Iterable[str]) -> list[str]:
        """Return those guests that have rules, in the order of their last changes."""
        return self.state.in_order([u for u in uuids if u in self.all and lookups(self.all[u])])

    def _load_without(self, suspects: Iterable[str], error: NftError) -> None:
        """Rebuild without the first of some guests without whom nft loads the table; raises ``error``."""
        for uuid in suspects:
            with contextlib.suppress(NftError), process.half_of_time_left():
                self._keep_out(uuid, error)
                return
        raise error

    def _load(self, include: table.Include) -> None:
        from virt_forward.reconcile import kernel

        kernel.load(include, self.config, absent=not (self.had_table or self.search_all))
        self.loaded = bool(include.paragraphs)

    def _keep_out(self, uuid: str, error: NftError) -> None:
        """Rebuild without a guest, and note ``error`` as the reason; raises NftError."""
        guest = self.all[uuid]
        out = (*guest.conflicts, *((forward, str(error)) for forward in guest.forwards))
        kept_out = guest._replace(forwards=(), conflicts=out, endpoints=(), contested=())
        whole = table.whole({**self.all, uuid: kept_out}.values(), self.config, self.revision)
        if not whole.paragraphs:
            self.effects = converge.withdraw(self.state, self.effects, guard=False)
        self._load(whole)
        log.error(f"guest {text.quote(guest.name)}: {error}; it is kept out, and the others have their rules")
        self.after[uuid] = self.plan.after[uuid] = self.all[uuid] = kept_out
        self.include.stage([table.text(whole).encode()])
        self.state.commit(
            Commit({uuid: kept_out}, self.previous, {}, self.revision, self.include.name, self.settings)
        )

    # effects and flows

    def outside(self) -> Change:
        """Return what the effects outside our table follow from."""
        was = tuple(guest for guest in self.previous.values() if guest)
        search = "known" if self.search_all else "recorded"
        return Change.of(self.state, self.config, before=was, after=self._changed(), search=search)

    def _changed(self) -> tuple[Guest, ...]:
        """Return the guests of this change and of an interrupted one as they are now."""
        interrupted = (self.all.get(uuid) for uuid in self.previous if uuid not in self.plan.after)
        return tuple(guest for guest in (*self.after.values(), *interrupted) if guest)

    def end_flows(self) -> None:
        """End the flows that the table would now send elsewhere, and those that began without it."""
        present = (self.all if self.rebuilt else self.after).values()
        connections.end(self.previous.values(), self._changed(), present, self.host, loaded=self.rebuilt)
