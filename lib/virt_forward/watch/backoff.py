"""When failed work is tried again, and that each failure is logged once."""

import math
from collections.abc import Sequence

from virt_forward.host import log

RETRY_SECONDS = 5.0
"""How long after a failure a job is tried again."""

BACKOFF_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Waits between attempts to connect or start something; the last one applies to all further attempts."""


class Backoff:
    """The waits between attempts: longer after each one."""

    def __init__(self, seconds: Sequence[float] = BACKOFF_SECONDS) -> None:
        self._seconds = seconds
        self._attempt = 0

    def wait(self) -> float:
        """Return how long to wait before the next attempt, in seconds, and count it."""
        self._attempt += 1
        return self._seconds[min(self._attempt, len(self._seconds)) - 1]

    def reset(self) -> None:
        """Start with the shortest wait again, after a success."""
        self._attempt = 0


class Job:
    """One kind of work: whether it is pending, and the earliest time to do it.

    Times are of the monotonic clock, in seconds; ``pause`` is the least time between two runs.
    """

    def __init__(self, pause: float = 0.0) -> None:
        self.pending = False
        self._pause = pause
        self._not_before = -math.inf
        self._logged = ""

    def due_at(self) -> float:
        """Return when the job is due; infinity if it is not pending."""
        return self._not_before if self.pending else math.inf

    def finish(self, now: float) -> None:
        """Record a success; a job that has become pending meanwhile waits for the pause."""
        self._logged, self._not_before = "", now + self._pause

    def fail(self, now: float, message: str) -> None:
        """Record a failure: the job stays pending, and a ``message`` that is new is logged."""
        self.pending, self._not_before = True, now + RETRY_SECONDS
        if message != self._logged:
            log.error(f"watch: {message}")
            self._logged = message
