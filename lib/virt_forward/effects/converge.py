"""Making what is set outside our table what it should be, in an order in which any step may be the last.

An item is recorded before it is set, and its record is removed after it was taken back: whatever a
process that was killed has set is in the record. What cannot be set is not recorded as ours, nor is
what somebody else had set before us. A guarded effect (see GUARDED) is taken back before the kernel's
transaction, which may remove the guard, and set after one that has left it in the kernel; all else
follows the transaction:

    change = withdraw(state, change)
    ...                                 the kernel has the table
    establish(state, change)

Nothing here raises for the sake of an effect: a guest must not fail because of one. All of it wants
the store's lock held.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from virt_forward.config import Config
from virt_forward.effects import EFFECTS, record
from virt_forward.effects.item import NOTHING, Change, Item, Items
from virt_forward.errors import VirtForwardError
from virt_forward.host import log
from virt_forward.namedtuple import TYPE_CHECKING
from virt_forward.state.snapshot import Snapshot

if TYPE_CHECKING:
    from typing import Any

    from virt_forward.effects.item import Effect


class Record:
    """The recorded items, in memory as in the state."""

    def __init__(self, state: Snapshot, items: Items) -> None:
        self.state = state
        self.items = items

    def replace(self, items: Items) -> None:
        """Record other items; raises StateError, and then what was recorded before still is."""
        if items != self.items:
            record.save(self.state, items)
            self.items = items


def withdraw(state: Snapshot, change: Change, *, guard: bool = True) -> Change:
    """Take back what is guarded and no longer desired; return the change with what is recorded now.

    ``guard`` tells whether the kernel has a guard after the change.
    """
    change = change._replace(recorded=record.load(state))
    recorded = Record(state, change.recorded)
    for effect in EFFECTS:
        if effect.GUARDED:
            with _failing_alone(effect):
                facts = effect.observe(state, change)
                _take_back(effect, effect.desired(change, facts) if guard else NOTHING, facts, recorded)
    return change._replace(recorded=recorded.items)


def establish(state: Snapshot, change: Change, *, guard: bool = True) -> None:
    """Set what is desired, and take back what is not and needs no guard.

    ``change`` is as withdraw() returned it; ``guard`` tells whether the kernel is known to have a guard.
    """
    recorded = Record(state, change.recorded)
    for effect in EFFECTS:
        with _failing_alone(effect):
            if not effect.GUARDED:
                _follow(state, effect, change, recorded)
            elif guard:
                # Unless the table was rebuilt, only what is new is known to have its guard in the kernel.
                had = change.recorded if change.search == "recorded" else NOTHING
                facts = effect.observe(state, change)
                _set(effect, effect.desired(change, facts) - had, facts, recorded)


def follow(state: Snapshot, change: Change) -> None:
    """Set again what others have undone and needs no guard, where guests and table are what they were."""
    change = change._replace(recorded=record.load(state))
    recorded = Record(state, change.recorded)
    for effect in EFFECTS:
        if not effect.GUARDED:
            with _failing_alone(effect):
                _follow(state, effect, change, recorded)


def _follow(state: Snapshot, effect: Effect, change: Change, recorded: Record) -> None:
    facts = effect.observe(state, change)
    desired = effect.desired(change, facts)
    _take_back(effect, desired, facts, recorded)
    _set(effect, desired, facts, recorded)


def release(state: Snapshot) -> bool:
    """Take back all that was ever set, whatever is left of the state; return whether nothing is left."""
    change = Change(Config(), search="all", recorded=record.load(state))
    recorded = Record(state, change.recorded)
    for effect in EFFECTS:
        with _failing_alone(effect):
            _take_back(effect, NOTHING, effect.observe(state, change), recorded)
    return not recorded.items


@contextlib.contextmanager
def _failing_alone(effect: Effect) -> Iterator[None]:
    """Log what an effect raises; also on listings of other programs that are not as they should be."""
    try:
        yield
    except (VirtForwardError, ValueError, KeyError, TypeError) as error:
        log.error(f"{error}; {effect.OTHERWISE}")


def _ours(effect: Effect, facts: Any, recorded: Record) -> Items:
    return frozenset(item for item in recorded.items if item.effect == effect.NAME) | effect.recognized(facts)


def _take_back(effect: Effect, desired: Items, facts: Any, recorded: Record) -> None:
    stale = _ours(effect, facts, recorded) - desired
    if stale:
        left = effect.unset_items(stale, facts)
        recorded.replace(recorded.items - (stale - left))


def _set(effect: Effect, desired: Items, facts: Any, recorded: Record) -> None:
    present: dict[Item, bool | None] = {item: effect.present(item, facts) for item in desired}
    missing = frozenset(item for item in desired if present[item] is False)
    impossible = frozenset(item for item in desired if present[item] is None)
    ours = _ours(effect, facts, recorded) & desired
    recorded.replace(recorded.items - impossible | missing | (ours - impossible))
    if missing:
        recorded.replace(recorded.items - effect.set_items(missing, facts))
