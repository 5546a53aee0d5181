#!/usr/bin/python3
"""What the service costs, as ratios within one run: prints a table, and JSON with --json.

    sudo ./tests/bench/service.py [--json] [--runs N]

restore   from the table's deletion until it is back, against nft -f of the same text
idle      processor time of the idle service in a minute, against that of one interpreter that does nothing
removed   ten guests' starts while the run directory is removed again and again, against ten without that

Everything happens in a network namespace and a run directory that are gone afterwards.
"""

import os
import resource
import shutil
import statistics
import sys
import threading
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPO / "lib"), str(REPO / "tests")]

from bench import hooks  # noqa: E402
from virt_forward.state.store import Store  # noqa: E402

GUESTS = 100
IDLE_SECONDS = 6


def restore(runs: int) -> float:
    """Return the cost of a restored table against a load of the include file."""
    include = Store().include_path

    def once() -> float:
        time.sleep(0.3)  # the service rests a while after it has restored the table
        return hooks.restored() / hooks.seconds(["nft", "-f", include])

    once()
    return statistics.median(once() for _ in range(runs))


def used(pid: int) -> float:
    """Return the processor seconds of a process (proc_pid_stat(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def interpreter() -> float:
    """Return the processor seconds of an interpreter that does nothing."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for _ in range(10):
        hooks.seconds(hooks.NOTHING)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / 10


def idle(pid: int) -> float:
    """Return the processor time of a minute of the idle service, in interpreters."""
    time.sleep(8)  # what followed the last change is over
    before = used(pid)
    time.sleep(IDLE_SECONDS)
    return (used(pid) - before) * 60 / IDLE_SECONDS / interpreter()


def removed(runs: int) -> float:
    """Return the cost of starts while the run directory is removed, against starts where it stays."""

    def starts(every: float) -> float:
        over = threading.Event()
        remover = threading.Thread(target=keep_removing, args=(over, every))
        remover.start()
        try:
            return sum(hooks.start() for _ in range(10))
        finally:
            over.set()
            remover.join()

    return statistics.median(starts(0.1) / starts(1000) for _ in range(runs))


def keep_removing(over: threading.Event, every: float) -> None:
    """Remove the run directory each ``every`` seconds, until it is over."""
    while not over.wait(every):
        shutil.rmtree(Store().path, ignore_errors=True)


def measure(runs: int) -> dict[str, float]:
    """Return every figure by its name."""
    hooks.fill(GUESTS)
    with hooks.service() as pid:
        found = {"restore": restore(runs), "idle": idle(pid)}
    return found | {"removed": removed(max(runs // 3, 1))}


if __name__ == "__main__":
    sys.exit(hooks.report("the service costs", "runs", measure))
