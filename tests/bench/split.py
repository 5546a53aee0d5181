#!/usr/bin/python3
"""What the time of a hook is spent on: milliseconds of each event of a guest's cycle, and each part's share.

    sudo ./tests/bench/split.py [--beside N] [--json] [--runs N]

interpreter  Python until the first line of the hook, and from the last one to the end of the process
imports      modules, ours and others
parsing      libvirt's XML to values
lock         waiting for the run directory
state        reading and writing the state
include      reading and writing the include file
nft, ip      the programs
conntrack    reading the tracked connections, and ending some
rest         all else: what is planned and rendered

prepare, start, started, stopped, release   the events, each with these parts

The guest and the N others (1) have 10 forwards each. The events run without the service, each part's
time without that of others within it. The medians of the parts are given, so they do not add up exactly.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import hooks, size

PARTS = ("interpreter", "imports", "parsing", "lock", "state", "include", "nft", "conntrack", "ip", "rest")
PROGRAM = """
import time
began = time.monotonic()
import os, sys
spawned, lib = float(sys.argv[1]), sys.argv[2]
del sys.argv[:3]
sys.path.insert(0, lib)
spent, stack, marked = {}, ["rest"], began

def account(part):
    global marked
    now = time.monotonic()
    spent[part] = spent.get(part, 0) + now - marked
    marked = now

def timed(part, function):
    def run(*args, **named):
        account(stack[-1])
        stack.append(part(args) if callable(part) else part)
        try:
            return function(*args, **named)
        finally:
            account(stack.pop())
    return run

def wrap(owner, name, part):
    setattr(owner, name, timed(part, getattr(owner, name)))

import builtins
wrap(builtins, "__import__", "imports")
data = sys.stdin.buffer.read()
from virt_forward.hooks.prefilter import concerns_us
if concerns_us(sys.argv, data):
    import gc
    gc.disable()
    from virt_forward.hooks import dispatch
    from virt_forward.host import conntrack, process
    if sys.argv[1] in ("prepare", "started"):
        from virt_forward.metadata import domain
        wrap(domain, "parse_domain", "parsing")
    from virt_forward.state import database, include, snapshot, store
    for module in [found for name, found in sys.modules.items() if name.startswith("virt_forward.host")]:
        if getattr(module, "run", None) is process.run and module is not process:
            wrap(module, "run", lambda args: args[0][0])
    wrap(conntrack, "end_flows", "conntrack")
    wrap(store, "wait_for_lock", "lock")
    for name in ("connect", "create"):
        wrap(database, name, "state")
    for name in ("_all", "_one", "commit", "fill", "queue", "set_effects", "close"):
        wrap(snapshot.Snapshot, name, "state")
    for name in ("read", "stage", "publish"):
        wrap(include.IncludeFile, name, "include")
    dispatch.main("qemu", sys.argv, data)
account("rest")
import json
print(json.dumps({**spent, "interpreter": began - spawned, "end": time.monotonic()}))
sys.stdout.flush()
os._exit(0)
"""


def split(operation: str, sub_operation: str, xml: bytes) -> dict[str, float]:
    """Return the milliseconds of each part of an event, and of all of it."""
    library = str(hooks.REPO / "lib")
    words = ["bench", operation, sub_operation, "-"]
    spawned = time.monotonic()
    argv = ["/usr/bin/python3", "-IS", "-c", PROGRAM, str(spawned), library, *words]
    done = subprocess.run(argv, input=xml, check=True, stdout=subprocess.PIPE)
    ended = time.monotonic()
    found = json.loads(done.stdout)
    found["interpreter"] += ended - found.pop("end")
    found["all"] = sum(found.values())
    return {name: took * 1000 for name, took in found.items()}


def measure(runs: int, beside: int) -> dict[str, dict[str, float]]:
    """Return the medians of each part, by operation, beside so many other guests."""
    # 10,000 guests have ports up to 51023.
    xml = hooks.domain_xml(first=60000)
    size.make_bridge()
    size.synced(beside)
    found: dict[str, list[dict[str, float]]] = {operation: [] for operation, _ in hooks.CYCLE}
    for _ in range(runs + 1):
        for operation, sub_operation in hooks.CYCLE:
            found[operation].append(split(operation, sub_operation, xml))
    return {
        operation: {
            part: statistics.median(one.get(part, 0.0) for one in each[1:]) for part in (*PARTS, "all")
        }
        for operation, each in found.items()
    }


def main() -> int:
    """Measure and print, as the command line asks; return the exit status."""
    parser = hooks.parser("What the time of a hook is spent on, in milliseconds.", "runs of each event")
    parser.add_argument("--beside", type=int, default=1, metavar="N", help="guests that run already (1)")
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("split.py: this needs root, for a network namespace", file=sys.stderr)
        return 1
    with hooks.nowhere():
        found = measure(options.runs, options.beside)
    if options.json:
        print(json.dumps(found))
        return 0
    print(f"{'':12}" + "".join(f"{operation:>10}" for operation in found))
    for part in (*PARTS, "all"):
        print(f"{part:12}" + "".join(f"{each[part]:10.1f}" for each in found.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
