"""Running another program: bounded in time, its input and output whole."""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from typing import IO, NamedTuple

# libvirtd hands its hooks a PATH of its own; sbin is not in everybody's.
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}

_until: float | None = None
"""When everything that this process does has to be over, by time.monotonic()."""


def limit(seconds: float) -> None:
    """Let all programs and waits of this process be over within ``seconds`` from now."""
    global _until  # noqa: PLW0603 - a deadline is that of the whole process
    _until = time.monotonic() + seconds


def left(seconds: float) -> float:
    """Return how long one may wait where ``seconds`` would be right, in seconds."""
    return seconds if _until is None else max(0.0, min(seconds, _until - time.monotonic()))


held: set[int] = set()
"""File descriptors that every program keeps open. A lock that is here outlives our own sudden
death for as long as the program we started is still at work."""


class Result(NamedTuple):
    """What a program left behind; ``status`` is 127 where it does not exist, 124 where it hung."""

    status: int
    stdout: str
    stderr: str


def run(argv: Sequence[str], stdin: str = "", timeout: float = 10.0) -> Result:
    """Run ``argv`` and return what came of it. ``timeout`` is in seconds. Raises nothing."""
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
    """Give a file with all of ``text``: from a pipe, a program could take half of it for everything."""
    with open(os.memfd_create("stdin"), "w+b") as file:
        file.write(text.encode("utf-8", "replace"))
        file.seek(0)
        yield file


def _environment() -> dict[str, str]:
    # A PATH that was set on purpose comes first, so that a test can put its own nft there.
    path = os.environ.get("PATH")
    return ENVIRONMENT | ({"PATH": f"{path}:{ENVIRONMENT['PATH']}"} if path else {})
