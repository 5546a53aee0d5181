"""Commands with a timeout, told on failure in a form ready to paste into a shell."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Done:
    """A command that ended."""

    argv: tuple[str, ...]
    status: int
    out: str
    err: str
    stdin: str = ""
    env: Mapping[str, str] | None = None

    def paste(self) -> str:
        """Return the command as a person would type it to see the same."""
        clean = ["env", "-i", *(f"{key}={value}" for key, value in self.env.items())] if self.env else []
        line = shlex.join([*clean, *self.argv])
        return f"{line} <<'EOF'\n{self.stdin}\nEOF" if self.stdin else line

    def __str__(self) -> str:
        parts = [f"$ {self.paste()}", f"exit status {self.status}"]
        streams = (("stdout", self.out), ("stderr", self.err))
        parts += [f"{name}:\n{text.rstrip()}" for name, text in streams if text]
        return "\n".join(parts)


HUNG = 60.0
"""Seconds after which a command counts as hung: only how a test fails depends on it."""


class CommandFailedError(AssertionError):
    """A command that should have succeeded did not, or not in time."""


def run(
    argv: Sequence[str | Path],
    *,
    stdin: str = "",
    timeout: float = HUNG,
    check: bool = True,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Done:
    """Run a command to its end; one that outlives its timeout is killed with all it started."""
    words = tuple(map(str, argv))
    with subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env,
        cwd=cwd,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(stdin, timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            done = Done(words, -signal.SIGKILL, out, err, stdin, env)
            raise CommandFailedError(f"not done after {timeout} s:\n{done}") from None
    done = Done(words, process.returncode, out, err, stdin, env)
    if check and done.status:
        raise CommandFailedError(str(done))
    return done


class Background:
    """A process that ends with its ``with`` block, whatever happens in it; its output goes to a file."""

    def __init__(
        self, argv: Sequence[str | Path], log: Path, *, env: Mapping[str, str] | None = None, grace: float = 3
    ) -> None:
        self.argv = tuple(map(str, argv))
        self.log = log
        self.grace = grace
        with log.open("ab") as sink:
            self.process = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=env,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def alive(self) -> bool:
        return self.process.poll() is None

    def end(self) -> None:
        """Ask it to stop, insist after the grace period; its session goes with it."""
        if self.alive():
            self.process.terminate()
            try:
                self.process.wait(self.grace)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(HUNG)
        # The leader's number stays reserved for the group while a member of it lives.
        if group_alive(self.pid):
            os.killpg(self.pid, signal.SIGKILL)

    def wait_for(self, what: Callable[[], object], why: str, timeout: float = 30) -> None:
        """Wait until ``what()`` is true; say what the process said when it does not come."""
        until = time.monotonic() + timeout
        while not what():
            if not self.alive() or time.monotonic() > until:
                raise CommandFailedError(f"{why}: {self._state()}\n$ {shlex.join(self.argv)}\n{self.text()}")
            time.sleep(0.02)

    def _state(self) -> str:
        return "did not happen" if self.alive() else f"process ended, status {self.process.returncode}"

    def __enter__(self) -> Background:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def group_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def is_tied(pid: int) -> bool:
    """Tell whether a program of host.process ends with the process that has started it.

    It is so a moment after its start: one of its descriptors has O_ASYNC then (proc_pid_fdinfo(5)).
    """
    infos = (path.read_text() for path in Path(f"/proc/{pid}/fdinfo").iterdir())
    return any(int(info.split("flags:")[1].split()[0], 8) & os.O_ASYNC for info in infos)


def children(pid: int) -> list[int]:
    """Return the processes that a process with one thread has started, and that have not ended."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def eventually(what: Callable[[], object], why: str, timeout: float = 30, pause: float = 0.05) -> None:
    """Wait until ``what()`` is true, or fail saying ``why``."""
    until = time.monotonic() + timeout
    while not what():
        if time.monotonic() > until:
            raise AssertionError(f"not within {timeout} s: {why}")
        time.sleep(pause)
