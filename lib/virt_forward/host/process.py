"""Running other programs, with a time limit and complete input and output.

By posix_spawn(3): to import subprocess takes longer than a program that a hook starts.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import time
from collections.abc import Callable, Iterator, Sequence

from virt_forward.namedtuple import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Protocol

    class Watch(Protocol):
        """Knows before the end of a program that it has done its work, with exit status 0 and no output."""

        def fileno(self) -> int:
            """Return the descriptor that is readable when to ask ``is_done``. The program inherits it."""

        def is_done(self, pid: int) -> bool:
            """Tell whether the program is done. Raises OSError where it cannot know any more."""


# libvirtd passes its own PATH to hooks, and a user's PATH may lack sbin.
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}

SIGKILL = 9
"""signal(7). The module signal would be imported for this number alone."""

KILL_SECONDS = 1.0
"""How long to wait for a program that was killed: one that the kernel does not let go is left to itself."""

_until: float | None = None
"""The deadline of this process on the monotonic clock; None without one."""


def limit(seconds: float) -> None:
    """Set the deadline of all programs and waits of this process to ``seconds`` from now."""
    global _until  # noqa: PLW0603 - a deadline is that of the whole process
    _until = time.monotonic() + seconds


def left(seconds: float) -> float:
    """Return ``seconds``, or the time left until the deadline if that is less."""
    return seconds if _until is None else max(0.0, min(seconds, _until - time.monotonic()))


@contextlib.contextmanager
def half_of_time_left() -> Iterator[None]:
    """Keep the other half of the time until the deadline, if there is one, for what follows."""
    global _until  # noqa: PLW0603 - as in limit()
    until = _until
    if until is not None:
        limit(max(0.0, until - time.monotonic()) / 2)
    try:
        yield
    finally:
        _until = until


_is_wanted: Callable[[], bool] | None = None
"""Tells whether this process's work is still wanted; None where it always is."""


def work_for(is_wanted: Callable[[], bool]) -> None:
    """Have :func:`end_if_unwanted` end this process once ``is_wanted`` returns False."""
    global _is_wanted  # noqa: PLW0603 - as the deadline
    _is_wanted = is_wanted


def end_if_unwanted() -> None:
    """End this process, as if it was killed, if the work it was asked for is not wanted any more.

    Called before anything is changed: the work may have been done elsewhere since, and other work after it.
    """
    if _is_wanted and not _is_wanted():
        os._exit(0)


inherited: set[int] = set()
"""File descriptors that programs inherit: if this process is killed, a lock is held until the
program it has started has ended as well."""


_stuck: list[int] = []
"""Programs that did not end when they were killed."""


def release(fd: int) -> None:
    """Close a descriptor in ``inherited``; unlock its file even if a program that was given up has it."""
    inherited.discard(fd)
    if not any(os.path.exists(f"/proc/{pid}") for pid in _stuck):
        fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)


class Result(NamedTuple):
    """The exit status and output of a program.

    ``status`` is 127 if the program cannot be started, and 124 after a timeout, as by timeout(1).
    It is negative if the program was ended by a signal.
    """

    status: int
    stdout: str
    stderr: str


_done: list[int] = []
"""Processes that were not waited for until their end."""


def run(argv: Sequence[str], stdin: str = "", timeout: float = 10.0, watch: Watch | None = None) -> Result:
    """Run ``argv`` and return the result. ``timeout`` is in seconds. Raises nothing.

    The program is killed with all that it has started after the timeout, and when this process ends.
    With ``watch``, it is also when its work is done.
    """
    timeout = left(timeout)
    fds: list[int] = []
    try:
        # Files and not pipes: if we were killed, a program would take half of its input for all.
        for name in ("stdin", "stdout", "stderr"):
            fds.append(os.memfd_create(name))
        with open(fds[0], "wb", closefd=False) as file:
            file.write(stdin.encode("utf-8", "replace"))
        os.lseek(fds[0], 0, os.SEEK_SET)
        status = _status(argv, fds, timeout, watch)
        if status is None:
            return Result(124, "", f"{argv[0]} did not finish within {timeout:.2g} seconds")
        return Result(status, _text(fds[1]), _text(fds[2]))
    except OSError as error:
        return Result(127, "", f"{argv[0]}: {error.strerror}")
    finally:
        for fd in fds:
            os.close(fd)


