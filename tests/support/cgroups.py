"""Control groups of ours: systemd-nspawn makes some below the one it is started in, and leaves them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from support.proc import eventually


def here() -> Iterator[Path]:
    """Find the group we are in, in each hierarchy systemd uses: unified, and its own of version 1."""
    own = Path("/proc/self/cgroup").read_text().splitlines()
    for mount in Path("/proc/self/mounts").read_text().splitlines():
        _, top, kind, options, *_ = mount.split()
        if kind == "cgroup2" or (kind == "cgroup" and "name=systemd" in options.split(",")):
            mark = "0::" if kind == "cgroup2" else ":name=systemd:"
            yield from (Path(top, line.partition(mark)[2].lstrip("/")) for line in own if mark in line)


def named(name: str) -> list[Path]:
    return [parent / name for parent in here()]


def remove(name: str) -> None:
    """Remove a group with all below it; the kernel needs a moment after the last process."""
    tops = named(name)
    eventually(lambda: all(_removed(top) for top in tops), f"control groups {name} are empty")


def _removed(top: Path) -> bool:
    for path in sorted(top.glob("**/"), reverse=True):
        with contextlib.suppress(OSError):
            path.rmdir()
    return not top.exists()
