"""``sync`` in a process of its own: libvirt may hang, and the service must not hang with it.

A thread could not be ended where libvirt never answers, nor take the lock, whose time limit
is a signal. A process can be killed at any point: the next change makes good what it left.
"""

import math
import os
import select
import subprocess
import sys
import time
from collections.abc import Collection, Iterable
from typing import NamedTuple

from virt_forward.errors import VirtForwardError
from virt_forward.host import log

SYNC_SECONDS = 60.0
"""How long a sync may take; the largest take a few seconds, while libvirt answers."""

FAILED = 3
"""The exit status where nothing was done; what was wrong is in the output."""

_PACKAGE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); "
    "from virt_forward.watch.syncing import main; sys.exit(main(sys.argv[1:]))"
)


class Ended(NamedTuple):
    """A sync that has ended: which domains it was for, None for all, and why it failed, empty if not."""

    only: frozenset[str] | None
    failure: str


class Syncing:
    """At most one sync at a time, in a child process."""

    def __init__(self, poller: select.poll) -> None:
        self._poller = poller
        self._child: subprocess.Popen[bytes] | None = None
        self._only: frozenset[str] | None = None
        self._deadline = math.inf
        self._fd = self._output = -1

    def busy(self) -> bool:
        """Tell whether a sync is under way."""
        return self._child is not None

    def next_at(self) -> float:
        """Return when the one that is under way has to be ended, on the monotonic clock."""
        return self._deadline

    def start(self, only: Collection[str] | None) -> None:
        """Start one, of all domains or ``only`` those of some UUIDs. Raises VirtForwardError."""
        self._only = None if only is None else frozenset(only)
        self._output = os.memfd_create("sync")
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-I", "-c", _PROGRAM, _PACKAGE, *(self._only or ())],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
            )
        except OSError as error:
            os.close(self._output)
            raise VirtForwardError(f"sync cannot be started: {error.strerror}") from None
        self._fd = os.pidfd_open(self._child.pid)
        self._poller.register(self._fd, select.POLLIN)
        self._deadline = time.monotonic() + SYNC_SECONDS

    def ended(self) -> Ended | None:
        """Return how the one under way has ended, which may be now as its time is up; None otherwise."""
        if self._child is None:
            return None
        status = self._child.poll()
        if status is not None:
            lines = os.pread(self._output, 65536, 0).decode("utf-8", "replace").splitlines()
            self.stop()
            return Ended(self._only, _failure(status, lines))
        if time.monotonic() < self._deadline:
            return None
        self.stop()
        return Ended(self._only, f"libvirt has not answered within {SYNC_SECONDS:g} seconds")

    def stop(self) -> None:
        """End the one under way, if any."""
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
    words = " ".join(lines[-1:] if status != FAILED else lines)
    return words or f"sync has ended with status {status}"


def _print(error: Exception) -> None:
    print(" ".join(str(error).split()))


def main(uuids: Iterable[str]) -> int:
    """Run a sync of all domains, or of those with some UUIDs; print what was wrong, a line each."""
    from virt_forward.reconcile.resync import sync

    only = set(uuids)
    try:
        outcome = sync(only or None, ask_guests=False)
    except VirtForwardError as error:
        _print(error)
        return FAILED
    for problem in outcome.errors:
        _print(problem)
    return 0
