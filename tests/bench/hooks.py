#!/usr/bin/python3
"""What the hooks cost, as ratios within one run: prints a table, and JSON with --json.

    sudo ./tests/bench/hooks.py [--json] [--runs N]

irrelevant   a guest without our metadata, against an interpreter that does nothing
port         a libvirt network's port of such a guest, likewise
cycle        prepare, start, started, stopped, release of a guest with 10 forwards, against five of those
service      the same while the service runs, and hooks hand their events over to it
crowd        one guest's start while 1,000 other guests have 10 forwards each, against one other guest
connections  a stop that ends 25,000 of 100,000 tracked connections, against conntrack -L of all of them
sync         making the table of those 1,000 guests anew, against nft -f of the same text

Everything happens in a network namespace and a run directory that are gone afterwards.
"""

import argparse
import ipaddress
import json
import os
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPO / "lib"), str(REPO / "tests")]

from virt_forward.config import Config  # noqa: E402
from virt_forward.host import netlink, nft  # noqa: E402
from virt_forward.model import Endpoint, Forward, Guest  # noqa: E402
from virt_forward.reconcile.apply import apply  # noqa: E402
from virt_forward.reconcile.plan import Plan  # noqa: E402
from virt_forward.reconcile.planning import context  # noqa: E402
from virt_forward.state.store import Store  # noqa: E402

TARGETS = {"irrelevant": 1.0, "port": 1.0, "cycle": 2.5, "service": 1.5} | {
    "crowd": 1.2,
    "connections": 2.0,
    "sync": 1.5,
}
NOTHING = ["/usr/bin/python3", "-I", "-c", "pass"]
PATIENCE = 20.0
LIMIT = 300
CYCLE = (
    ("prepare", "begin"),
    ("start", "begin"),
    ("started", "begin"),
    ("stopped", "end"),
    ("release", "end"),
)
XML = """<domain type='kvm'><name>bench</name><uuid>{uuid}</uuid><metadata>
<vf:forwards xmlns:vf="{namespace}"><vf:host ip="10.10.255.1"/>
<vf:portForward proto="tcp">{ranges}</vf:portForward></vf:forwards></metadata><devices>
<interface type='bridge'><mac address='52:54:00:00:00:01'/>
<source bridge='virbr0'/></interface></devices></domain>"""

PORT = b"""<hookData><network><name>bench</name><bridge name='virbr9'/></network><networkport>
<owner><name>other</name><uuid>be9c0000-0000-4000-8000-000000000002</uuid></owner>
<mac address='52:54:00:00:00:02'/><plug type='network' bridge='virbr9'/></networkport></hookData>"""


def domain_xml(namespace: str = "urn:virt-forward:1", first: int = 30000) -> bytes:
    """Return the XML of a guest with 10 forwards."""
    ranges = "".join(f'<vf:range start="{port}" to="{port - 1000}"/>' for port in range(first, first + 10))
    uuid = "be9c0000-0000-4000-8000-000000000001"
    return XML.format(uuid=uuid, namespace=namespace, ranges=ranges).encode()


def seconds(argv: list[str], stdin: bytes = b"") -> float:
    """Run a program and return how long it took; exit with its message where it fails or does not end."""
    with tempfile.TemporaryFile() as errors:
        # With a time limit, subprocess looks for the end of the program in growing intervals of up to 50 ms.
        signal.signal(signal.SIGALRM, lambda *_: sys.exit(f"{argv}: has not ended within {LIMIT} seconds"))
        signal.alarm(LIMIT)
        before = time.perf_counter()
        done = subprocess.run(argv, input=stdin, check=False, stdout=subprocess.DEVNULL, stderr=errors)
        took = time.perf_counter() - before
        signal.alarm(0)
        if done.returncode:
            errors.seek(0)
            sys.exit(f"{argv}: exit status {done.returncode}: {errors.read().decode(errors='replace')}")
    return took


def hook(operation: str, sub_operation: str, xml: bytes, driver: str = "qemu") -> float:
    """Run a hook as libvirt does and return how long it took."""
    return seconds([str(REPO / "hooks" / driver), "bench", operation, sub_operation, "-"], xml)


def ratio(one: Callable[[], float], other: Callable[[], float], runs: int) -> float:
    """Return the median of the ratios of pairs, run in turn."""
    one(), other()
    return statistics.median(one() / other() for _ in range(runs))


