"""What is fetched once and kept between runs: the guest's kernel and initramfs, Debian root file systems."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

TOP = Path(os.environ.get("VIRT_FORWARD_TEST_CACHE", "/var/cache/virt-forward-tests"))


@contextlib.contextmanager
def _alone(name: str) -> Iterator[None]:
    """Let one of several test runs build a thing while the others wait for it."""
    TOP.mkdir(parents=True, exist_ok=True)
    with (TOP / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def kept(name: str, build: Callable[[Path], None], what: str) -> Path:
    """Return the cache's directory ``name``, built first if need be; it is there whole or not at all."""
    path = TOP / name
    if path.is_dir():
        return path
    with _alone(name):
        if not path.is_dir():
            _build(path, build, what)
    return path


def _build(path: Path, build: Callable[[Path], None], what: str) -> None:
    draft, started = path.with_name(f".{path.name}.draft"), time.monotonic()
    print(f"   {what} …", file=sys.stderr, flush=True)
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        build(draft)
        draft.rename(path)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    print(f"   {what}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
