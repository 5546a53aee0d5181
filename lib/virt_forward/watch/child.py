"""Child processes of the service: a module of this package in an interpreter of its own."""

import math
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence

from virt_forward.errors import VirtForwardError

_PACKAGE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

STEP = "step: "
"""How a line of a task's output begins that tells what it does next."""

FAILED = 3
"""The exit status of a task that has done nothing; its output is the error message."""


def argv(module: str, *words: str) -> list[str]:
    """Return the command that calls ``main`` of a module with some words, and exits with what it returns."""
    program = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); "
        f"from {module} import main; sys.exit(main(*sys.argv[1:]))"
    )
    return [sys.executable, "-I", "-c", program, _PACKAGE, *words]


class Task:
    """What may take long: ``main`` of a module in a child process, one at a time.

    A thread could not be ended, nor take the lock, whose time limit is a signal. A process can be
    killed at any point, and the next change recovers what it did not finish.
    """

    def __init__(self, poller: select.poll, name: str, module: str) -> None:
        self._poller = poller
        self._name, self._module = name, module
        self._child: subprocess.Popen[bytes] | None = None
        self._fd = self._output = -1
        self.started = math.inf
        """When the running task was started, on the monotonic clock; infinity if none is running."""

    def is_running(self) -> bool:
        """Tell whether the task is running."""
        return self._child is not None

    def start(self, words: Sequence[str] = ()) -> None:
        """Start the task. Raises VirtForwardError if it cannot."""
        self._output = os.memfd_create(self._name)
        try:
            self._child = subprocess.Popen(
                argv(self._module, *words),
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
            )
        except OSError as error:
            os.close(self._output)
            raise VirtForwardError(f"cannot start {self._name}: {error.strerror}") from None
        self._fd = os.pidfd_open(self._child.pid)
        self._poller.register(self._fd, select.POLLIN)
        self.started = time.monotonic()

    def steps(self) -> list[str]:
        """Return the steps that the running task has told of so far."""
        return [line.removeprefix(STEP) for line in self._lines() if line.startswith(STEP)]

    def _lines(self) -> list[str]:
        return os.pread(self._output, 65536, 0).decode("utf-8", "replace").splitlines()

    def result(self) -> tuple[str, list[str]] | None:
        """Return the error message of the task that has ended, empty on success, and its other output.

        None while it is running.
        """
        status = self._child.poll() if self._child else None
        if status is None:
            return None
        lines = [line for line in self._lines() if not line.startswith(STEP)]
        self.stop()
        if status == 0:
            return "", lines
        message = " ".join(lines if status == FAILED else lines[-1:])
        return message or f"{self._name} failed with exit status {status}", []

    def stop(self) -> None:
        """Kill the running task, if any."""
        if self._child:
            self._child.kill()
            self._child.wait(5)
            self._poller.unregister(self._fd)
            os.close(self._fd)
            os.close(self._output)
            self._child, self.started = None, math.inf


def print_line(text: object) -> None:
    """Print something as one line of a task's output, at once."""
    print(" ".join(str(text).split()), flush=True)
