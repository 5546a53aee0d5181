"""A hook run in a process of its own whose steps can be counted, and each made the last or a failing one."""

from __future__ import annotations

import _sqlite3
import builtins
import ctypes
import fcntl
import functools
import io
import os
import select
import signal
import sqlite3
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from virt_forward.host import conntrack, log, netlink

CLONE_NEWNET = 0x40000000
STEP_COUNT, REASONS = "steps", "reasons"
CREATES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
MADE_TO_FAIL = ("/bin/sh", ("sh", "-c", "echo made to fail >&2; exit 1"))
Break = Callable[[str], Any]
"""What happens in environment of a step; it gets the step's name and raises, returns or never comes back."""


def killed(_step: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def refused(errno: int) -> Break:
    """Make a step fail as the kernel would say it; a program exits with 1."""

    def fail(step: str) -> Any:
        if step.startswith("run "):
            return MADE_TO_FAIL
        if step.startswith("sql "):
            # What SQLite says then does not depend on the statement.
            failed = sqlite3.OperationalError("made to fail")
            failed.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise failed
        raise OSError(errno, os.strerror(errno), step)

    return fail


def missing(step: str) -> Any:
    """Let a program not be there; files are not affected."""
    if step.startswith("run "):
        raise FileNotFoundError(2, os.strerror(2), step)
    raise AssertionError(f"{step} is no program")


@dataclass
class Steps:
    """Counts what has an effect outside the process; the ``last``, or each that ``which`` names, breaks."""

    last: int = 0
    which: Callable[[str], bool] = lambda _: True
    how: Break = killed
    forever: bool = False
    names: list[str] = field(default_factory=list)
    sink: int = -1

    def step(self, name: str, real: Callable[[], Any]) -> Any:
        if self.which(name):
            self.names.append(name)
            os.write(self.sink, f"{name}\n".encode())
            if self.last and (len(self.names) == self.last or (self.forever and len(self.names) > self.last)):
                return self.how(name)
        return real()

    def install(self, sink: Path) -> None:
        """Wrap every way in which the package reaches out of its process; for a process that ends soon."""
        self.sink = os.open(sink, os.O_WRONLY | os.O_CREAT, 0o600)
        self._wrap_os()
        really_open, really_spawn, really_lock = builtins.open, os.posix_spawn, fcntl.flock

        def counted_open(file: Any, mode: str = "r", *args: Any, **more: Any) -> Any:
            if isinstance(file, int) or "r" in mode:
                return really_open(file, mode, *args, **more)
            return self.step(f"write {file}", lambda: really_open(file, mode, *args, **more))

        def counted_spawn(path: Any, argv: Any, *args: Any, **more: Any) -> int:
            program = self.step(f"run {argv[0]}", lambda: (path, argv))
            return really_spawn(*program, *args, **more)

        counted_connect = functools.partial(sqlite3.connect, factory=_counted_connection(self))
        _sqlite3.connect = counted_connect  # type: ignore[assignment]
        self._wrap_connections()
        builtins.open = counted_open
        os.posix_spawn = counted_spawn
        fcntl.flock = lambda fd, how: self.step("lock", lambda: really_lock(fd, how))

    def _wrap_connections(self) -> None:
        really_dump, really_send = netlink.dump, netlink.send

        def counted_dump(protocol: int, kind: int, request: bytes) -> Any:
            if protocol != netlink.NETLINK_NETFILTER:
                return really_dump(protocol, kind, request)
            what = "connections" if kind == conntrack.CT_GET else "table"
            return self.step(f"list {what}", lambda: really_dump(protocol, kind, request))

        netlink.dump = counted_dump
        netlink.send = lambda *args: self.step("delete connections", lambda: really_send(*args))

    def _wrap_os(self) -> None:
        def wrap(name: str) -> None:
            real = getattr(os, name)
            setattr(os, name, lambda path, *a, **b: self.step(f"{name} {path}", lambda: real(path, *a, **b)))

        for name in ("rename", "unlink", "makedirs"):
            wrap(name)
        really = os.open

        def counted(path: Any, flags: int, *args: Any, **more: Any) -> int:
            if not flags & CREATES:
                return really(path, flags, *args, **more)
            return int(self.step(f"open {path}", lambda: really(path, flags, *args, **more)))

        os.open = counted


def _counted_connection(steps: Steps) -> type[sqlite3.Connection]:
    """Return a connection whose transactions are steps: their beginning, and their commit.

    A process that is killed between two statements is as one that had not begun; tests/unit/test_store.py
    kills it within the commit.
    """

    class Connection(sqlite3.Connection):
        def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
            word = statement.split(None, 1)[0]
            if word not in ("BEGIN", "COMMIT"):
                return super().execute(statement, *values)
            real = super().execute
            done = steps.step(f"sql {word}", lambda: real(statement, *values))
            return done if isinstance(done, sqlite3.Cursor) else real("SELECT 0")

    return Connection


@dataclass(frozen=True)
class Outcome:
    """What came of one run: ``status`` is negative for a signal."""

    status: int
    out: str
    err: str
    reasons: str
    steps: tuple[str, ...]

    @property
    def died(self) -> bool:
        return self.status < 0


@dataclass(frozen=True)
class Environment:
    """Where a child process runs: a network namespace, an environment, a directory for what it says."""

    namespace: Path
    env: Mapping[str, str]
    scratch: Path


def apart(environment: Environment, call: Callable[[], int], steps: Steps, *, timeout: float = 30) -> Outcome:
    """Call in a child process inside a network namespace, and return what came of it."""
    files = {name: environment.scratch / name for name in ("out", "err", REASONS, STEP_COUNT)}
    for path in files.values():
        path.unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        _child(environment, files, call, steps)
    status = _wait(pid, timeout)
    texts = {name: path.read_text() if path.exists() else "" for name, path in files.items()}
    return Outcome(status, texts["out"], texts["err"], texts[REASONS], tuple(texts[STEP_COUNT].splitlines()))


def _wait(pid: int, timeout: float) -> int:
    ended = os.pidfd_open(pid)
    try:
        late = not select.select([ended], [], [], timeout)[0]
        if late:
            os.kill(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        os.close(ended)
    assert not late, f"not done after {timeout} s"
    return status


def _child(
    environment: Environment, files: Mapping[str, Path], call: Callable[[], int], steps: Steps
) -> None:
    status = 99
    try:
        _enter(environment, files)
        steps.install(files[STEP_COUNT])
        status = call()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _enter(environment: Environment, files: Mapping[str, Path]) -> None:
    with environment.namespace.open() as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
    os.environ.clear()
    os.environ.update(environment.env)
    for fd, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(files[name], os.O_WRONLY | os.O_CREAT, 0o600), fd)
    sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(fd, "w"), write_through=True) for fd in (1, 2))
    reasons = os.open(files[REASONS], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    log._log = lambda _priority, message: os.write(reasons, f"{message}\n".encode())  # type: ignore[assignment]