def others(count: int) -> Iterator[Guest]:
    """Yield running guests with 10 forwards each."""
    first = ipaddress.IPv4Address("10.10.0.1")
    for number in range(count):
        uuid = f"00000000-0000-4000-8000-{number:012x}"
        forwards = tuple(
            Forward("tcp", port, port, 80) for port in range(1000 + number * 10, 1010 + number * 10)
        )
        yield Guest(
            uuid, f"g{number}", forwards=forwards, endpoints=(Endpoint(first + number, "virbr0", ""),)
        )


def fill(count: int) -> None:
    """Make the state and the table of ``count`` guests."""
    keep(others(count))


def keep(guests: Iterable[Guest]) -> None:
    """Make the state and the table of some guests, and of no others."""
    store = Store()
    with store.open() as state:
        known: dict[str, Guest | None] = {**state.guests()}
        made: dict[str, Guest | None] = {guest.uuid: guest for guest in guests}
        before = {uuid: known.get(uuid) for uuid in {*known, *made}}
        plan = Plan(before, {**dict.fromkeys(known), **made}, frozenset(before))
        apply(context(store, state, Config()), plan, rebuild=True)


@contextmanager
def service(
    lib: Path = REPO / "lib", env: Mapping[str, str] | None = None, *, patience: float = PATIENCE
) -> Iterator[int]:
    """Run the service of the package in ``lib``, which has begun its work, and give its process."""
    argv = ["/usr/bin/python3", "-m", "virt_forward.cli", "watch"]
    given = {**os.environ, "PYTHONPATH": str(lib), **(env or {})}
    quiet = subprocess.DEVNULL
    with subprocess.Popen(argv, env=given, stdin=quiet, stdout=quiet, stderr=quiet) as running:
        try:
            restored(patience)
            yield running.pid
        finally:
            running.terminate()


def restored(patience: float = PATIENCE) -> float:
    """Delete the table and return how many seconds after the kernel's commit of that it has one again.

    The kernel is asked by netlink, on one socket. An nft process for each question, when it ends, would have
    other transactions wait until what was deleted is freed (host.nft_commit), the one that is waited for too.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netlink.NETLINK_NETFILTER) as kernel:
        kernel.bind((0, 0))
        nft.delete_table()
        began = time.perf_counter()
        while not _has_table(kernel):
            if time.perf_counter() - began > patience:
                raise SystemExit(f"the service has not restored the table within {patience:g} seconds")
            time.sleep(0.0002)
        return time.perf_counter() - began


NFT_MSG_GETTABLE, NFTA_TABLE_NAME, NFPROTO_INET = 10 << 8 | 1, 1, 1
"""With NFNL_SUBSYS_NFTABLES: linux/netfilter/nfnetlink.h, nf_tables.h and netfilter.h."""


def _has_table(kernel: socket.socket) -> bool:
    """Ask the kernel for our table; its answer is the table, or an error (nf_tables_gettable)."""
    payload = struct.pack("=BBH", NFPROTO_INET, 0, 0) + netlink.attribute(NFTA_TABLE_NAME, b"virt-forward\0")
    head = struct.pack("=IHHII", 16 + len(payload), NFT_MSG_GETTABLE, netlink.NLM_F_REQUEST, 1, 0)
    kernel.send(head + payload)
    (answer,) = netlink.messages(kernel.recv(1 << 16))
    return answer.kind != netlink.NLMSG_ERROR


def start() -> float:
    """Return how long the bench guest's start takes; it is stopped again."""
    xml = domain_xml()
    took = sum(hook(operation, sub, xml) for operation, sub in CYCLE[:3])
    for operation, sub in CYCLE[3:]:
        hook(operation, sub, xml)
    return took


def crowd(runs: int) -> float:
    """Return the cost of a start among 1,000 guests against one among one other."""
    fill(1)
    few = [start() for _ in range(runs + 1)][1:]
    fill(1000)
    many = [start() for _ in range(runs + 1)][1:]
    return statistics.median(many) / statistics.median(few)


def connections(runs: int) -> float:
    """Return the cost of a stop among 100,000 tracked connections against a listing of them."""
    xml, ratios = domain_xml(), []
    for _ in range(runs):
        for operation, sub in CYCLE[:3]:
            hook(operation, sub, xml)
        track(100_000)
        listing = seconds(["conntrack", "-L"])
        ratios.append(hook(*CYCLE[3], xml) / listing)
        hook(*CYCLE[4], xml)
        subprocess.run(["conntrack", "-F"], check=True, timeout=60, capture_output=True)
    return statistics.median(ratios)


