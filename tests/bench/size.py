#!/usr/bin/python3
"""What size costs: prints a table, and JSON with --json. Ratios within one run, but for what has a unit.

    sudo ./tests/bench/size.py [--json] [--runs N] [--small]

sync       sync of 1,000 guests with 10 forwards each, no table before, against nft -f of the same table
resync     the same with the table there already
again      the same in processor time, of sync and nft together
kept_out   a guest's start beside 30 guests that are kept out by one, against beside 30 that are not
queued     a guest's start when 60 changes are queued, against none
port       the network hook of a guest of ours beside 600 on that network, against beside one
shifted    seconds of a start of a guest with two shifted ranges of 59,000 ports
restore    milliseconds from the table's deletion until the service has it back, one guest
load       seconds of sync for 10,000 guests with 10 forwards each
memory     MiB that this sync needs at most
nft        MiB that nft needs at most, which it runs
kernel     MiB that the kernel's memory grows by with that table (meminfo: Slab, VmallocUsed, Percpu)
start      a guest's start beside these 100,000 forwards, against beside 10
stop       its stop, likewise
watch      MiB that the service needs at most with these guests (VmHWM), without its child processes
restore_all seconds from this table's deletion until the service has it back
gone       seconds in which a sync removes all of the 100,000

That the 100,000 load, serve and stop is seen from a client: it asks through the first and the last forward
of the first, a middle and the last guest with tcp and with udp. Each has to answer as itself, once they are
loaded and once the service has restored the table; after gone none may. Otherwise there are no figures.

--small leaves out the 100,000 forwards. libvirt is replaced by a module that lists running domains, for the
service, too (running_guests.py). All of it happens in network namespaces and a run directory that are gone
afterwards; each step has a time limit.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPO / "lib"), str(REPO / "tests")]

from bench import hooks, running_guests  # noqa: E402
from bench.running_guests import uuid, xml  # noqa: E402
from bench.traffic import Traffic  # noqa: E402
from support.proc import children  # noqa: E402
from virt_forward.host import nft  # noqa: E402
from virt_forward.metadata.domain import parse_domain  # noqa: E402
from virt_forward.state.store import Store  # noqa: E402

TARGETS = {"sync": 1.5, "resync": 1.5, "kept_out": 1.0, "queued": 1.0, "port": 1.0, "shifted": 0.5} | {
    "restore": 15.0,
    "start": 1.2,
    "stop": 1.2,
}
MAKE_BRIDGE = (
    "link set lo up\nlink add virbr0 type bridge\naddress add 10.10.0.1/16 dev virbr0\nlink set virbr0 up\n"
)
SHIFTED = """<domain type='kvm' id='9'><name>bench</name><uuid>be9c0000-0000-4000-8000-000000000001</uuid>
<metadata><vf:forwards xmlns:vf="urn:virt-forward:1"><vf:host ip="10.10.255.1"/><vf:host ip="fd10:10::200"/>
<vf:portForward proto="tcp"><vf:range start="5000" end="63999" to="4000"/></vf:portForward>
<vf:portForward proto="udp"><vf:range start="5000" end="63999" to="4000"/></vf:portForward>
</vf:forwards></metadata><devices><interface type='bridge'><mac address='52:54:00:00:00:01'/>
<source bridge='virbr0'/></interface></devices></domain>"""
NETWORK = """<hookData><network><name>bench</name><uuid>be9c0000-0000-4000-8000-0000000000ff</uuid>
<bridge name='virbr0'/></network><networkport><owner><name>g0</name><uuid>{uuid}</uuid></owner>
<mac address='52:54:00:00:01:00'/><plug type='network' bridge='virbr0'/></networkport></hookData>"""


def make_bridge() -> None:
    """Make the bridge that the guests are on."""
    subprocess.run(["ip", "-batch", "-"], input=MAKE_BRIDGE, text=True, check=True)


def synced(count: int) -> dict[str, float]:
    """Sync with so many guests in a process of its own; return its time, processor time and memory."""
    argv = [sys.executable, __file__, "--sync", str(count)]
    return dict(json.loads(subprocess.run(argv, check=True, stdout=subprocess.PIPE).stdout))


def sync(count: int) -> None:
    """Sync as the command does, and print what that took."""
    from virt_forward.reconcile import resync

    os.environ[running_guests.COUNT] = str(count)
    sys.modules["libvirt"] = running_guests
    gc.disable()  # as the command does
    began, before = time.perf_counter(), used()
    outcome = resync.sync()
    took, after = time.perf_counter() - began, used()
    if outcome.errors or len(outcome.guests) != count:
        raise SystemExit(f"{len(outcome.guests)} of {count} guests: {outcome.errors[:3]}")
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    peak, nft_peak = (each.ru_maxrss / 1024 for each in usage)
    print(json.dumps({"seconds": took, "cpu": after - before, "peak": peak, "nft": nft_peak}))


def used() -> float:
    """Return the processor seconds of this process and of those that it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def loaded() -> dict[str, float]:
    """Load the include file; return the time and the processor time that nft takes."""
    began, before = time.perf_counter(), used()
    hooks.seconds(["nft", "-f", Store().include_path])
    return {"seconds": time.perf_counter() - began, "cpu": used() - before}


