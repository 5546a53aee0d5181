"""A process in network namespaces of its own, which end with it."""

import contextlib
import ctypes
import os
import pickle
import select
import signal
import time
from collections.abc import Callable, Iterator
from typing import NoReturn, TypeVar

from virt_forward.errors import VirtForwardError

T = TypeVar("T")

CLONE_NEWNET = 0x40000000
PR_SET_PDEATHSIG = 1
"""linux/sched.h, linux/prctl.h."""


class NamespaceError(VirtForwardError):
    """Network namespaces cannot be made here, or what was done in them failed."""


def run_in_clone(work: Callable[[], T], timeout: float) -> T:
    """Return what ``work`` returns in a child process with two new network namespaces.

    The child is in the second one; ``outside`` enters the first. Both end with the child, which ends with
    this process, or after ``timeout`` seconds. Raises NamespaceError.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _child(work, writing)
    os.close(writing)
    try:
        with open(reading, "rb") as pipe:
            data = _read(pipe.fileno(), time.monotonic() + timeout)
    finally:
        # Its programs are in its process group.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if not data:
        raise NamespaceError(f"the copy of the host was not done within {timeout:.0f} seconds")
    result = pickle.loads(data)
    if isinstance(result, VirtForwardError):
        raise NamespaceError(result.messages)
    return result  # type: ignore[no-any-return]


def _read(descriptor: int, until: float) -> bytes:
    """Return all that is written to a pipe, or nothing if its end is not reached in time."""
    parts: list[bytes] = []
    while (left := until - time.monotonic()) > 0:
        if not select.select([descriptor], [], [], left)[0]:
            break
        part = os.read(descriptor, 1 << 16)
        if not part:
            return b"".join(parts)
        parts.append(part)
    return b""


_outside = -1
_inside = -1


def _child(work: Callable[[], object], writing: int) -> NoReturn:
    try:
        os.setpgid(0, 0)
        _libc("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        result = _enter_and(work)
        data = pickle.dumps(result)
        while data:
            data = data[os.write(writing, data) :]
    finally:
        # Neither handlers nor buffers of the parent run here.
        os._exit(0)


def _enter_and(work: Callable[[], object]) -> object:
    global _outside, _inside  # noqa: PLW0603 - the namespaces of a process are its own
    try:
        _libc("unshare", CLONE_NEWNET)
        _outside = os.open("/proc/self/ns/net", os.O_RDONLY)
        _libc("unshare", CLONE_NEWNET)
        _inside = os.open("/proc/self/ns/net", os.O_RDONLY)
        return work()
    except VirtForwardError as error:
        return NamespaceError(error.messages)
    except OSError as error:
        return NamespaceError(f"a network namespace cannot be made or wired here: {error.strerror}")
    except Exception as error:
        return NamespaceError(f"the copy of the host failed: {type(error).__name__}: {error}")


@contextlib.contextmanager
def outside() -> Iterator[str]:
    """Enter the namespace outside the clone; gives the path by which ip(8) finds it."""
    _libc("setns", _outside, CLONE_NEWNET)
    try:
        yield outside_path()
    finally:
        _libc("setns", _inside, CLONE_NEWNET)


def outside_path() -> str:
    """Return the path of the namespace outside the clone."""
    return f"/proc/{os.getpid()}/fd/{_outside}"


def _libc(name: str, *arguments: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, name)(*arguments) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
