"""``sync`` in a child process, so that the service does not hang if libvirt does.

A thread could not be ended if libvirt never answers, nor take the lock, whose time limit is a
signal. A process can be killed at any point, and the next change recovers what it did not finish.
"""

import math
import os
import select
import subprocess
import time
from collections.abc import Collection
from typing import NamedTuple

from virt_forward.errors import VirtForwardError
from virt_forward.host import log
from virt_forward.watch import child

SYNC_SECONDS = 60.0
"""How long a sync may take; with thousands of guests it takes a few seconds."""

FAILED = 3
"""The exit status if nothing was done; the output is the error message."""


class SyncResult(NamedTuple):
    """The result of a sync: the UUIDs it was for (None: all), and the error message, empty on success."""

    only: frozenset[str] | None
    failure: str


class SyncProcess:
    """At most one sync at a time, in a child process."""

    def __init__(self, poller: select.poll) -> None:
        self._poller = poller
        self._child: subprocess.Popen[bytes] | None = None
        self._only: frozenset[str] | None = None
        self._deadline = math.inf
        self._fd = self._output = -1

    def is_running(self) -> bool:
        """Tell whether a sync is running."""
        return self._child is not None

    def deadline(self) -> float:
        """Return when the running sync is killed, on the monotonic clock; infinity if none is running."""
        return self._deadline

    def start(self, only: Collection[str] | None) -> None:
        """Start a sync of all domains, or of the UUIDs in ``only``. Raises VirtForwardError if it cannot."""
        self._only = None if only is None else frozenset(only)
        self._output = os.memfd_create("sync")
        try:
            self._child = subprocess.Popen(
                child.argv(__name__, *(self._only or ())),
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
            )
        except OSError as error:
            os.close(self._output)
            raise VirtForwardError(f"cannot start sync: {error.strerror}") from None
        self._fd = os.pidfd_open(self._child.pid)
        self._poller.register(self._fd, select.POLLIN)
        self._deadline = time.monotonic() + SYNC_SECONDS

    def result(self) -> SyncResult | None:
        """Return the result of a sync that has ended, or is killed now after SYNC_SECONDS; None otherwise."""
        if self._child is None:
            return None
        status = self._child.poll()
        if status is not None:
            lines = os.pread(self._output, 65536, 0).decode("utf-8", "replace").splitlines()
            self.stop()
            return SyncResult(self._only, _failure(status, lines))
        if time.monotonic() < self._deadline:
            return None
        self.stop()
        return SyncResult(self._only, f"libvirt did not answer within {SYNC_SECONDS:g} seconds")

    def stop(self) -> None:
        """Kill the running sync, if any."""
        if self._child:
            self._child.kill()
            self._child.wait(5)
            self._poller.unregister(self._fd)
            os.close(self._fd)
            os.close(self._output)
            self._child, self._deadline = None, math.inf


def _failure(status: int, lines: list[str]) -> str:
    if status == 0:
        for line in lines:
            log.error(f"watch: {line}")
        return ""
    message = " ".join(lines[-1:] if status != FAILED else lines)
    return message or f"sync failed with exit status {status}"


def _print_line(error: Exception) -> None:
    print(" ".join(str(error).split()))


def main(*uuids: str) -> int:
    """Run a sync of all domains or of some UUIDs; print each error as one line. Returns the exit status."""
    from virt_forward.reconcile.resync import sync

    only = set(uuids)
    try:
        outcome = sync(only or None, probe_guests=False)
    except VirtForwardError as error:
        _print_line(error)
        return FAILED
    for problem in outcome.errors:
        _print_line(problem)
    return 0