def _text(fd: int) -> str:
    os.lseek(fd, 0, os.SEEK_SET)
    with open(fd, "rb", closefd=False) as file:
        return file.read().decode("utf-8", "replace")


def _status(argv: Sequence[str], fds: Sequence[int], timeout: float, watch: Watch | None) -> int | None:
    """Run a program on three open files and return its exit status; None after the timeout."""
    environment = _environment()
    lifeline, ours = os.pipe()
    try:
        # A descriptor that is duplicated to its own number is inherited.
        kept = (*inherited, lifeline, *((watch.fileno(),) if watch else ()))
        places = [*enumerate(fds), *((fd, fd) for fd in kept)]
        pid = os.posix_spawn(
            _path(argv[0], environment["PATH"]),
            list(argv),
            environment,
            file_actions=[(os.POSIX_SPAWN_DUP2, fd, place) for place, fd in places],
            setpgroup=0,
        )
        _end_with(lifeline, pid)
        return _wait(pid, timeout, watch)
    finally:
        os.close(ours)
        os.close(lifeline)


def _end_with(pipe: int, group: int) -> None:
    """Have the kernel kill a process group when all ends for writing to ``pipe`` are closed.

    With this process ends its own one: a program that outlived us would have no deadline, and our
    lock. By signal-driven input, see fcntl(2); prctl(2) cannot be called from here.
    """
    fcntl.fcntl(pipe, fcntl.F_SETOWN, -group)
    fcntl.fcntl(pipe, fcntl.F_SETSIG, SIGKILL)
    fcntl.fcntl(pipe, fcntl.F_SETFL, os.O_ASYNC)


def _wait(pid: int, timeout: float, watch: Watch | None) -> int | None:
    """Return the exit status of a process, 0 as soon as its work is done, or None after the timeout."""
    _reap()
    pidfd = os.pidfd_open(pid)
    try:
        if _is_done(pid, pidfd, timeout, watch):
            _done.append(pid)
            return 0
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        os.killpg(pid, SIGKILL)
        if not _ended(pidfd, KILL_SECONDS):
            _stuck.append(pid)
        _done.append(pid)
        return None
    finally:
        os.close(pidfd)


def _is_done(pid: int, pidfd: int, timeout: float, watch: Watch | None) -> bool:
    """Wait until a process has ended, or for ``timeout`` seconds; return True if its work is done before."""
    until = time.monotonic() + timeout
    while watch:
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        poller.register(watch.fileno(), select.POLLIN)
        ready = {fd for fd, _ in poller.poll(max(until - time.monotonic(), 0) * 1000)}
        if pidfd in ready or not ready:
            return False
        try:
            if watch.is_done(pid):
                return True
        except OSError:
            watch = None
    _ended(pidfd, until - time.monotonic())
    return False


def _ended(pidfd: int, seconds: float) -> bool:
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(max(seconds, 0) * 1000))


def _reap() -> None:
    """Forget the processes that were done or killed, and have ended since."""
    _done[:] = [pid for pid in _done if not _reaped(pid)]


def finish(seconds: float = KILL_SECONDS) -> bool:
    """Wait for the programs that were not waited for until their end; return whether all have ended."""
    until = time.monotonic() + seconds
    for pid in _done:
        pidfd = os.pidfd_open(pid)
        try:
            _ended(pidfd, until - time.monotonic())
        finally:
            os.close(pidfd)
    _reap()
    return not _done


def _reaped(pid: int) -> bool:
    try:
        return bool(os.waitpid(pid, os.WNOHANG)[0])
    except ChildProcessError:  # of the process that this one is a fork of
        return True


def _path(program: str, path: str) -> str:
    """Return the path of a program; one that is not found fails as it is started."""
    if "/" in program:
        return program
    candidates = (f"{directory}/{program}" for directory in path.split(":") if directory)
    return next((found for found in candidates if os.access(found, os.X_OK)), f"/usr/bin/{program}")


def _environment() -> dict[str, str]:
    # The PATH of the environment comes first, so that a test can replace nft.
    path = os.environ.get("PATH")
    return ENVIRONMENT | ({"PATH": f"{path}:{ENVIRONMENT['PATH']}"} if path else {})
