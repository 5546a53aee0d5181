"""``sync`` in a child process, so that the service does not hang if libvirt does."""

import gc
import math
import select
import time
from collections.abc import Collection
from typing import NamedTuple

from virt_forward.errors import VirtForwardError
from virt_forward.host import log
from virt_forward.watch import child

LIBVIRT_SECONDS = 60.0
"""How long libvirt may take to list its guests; with thousands of them it takes a few seconds."""

SECONDS = 900.0
"""How long a sync may take. 100,000 forwards take about a minute; nft has a time limit by their number."""


class SyncResult(NamedTuple):
    """The result of a sync: the UUIDs it was for (None: all), and the error message, empty on success."""

    only: frozenset[str] | None
    failure: str


class SyncProcess:
    """At most one sync at a time, in a child process."""

    def __init__(self, poller: select.poll) -> None:
        self._task = child.Task(poller, "sync", __name__)
        self._only: frozenset[str] | None = None
        self._deadline = math.inf

    def is_running(self) -> bool:
        """Tell whether a sync is running."""
        return self._task.is_running()

    def deadline(self) -> float:
        """Return when to look at the running sync, on the monotonic clock; infinity if none is running."""
        return self._deadline

    def start(self, only: Collection[str] | None) -> None:
        """Start a sync of all domains, or of the UUIDs in ``only``. Raises VirtForwardError if it cannot."""
        self._only = None if only is None else frozenset(only)
        self._task.start([*(self._only or ())])
        self._deadline = self._task.started + LIBVIRT_SECONDS

    def changes_table(self) -> bool:
        """Tell whether libvirt has answered: what is left needs the lock."""
        return self.is_running() and len(self._task.steps()) > 1

    def result(self) -> SyncResult | None:
        """Return the result of a sync that has ended, or is killed now for its time; None otherwise."""
        if not self.is_running():
            return None
        if ended := self._task.result():
            self._deadline = math.inf
            failure, lines = ended
            for line in lines:
                log.error(f"watch: {line}")
            return SyncResult(self._only, failure)
        if time.monotonic() < self._deadline:
            return None
        if self.changes_table() and self._deadline < self._task.started + SECONDS:
            self._deadline = self._task.started + SECONDS
            return None
        steps, took = self._task.steps(), self._deadline - self._task.started
        self.stop()
        doing = f"it was {steps[-1]}" if steps else "it had not begun"
        return SyncResult(self._only, f"sync has not ended within {took:g} seconds: {doing}")

    def stop(self) -> None:
        """Kill the running sync, if any."""
        self._task.stop()
        self._deadline = math.inf


def main(*uuids: str) -> int:
    """Run a sync of all domains or of some UUIDs; print each error as one line. Returns the exit status."""
    from virt_forward.reconcile.resync import sync

    # As the command does: there is no garbage.
    gc.disable()
    only = set(uuids)
    try:
        outcome = sync(only or None, probe_guests=False, tell=_tell)
    except VirtForwardError as error:
        child.print_line(error)
        return child.FAILED
    for problem in outcome.errors:
        child.print_line(problem)
    return 0


def _tell(step: str) -> None:
    child.print_line(child.STEP + step)
