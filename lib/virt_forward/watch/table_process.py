"""A large table is restored in a child process: nft takes seconds, or a minute, and the service goes on."""

import math
import select
import time

from virt_forward.errors import VirtForwardError
from virt_forward.state.store import Store
from virt_forward.watch import child
from virt_forward.watch.table_check import restore

SECONDS = 900.0
"""How long it may take; nft has a time limit by the size of the table."""


class TableProcess:
    """At most one such process at a time."""

    def __init__(self, poller: select.poll) -> None:
        self._task = child.Task(poller, "restoring the table", __name__)

    def is_running(self) -> bool:
        """Tell whether the table is being restored."""
        return self._task.is_running()

    def deadline(self) -> float:
        """Return when the running process is killed, on the monotonic clock; infinity if none is running."""
        return self._task.started + SECONDS if self.is_running() else math.inf

    def start(self, *, verified: bool) -> None:
        """Start to restore the table (``table_check.restore``). Raises VirtForwardError if it cannot."""
        self._task.start(["verified"] if verified else [])

    def result(self) -> str | None:
        """Return why the table is not restored, empty if it is; None while none has ended."""
        if ended := self._task.result():
            return ended[0]
        if time.monotonic() < self.deadline():
            return None
        self.stop()
        return f"the table was not restored within {SECONDS:g} seconds"

    def stop(self) -> None:
        """Kill the running process, if any."""
        self._task.stop()


def main(*words: str) -> int:
    """Restore the table; print the error as one line. Returns the exit status."""
    try:
        restore(Store(), verified=bool(words))
    except VirtForwardError as error:
        child.print_line(error)
        return child.FAILED
    return 0