def syncs(runs: int) -> dict[str, float]:
    """Return the figures of a sync of 1,000 guests."""
    fresh, again, cpu = [], [], []
    for _ in range(runs):
        nft.delete_table()
        one, reference = synced(1000), loaded()
        fresh.append(one["seconds"] / reference["seconds"])
        two, reference = synced(1000), loaded()
        again.append(two["seconds"] / reference["seconds"])
        cpu.append(two["cpu"] / reference["cpu"])
    median = statistics.median
    return {"sync": median(fresh), "resync": median(again), "again": median(cpu)}


def record(texts: list[str]) -> None:
    """Make the state and the table of running guests; of equal claims, one counts."""
    from virt_forward.config import Config
    from virt_forward.reconcile.apply import reconcile
    from virt_forward.reconcile.planning import context
    from virt_forward.reconcile.wants import Absent, Present

    wants = {want.uuid: want for want in (Present(parse_domain(text.encode()), "running") for text in texts)}
    store = Store()
    with store.open() as state:
        gone = [Absent(known) for known in state.guests() if known not in wants]
        reconcile(context(store, state, Config()), [*wants.values(), *gone], rebuild=True)


def start_and_stop(text: bytes) -> tuple[float, float]:
    """Return how long a start and a stop of a guest take."""
    start = sum(hooks.hook(operation, sub, text) for operation, sub in hooks.CYCLE[:3])
    return start, sum(hooks.hook(operation, sub, text) for operation, sub in hooks.CYCLE[3:])


def start() -> float:
    """Return how long the bench guest's start takes."""
    return start_and_stop(hooks.domain_xml())[0]


def compared(prepare: Callable[[bool], None], measure: Callable[[], float], runs: int) -> float:
    """Return the ratio of medians of what is measured in two situations, in turn."""
    took: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(runs):
        for situation in (True, False):
            prepare(situation)
            took[situation].append(measure())
    return statistics.median(took[True]) / statistics.median(took[False])


def kept_out(runs: int) -> float:
    """Return the cost of a start beside kept-out guests."""

    def prepare(out: bool) -> None:
        record([xml(number * 2, start=2000 if out else None) for number in range(31)])

    return compared(prepare, start, runs)


def queued(runs: int) -> float:
    """Return the cost of a start when changes of other guests are queued."""

    def prepare(queue: bool) -> None:
        record([xml(number) for number in range(60)])
        with Store().peek() as state:
            for guest in list(state.guests().values()) if state and queue else ():
                assert state
                state.queue(guest.uuid, None)

    return compared(prepare, start, runs)


def port(runs: int) -> float:
    """Return the cost of a network port's event beside 600 guests on that network."""
    text = NETWORK.format(uuid=uuid(0)).encode()

    def prepare(many: bool) -> None:
        record([xml(number, network=True) for number in range(600 if many else 1)])
        hooks.hook("port-created", "begin", text, "network")

    return compared(prepare, lambda: hooks.hook("port-created", "begin", text, "network"), runs)