def track(count: int) -> None:
    """Have the kernel track connections, every fourth of them through a forward of the bench guest."""
    how = "-I -p tcp --sport 1000 --state ESTABLISHED -t 300 -d 192.0.2.1"
    lines = []
    for number in range(count):
        source = ipaddress.IPv4Address("198.18.0.0") + number
        port, guest = 30000 + number // 4 % 10, "10.10.255.1" if number % 4 == 0 else "10.10.255.2"
        lines.append(f"{how} -s {source} --dport {port} --dst-nat {guest}:{port - 1000}\n")
    command = ["conntrack", "-R", "-"]
    subprocess.run(command, input="".join(lines).encode(), check=True, timeout=60, capture_output=True)


def resync() -> float:
    """Return how long it takes to make the table anew from all records."""
    store = Store()
    before = time.perf_counter()
    with store.open() as state:
        apply(context(store, state, Config()), Plan({}, {}), rebuild=True)
    return time.perf_counter() - before


def handed_over(cycle: Callable[[], float], five: Callable[[], float], runs: int) -> float:
    """Return the cost of a cycle while the service runs."""
    fill(1)
    with service():
        socket = Path(Store().path, "socket")
        while not socket.exists():
            time.sleep(0.1)
        return ratio(cycle, five, runs)


def measure(runs: int) -> dict[str, float]:
    """Return every figure by its name."""
    plain = domain_xml("urn:somebody-else")
    xml = domain_xml()

    def cycle() -> float:
        return sum(hook(operation, sub, xml) for operation, sub in CYCLE)

    def five() -> float:
        return sum(seconds(NOTHING) for _ in CYCLE)

    found = {
        "irrelevant": ratio(lambda: hook("started", "begin", plain), lambda: seconds(NOTHING), runs * 3),
        "port": ratio(
            lambda: hook("port-created", "begin", PORT, "network"), lambda: seconds(NOTHING), runs * 3
        ),
        "cycle": ratio(cycle, five, runs),
        "service": handed_over(cycle, five, runs),
        "connections": connections(max(runs // 3, 1)),
        "crowd": crowd(runs),
    }
    include = Store().include_path
    found["sync"] = ratio(resync, lambda: seconds(["nft", "-f", include]), max(runs // 3, 2))
    return found


@contextmanager
def nowhere() -> Iterator[None]:
    """Work in a network namespace and a run directory of our own."""
    os.unshare(0x40000000) if hasattr(os, "unshare") else _unshare()
    # A tmpfs, as /run is.
    with tempfile.TemporaryDirectory(prefix="vf-bench-", dir="/dev/shm") as directory:
        os.environ["VIRT_FORWARD_RUN_DIR"] = directory
        os.environ["VIRT_FORWARD_CONFIG"] = f"{directory}/none.toml"
        yield


def _unshare() -> None:
    import ctypes

    if ctypes.CDLL(None, use_errno=True).unshare(0x40000000):
        raise OSError(ctypes.get_errno(), "a network namespace cannot be made; run it as root")


def parser(description: str, runs: str) -> argparse.ArgumentParser:
    """Return a parser of what the command lines of all benchmarks have in common."""
    found = argparse.ArgumentParser(description=description)
    found.add_argument("--json", action="store_true", help="print JSON")
    found.add_argument("--runs", type=int, default=9, help=f"{runs} (9)")
    return found


def report(what: str, runs: str, measure: Callable[[int], Mapping[str, Any]]) -> int:
    """Measure in a namespace and print, as the command line asks; return the exit status."""
    given = parser(f"What {what}, as ratios within one run.", f"{runs} a figure").parse_args()
    if os.geteuid() != 0:
        print(f"{os.path.basename(sys.argv[0])}: this needs root, for a network namespace", file=sys.stderr)
        return 1
    with nowhere():
        found = measure(given.runs)
    if given.json:
        print(json.dumps(found))
    else:
        for name, figure in found.items():
            print(f"{name:12} {figure:6.2f}" if isinstance(figure, float) else f"{name:12} {figure}")
    return 0


if __name__ == "__main__":
    sys.exit(report("the hooks cost", "pairs of runs", measure))
