"""Work that fails or does not stay up: when it is tried again, and that it is told once."""

import math
from collections.abc import Sequence

from virt_forward.host import log

RETRY_SECONDS = 5.0
"""When something that failed is tried again."""

BACKOFF_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Waits between attempts at something that is away or does not stay up, the last one for all that follow."""


class Backoff:
    """The waits between attempts, longer each time."""

    def __init__(self, seconds: Sequence[float] = BACKOFF_SECONDS) -> None:
        self._seconds = seconds
        self._attempt = 0

    def wait(self) -> float:
        """Return how long to wait before the next attempt, in seconds."""
        self._attempt += 1
        return self._seconds[min(self._attempt, len(self._seconds)) - 1]

    def reset(self) -> None:
        """Begin with the shortest wait again, as it works."""
        self._attempt = 0


class Job:
    """One kind of work: whether it is wanted, and from when on it may be done. Times are monotonic."""

    def __init__(self, pause: float = 0.0) -> None:
        self.wanted = False
        self._pause = pause
        self._not_before = -math.inf
        self._told = ""

    def at(self) -> float:
        """Return when it is to be done; infinity where it is not wanted."""
        return self._not_before if self.wanted else math.inf

    def done(self, now: float) -> None:
        """Note that it was done: what is wanted since it began waits for the pause at least."""
        self._told, self._not_before = "", now + self._pause

    def failed(self, now: float, message: str) -> None:
        """Note that it failed: it stays wanted, and is told where it is another failure than the last."""
        self.wanted, self._not_before = True, now + RETRY_SECONDS
        if message != self._told:
            log.error(f"watch: {message}")
            self._told = message
