"""Running another program: bounded in time, its input and output whole."""

import os
import subprocess
from collections.abc import Sequence
from typing import NamedTuple

# libvirtd hands its hooks a PATH of its own; sbin is not in everybody's.
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}


class Result(NamedTuple):
    """What a program left behind; ``status`` is 127 where it does not exist, 124 where it hung."""

    status: int
    stdout: str
    stderr: str


def run(argv: Sequence[str], stdin: str = "", timeout: float = 10.0) -> Result:
    """Run ``argv`` and return what came of it. ``timeout`` is in seconds. Raises nothing."""
    try:
        done = subprocess.run(
            argv,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            env=_environment(),
            check=False,
            encoding="utf-8",
            errors="replace",
        )
    except subprocess.TimeoutExpired:
        return Result(124, "", f"{argv[0]} did not finish within {timeout:g} seconds")
    except OSError as error:
        return Result(127, "", f"{argv[0]}: {error.strerror}")
    return Result(done.returncode, done.stdout, done.stderr)


def _environment() -> dict[str, str]:
    # A PATH that was set on purpose comes first, so that a test can put its own nft there.
    path = os.environ.get("PATH")
    return ENVIRONMENT | ({"PATH": f"{path}:{ENVIRONMENT['PATH']}"} if path else {})
