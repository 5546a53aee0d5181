"""Running other programs, with a time limit and complete input and output."""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from typing import IO, NamedTuple

# libvirtd passes its own PATH to hooks, and a user's PATH may lack sbin.
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}

_until: float | None = None
"""The deadline of this process on the monotonic clock; None without one."""


def limit(seconds: float) -> None:
    """Set the deadline of all programs and waits of this process to ``seconds`` from now."""
    global _until  # noqa: PLW0603 - a deadline is that of the whole process
    _until = time.monotonic() + seconds


def left(seconds: float) -> float:
    """Return ``seconds``, or the time left until the deadline if that is less."""
    return seconds if _until is None else max(0.0, min(seconds, _until - time.monotonic()))


held: set[int] = set()
"""File descriptors that programs inherit: if this process is killed, a lock is held until the
program it has started ends as well."""


class Result(NamedTuple):
    """The exit status and output of a program.

    ``status`` is 127 if the program cannot be started, and 124 after a timeout, as by timeout(1).
    """

    status: int
    stdout: str
    stderr: str


def run(argv: Sequence[str], stdin: str = "", timeout: float = 10.0) -> Result:
    """Run ``argv`` and return the result. ``timeout`` is in seconds. Raises nothing."""
    timeout = left(timeout)
    try:
        with _whole(stdin) as file:
            done = subprocess.run(
                argv,
                stdin=file,
                capture_output=True,
                text=True,
                timeout=timeout,
                env=_environment(),
                check=False,
                encoding="utf-8",
                errors="replace",
                pass_fds=held,
            )
    except subprocess.TimeoutExpired:
        return Result(124, "", f"{argv[0]} did not finish within {timeout:.2g} seconds")
    except OSError as error:
        return Result(127, "", f"{argv[0]}: {error.strerror}")
    return Result(done.returncode, done.stdout, done.stderr)


@contextlib.contextmanager
def _whole(text: str) -> Iterator[IO[bytes]]:
    """Return a file with ``text``: if we were killed, a program would take half of it in a pipe for all."""
    with open(os.memfd_create("stdin"), "w+b") as file:
        file.write(text.encode("utf-8", "replace"))
        file.seek(0)
        yield file


def _environment() -> dict[str, str]:
    # The PATH of the environment comes first, so that a test can replace nft.
    path = os.environ.get("PATH")
    return ENVIRONMENT | ({"PATH": f"{path}:{ENVIRONMENT['PATH']}"} if path else {})
