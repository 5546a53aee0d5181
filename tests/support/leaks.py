"""What a test may leave behind, and did not have to: namespaces, processes, tables, mounts, files.

Only what is certainly ours counts, so that two runs on one machine do not accuse each other.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from support import cgroups
from support.netns import PREFIX
from support.proc import run

PR_SET_CHILD_SUBREAPER = 36
WATCHED = (Path("/etc/virt-forward"), Path("/etc/libvirt/hooks"), Path("/run/virt-forward"))
Traces = frozenset[str]


def adopt_orphans() -> None:
    """Make daemons that detach from a test our children, so that none gets away unseen."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def traces() -> Traces:
    """Return what stands there now, each thing in words a person can act on."""
    _reap_orphans()
    return frozenset((*_namespaces(), *_processes(), *_threads(), *_mounts(), *_tables(), *_files()))


def leaked_since(before: Traces, patience: float = 20) -> list[str]:
    """Return what came since; what is just ending gets a moment to do so."""
    until = time.monotonic() + patience
    while (left := traces() - before) and time.monotonic() < until:
        time.sleep(0.05)
    return sorted(left)


def _namespaces() -> Iterator[str]:
    for path in Path("/run/netns").glob(f"{PREFIX}*"):
        yield f"network namespace {path.name}"


def _processes() -> Iterator[str]:
    for pid in _children():
        state, words = _describe(pid)
        if state not in "ZX":
            yield f"process {pid}: {words}"


def _reap_orphans() -> None:
    """Wait for the nft of hooks, which end without: init would, and there are thousands in a whole run."""
    for pid in _children():
        with contextlib.suppress(FileNotFoundError, ChildProcessError):  # waited for by a thread of ours
            if Path(f"/proc/{pid}/stat").read_text().split()[1:3] == ["(nft)", "Z"]:
                os.waitpid(pid, os.WNOHANG)


def _children() -> Iterator[int]:
    for task in Path("/proc/self/task").iterdir():
        try:
            yield from map(int, (task / "children").read_text().split())
        except FileNotFoundError:
            continue


def _describe(pid: int) -> tuple[str, str]:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0], words
    except (FileNotFoundError, ProcessLookupError):
        return "X", ""


def _threads() -> Iterator[str]:
    for thread in threading.enumerate():
        if thread.name.startswith("server "):
            yield f"thread {thread.name}"


def _mounts() -> Iterator[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        target = line.split()[4]
        if PREFIX in target and not target.startswith("/run/netns/"):
            yield f"mount {target}"


def _tables() -> Iterator[str]:
    if os.geteuid() == 0 and Path("/usr/sbin/nft").exists():
        for line in run(["nft", "list", "tables"]).out.splitlines():
            if "virt-forward" in line:
                yield f"nft {line} in the machine's own namespace"


def _files() -> Iterator[str]:
    found = [group for parent in cgroups.here() for group in parent.glob(f"{PREFIX}*")]
    found += [*Path("/tmp").glob(f"{PREFIX}*"), *Path("/usr/local").glob("*/virt-forward*")]
    for top in WATCHED:
        found += [top, *top.rglob("*")] if top.exists() else []
    yield from (f"file {path}" for path in found)
