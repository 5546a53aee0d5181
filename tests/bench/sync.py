#!/usr/bin/python3
"""What a sync of 1,000 guests with 10 forwards each takes: processor time of each part, in milliseconds.

    sudo ./tests/bench/sync.py [--json] [--runs N]

XML         libvirt's XML to values
addresses   finding addresses, and what the host has against forwards; reading what was known of the guests
conflicts   who may have which port
text        the rules as text, for the include file and for nft
state       writing the state
listing     asking the kernel for the names in the table
own         all of these, and the rest of ours
nft         nft and the kernel, which have the table already
include     the same for nft -f of the include file, to compare
nft_MiB, include_MiB
            the memory that nft takes in both
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from typing import Any

REPO = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPO / "lib"), str(REPO / "tests")]

from bench import hooks, running_guests, size  # noqa: E402
from virt_forward.host import nft  # noqa: E402
from virt_forward.reconcile import plan, planning, resync  # noqa: E402
from virt_forward.ruleset import table  # noqa: E402
from virt_forward.state.snapshot import Snapshot  # noqa: E402
from virt_forward.state.store import Store  # noqa: E402

GUESTS = 1000
PARTS: dict[str, list[tuple[Any, str]]] = {
    "XML": [(resync, "parse_domain")],
    "addresses": [(planning, "located")],
    "conflicts": [(plan, "make"), (plan, "without_clashes")],
    "text": [(table, name) for name in ("whole", "text", "rebuild", "replacement")],
    "state": [(Snapshot, "commit"), (Store, "mark")],
    "listing": [(nft, "parts")],
}


def measure(runs: int) -> dict[str, float]:
    """Return the medians."""
    size.make_bridge()
    os.environ[running_guests.COUNT] = str(GUESTS)
    sys.modules["libvirt"] = running_guests
    in_child(synced)
    found = [{**in_child(synced), **in_child(loaded)} for _ in range(runs)]
    return {name: statistics.median(each[name] for each in found) for name in found[0]}


def in_child(call: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Call in a process of its own, so that time and memory of programs are those of one run."""
    reading, writing = os.pipe()
    if not os.fork():
        with open(writing, "w", encoding="ascii") as file:
            json.dump(call(), file)
        os._exit(0)
    os.close(writing)
    with open(reading, encoding="ascii") as file:
        found: dict[str, float] = json.load(file)
    os.wait()
    return found


def synced() -> dict[str, float]:
    """Sync as the command does, and return what each part of it takes."""
    spent = dict.fromkeys((*PARTS, "own"), 0.0)
    for part, places in PARTS.items():
        for owner, name in places:
            setattr(owner, name, timed(getattr(owner, name), spent, part))
    gc.disable()  # as the command does
    timed(resync.sync, spent, "own")()
    return spent | programs("nft")


def loaded() -> dict[str, float]:
    """Load the include file, and return what that takes."""
    subprocess.run(["nft", "-f", Store().include_path], check=True)
    return programs("include")


def programs(name: str) -> dict[str, float]:
    """Return the processor time of the programs that this process has run, and the memory of the largest."""
    used = getrusage(RUSAGE_CHILDREN)
    return {name: (used.ru_utime + used.ru_stime) * 1000, f"{name}_MiB": used.ru_maxrss / 1024}


def timed(function: Callable[..., Any], spent: dict[str, float], part: str) -> Callable[..., Any]:
    """Return a function that also adds its processor time to that of a part."""

    def run(*args: Any, **named: Any) -> Any:
        began = time.process_time()
        try:
            return function(*args, **named)
        finally:
            spent[part] += (time.process_time() - began) * 1000

    return run


def main() -> int:
    """Measure and print, as the command line asks; return the exit status."""
    options = hooks.parser("What a sync of 1,000 guests takes, in milliseconds and MiB.", "runs").parse_args()
    if os.geteuid() != 0:
        print("sync.py: this needs root, for a network namespace", file=sys.stderr)
        return 1
    with hooks.nowhere():
        found = measure(options.runs)
    print(json.dumps(found) if options.json else "\n".join(f"{n:12} {ms:6.0f}" for n, ms in found.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