def restore(runs: int) -> float:
    """Return how many milliseconds the service takes to restore the table of one guest."""
    record([xml(0)])

    def once() -> float:
        time.sleep(0.3)  # the service rests a while after it has restored the table
        return hooks.restored() * 1000

    with hooks.service():
        return statistics.median(once() for _ in range(max(runs, 3)))


def kernel_memory() -> float:
    """Return what the kernel has in use, in MiB (proc_meminfo(5))."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
    return sum(int(words[1]) for words in lines if words[0] in ("Slab:", "VmallocUsed:", "Percpu:")) / 1024


@contextlib.contextmanager
def service_with(count: int) -> Iterator[int]:
    """Run the service with a libvirt of so many guests, of which it has finished its first sync."""
    with tempfile.TemporaryDirectory() as directory:
        # Beside the package is where the service's child processes look, too.
        Path(directory, "virt_forward").symlink_to(REPO / "lib" / "virt_forward")
        Path(directory, "libvirt.py").symlink_to(running_guests.__file__)
        # Whether libvirt's daemon runs is not asked of another driver.
        config = Path(directory, "config.toml")
        config.write_text('[libvirt]\nuri = "test:///default"\n', encoding="ascii")
        env = {running_guests.COUNT: str(count), "VIRT_FORWARD_CONFIG": str(config)}
        with hooks.service(Path(directory), env, patience=hooks.LIMIT) as pid:
            wait_until_idle(pid)
            yield pid


def wait_until_idle(pid: int) -> None:
    """Wait until the service has had no child process at work for two seconds."""
    until, idle_since = time.monotonic() + hooks.LIMIT, time.monotonic()
    while time.monotonic() < idle_since + 2:
        if time.monotonic() > until:
            raise SystemExit(f"the service still has work after {hooks.LIMIT} seconds")
        time.sleep(0.1)
        commands = (Path(f"/proc/{child}/cmdline").read_bytes() for child in children(pid))
        if any(b"watch.sync_process" in words or b"watch.table_process" in words for words in commands):
            idle_since = time.monotonic()


def peak_memory(pid: int) -> float:
    """Return the most memory that a process has had, in MiB (proc_pid_status(5))."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


def hundred_thousand(runs: int) -> dict[str, float]:
    """Return the figures of 10,000 guests with ten forwards each."""
    # The crowd has ports up to 51023.
    text = hooks.domain_xml(first=60000)
    record([xml(0)])
    few = [start_and_stop(text) for _ in range(runs)]
    record([])
    with contextlib.ExitStack() as undo:
        traffic = Traffic(undo)
        before = kernel_memory()
        found = synced(10_000)
        figures = {"load": found["seconds"], "memory": found["peak"], "nft": found["nft"]}
        figures["kernel"] = kernel_memory() - before
        traffic.must_be_served()
        many = [start_and_stop(text) for _ in range(runs)]
        for number, name in enumerate(("start", "stop")):
            one, other = (statistics.median(pair[number] for pair in pairs) for pairs in (many, few))
            figures[name] = one / other
        with service_with(10_000) as pid:
            figures["restore_all"] = hooks.restored(hooks.LIMIT)
            traffic.must_be_served()
            wait_until_idle(pid)
            figures["watch"] = peak_memory(pid)
        figures["gone"] = synced(0)["seconds"]
        traffic.must_be_gone()
    return figures


def measure(runs: int, *, small: bool = False) -> dict[str, float]:
    """Return every figure by its name."""
    make_bridge()
    found = syncs(max(runs // 3, 2))
    found["kept_out"] = kept_out(runs)
    found["queued"] = queued(runs)
    found["port"] = port(runs)
    record([])
    found["shifted"] = statistics.median(
        start_and_stop(SHIFTED.encode())[0] for _ in range(max(runs // 3, 2))
    )
    found["restore"] = restore(runs)
    return found if small else found | hundred_thousand(max(runs // 3, 2))


def main() -> int:
    """Do what the command line asks, and return the exit status."""
    if sys.argv[1:2] == ["--sync"]:
        sync(int(sys.argv[2]))
        return 0
    small = "--small" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--small"]
    return hooks.report("size costs", "samples", lambda runs: measure(runs, small=small))


if __name__ == "__main__":
    sys.exit(main())
