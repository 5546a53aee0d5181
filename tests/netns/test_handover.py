"""Events that hooks hand over to the service, which may be killed, stopped, hung, another or restarted."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from netns.faults.test_many_guests import ManyGuests
from netns.support import PHASES
from support import netns, state
from support.netns import GUEST4, HOOK_ENV, HOST4, Lab
from support.proc import REPO, Background, Done, children, eventually
from support.xml import domain, forwards, host_ip, port_forward

pytestmark = pytest.mark.root

WEB = forwards(host_ip(GUEST4), port_forward("8080:80"))

HOOK = f"""
import os, sys
sys.path.insert(0, "{REPO}/lib")
from virt_forward.hooks import handover
handover.SECONDS = float(os.environ["PATIENCE"])
if "LOCK_SECONDS" in os.environ:
    from virt_forward.state import store
    store.LOCK_SECONDS = float(os.environ["LOCK_SECONDS"])
path = sys.argv[0] = "{REPO}/hooks/qemu"
exec(compile(open(path).read(), path, "exec"), {{"__name__": "__main__", "__file__": path}})
"""
SERVER = """
import os, sys
sys.path.insert(0, sys.argv[1])
from virt_forward.hooks import handover
from virt_forward.watch import hook_process
vars(handover).update({changes})
if "LOCK_SECONDS" in os.environ:
    from virt_forward.state import store
    store.LOCK_SECONDS = float(os.environ["LOCK_SECONDS"])
os.dup2(os.pipe()[0], 0)
sys.exit(hook_process.main())
"""
# nft tells who has started it.
NFT = """#!/bin/sh
words=$(tr '\\0\\n' '  ' </proc/$PPID/cmdline)
case "$words" in *hook_process*) echo service ;; *) echo hook ;; esac >>{0}/who
{1}
PATH={2} exec nft "$@"
"""
HANGS_IN_SERVICE = 'case "$words" in *hook_process*) echo $$ >{}; exec sleep 600 ;; esac'


class HandoverTestbed:
    """A host whose nft notes who has started it, and the service's process for events."""

    def __init__(self, lab: Lab, undo: contextlib.ExitStack) -> None:
        self.lab, self._undo = lab, undo
        self.bin = lab.dir / "bin"
        self.bin.mkdir()
        self.env = {**HOOK_ENV, **lab.env, "PATH": f"{self.bin}:{HOOK_ENV['PATH']}"}
        self.patience = 30.0  # seconds in which a hook is answered even on a loaded machine
        self.slow("")

    def slow(self, before: str) -> None:
        """Have nft run a command of the shell before it begins."""
        new = self.bin / "nft.new"
        new.write_text(NFT.format(self.lab.dir, before, HOOK_ENV["PATH"]))
        new.chmod(0o755)
        new.rename(self.bin / "nft")

    def serve(self, changes: str = "", env: dict[str, str] | None = None) -> Background:
        """Start the process for events; ``changes`` are other values in hooks.handover."""
        program = SERVER.format(changes=changes or "{}")
        words = [f"{key}={value}" for key, value in {**self.env, **(env or {})}.items()]
        argv = ["env", "-i", *words, "/usr/bin/python3", "-I", "-c", program, str(REPO / "lib")]
        before = self.inode()
        found = self.lab.host.background(argv, self.lab.dir / "events.log")
        self._undo.callback(found.process.kill)  # it ends with the service, and not by SIGTERM
        found.wait_for(lambda: self.inode() not in (None, before), "it listens")
        return found

    def inode(self) -> int | None:
        try:
            return (self.lab.run_dir / "socket").stat().st_ino
        except OSError:
            return None

    def event(self, operation: str, *, env: dict[str, str] | None = None, ns: netns.Ns | None = None) -> Done:
        argv = ["/usr/bin/python3", "-IS", "-c", HOOK, "web", operation, PHASES[operation][0], "-"]
        text = domain("web", WEB, phase=PHASES[operation][1])
        patience = {"PATIENCE": str(self.patience)}
        return (ns or self.lab.host).run(argv, stdin=text, env={**self.env, **patience, **(env or {})})

    @contextlib.contextmanager
    def later(self, operation: str, **more: Any) -> Iterator[None]:
        """Run an event meanwhile; it has ended with the block."""
        with ThreadPoolExecutor(1) as pool:
            event = pool.submit(self.event, operation, **more)
            yield
            event.result()

    def start(self) -> None:
        self.event("prepare")
        self.event("started")

    def who(self) -> list[str]:
        """Return who has run nft since the last call."""
        with contextlib.suppress(FileNotFoundError):
            return (self.lab.dir / "who").rename(self.lab.dir / "read").read_text().split()
        return []

    def is_served(self) -> bool:
        return "dnat" in self.lab.host.run(["nft", "list", "table", "inet", "virt-forward"], check=False).out

    def is_whole(self) -> bool:
        """Tell whether the include file says what the kernel has, and nothing was left undone."""
        file = (self.lab.run_dir / "ruleset.nft").read_text()
        return not state.left(self.lab.run_dir) and ("dnat" in file) == self.is_served()


@pytest.fixture
def testbed() -> Iterator[HandoverTestbed]:
    with contextlib.ExitStack() as undo:
        lab = undo.enter_context(netns.lab())
        lab.guest()
        yield HandoverTestbed(lab, undo)


def waiting(testbed: HandoverTestbed) -> set[int]:
    """Return the processes that wait for the lock (proc_locks(5))."""
    inode = (testbed.lab.run_dir / "lock").stat().st_ino
    lines = [line.split() for line in Path("/proc/locks").read_text().splitlines() if "->" in line]
    return {int(words[5]) for words in lines if words[6].endswith(f":{inode}")}


@contextlib.contextmanager
def locked(testbed: HandoverTestbed) -> Iterator[None]:
    testbed.lab.run_dir.mkdir(exist_ok=True)
    with (testbed.lab.run_dir / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def test_events_of_a_guest_are_handled_by_the_service(testbed: HandoverTestbed) -> None:
    testbed.serve()
    testbed.start()
    assert set(testbed.who()) == {"service"}
    guest = testbed.lab.guests["web"]
    guest.serve("tcp", 80)
    assert testbed.lab.client.ask(HOST4, 8080)
    testbed.event("stopped")
    assert set(testbed.who()) == {"service"}
    testbed.event("release")
    assert not testbed.is_served()
    assert testbed.is_whole()


def stopped(testbed: HandoverTestbed) -> None:
    os.kill(testbed.serve().pid, signal.SIGSTOP)


def killed(testbed: HandoverTestbed) -> None:
    server = testbed.serve()
    server.process.kill()  # it does not end by SIGTERM
    server.process.wait()
    assert testbed.inode()


def hung(testbed: HandoverTestbed) -> None:
    """A service that accepts, and has no process left to handle anything."""
    testbed.serve("dict(is_own_peer=lambda _: __import__('time').sleep(600))")


BROKEN: dict[str, Callable[[HandoverTestbed], object]] = {
    "no service": lambda _: None,
    "killed": killed,
    "stopped": stopped,
    "hung": hung,
    "older protocol": lambda testbed: testbed.serve("dict(PROTOCOL='0')"),
    "another installation": lambda testbed: testbed.serve("dict(PROGRAM='1:2:3')"),
    "another configuration": lambda testbed: testbed.serve(env={"VIRT_FORWARD_CONFIG": "/nonexistent"}),
    "another user's": lambda testbed: testbed.serve("dict(is_own_peer=lambda _: False)"),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_hook_works_by_itself_without_a_service_for_it(
    testbed: HandoverTestbed, broken: Callable[[HandoverTestbed], object]
) -> None:
    broken(testbed)
    testbed.patience = 0.5
    testbed.start()
    assert testbed.is_served()
    testbed.event("stopped")
    assert set(testbed.who()) == {"hook"}
    assert not testbed.is_served()
    assert testbed.is_whole()


def test_hook_in_another_network_namespace_works_by_itself(testbed: HandoverTestbed) -> None:
    """It shares the run directory, and its rules belong into its own namespace."""
    testbed.serve()
    other = testbed.lab.client
    for operation in ("prepare", "started"):
        testbed.event(operation, ns=other)
    assert set(testbed.who()) == {"hook"}
    assert not testbed.is_served()
    assert "dnat" in other.run(["nft", "list", "table", "inet", "virt-forward"]).out


def test_service_that_hangs_in_an_event_is_overtaken(testbed: HandoverTestbed) -> None:
    """Its nft hangs with the lock: the hook gives up, and does the work when the lock is free."""
    server = testbed.serve()
    testbed.event("prepare")
    testbed.who()
    testbed.patience = 3.0
    pid = testbed.lab.dir / "pid"
    os.mkfifo(pid)
    testbed.slow(HANGS_IN_SERVICE.format(pid))
    with testbed.later("started"):
        nft = int(pid.read_text())
        eventually(lambda: waiting(testbed), "the hook waits for the lock")
        assert not testbed.is_served()
        (event,) = filter(children, children(server.pid))
        os.kill(event, signal.SIGKILL)
    assert not Path(f"/proc/{nft}/cmdline").exists() or not Path(f"/proc/{nft}/cmdline").read_bytes()
    first, *others = testbed.who()
    assert (first, set(others)) == ("service", {"hook"})
    assert testbed.is_served()
    assert testbed.is_whole()


def test_service_killed_in_the_middle_of_an_event_is_replaced_by_the_hook_at_once(
    testbed: HandoverTestbed,
) -> None:
    server = testbed.serve()
    testbed.event("prepare")
    pid = testbed.lab.dir / "pid"
    os.mkfifo(pid)
    testbed.slow(HANGS_IN_SERVICE.format(pid))
    with testbed.later("started"):
        pid.read_text()
        for event in children(server.pid):
            os.kill(event, signal.SIGKILL)
        os.kill(server.pid, signal.SIGKILL)
    assert testbed.is_served()
    assert testbed.is_whole()


def test_event_that_the_hook_has_given_up_changes_nothing_later(testbed: HandoverTestbed) -> None:
    """The service is stopped while its event waits for the lock, and goes on when the guest is gone."""
    server = testbed.serve()
    testbed.event("prepare")
    testbed.patience = 3.0
    with contextlib.ExitStack() as lock:
        lock.enter_context(locked(testbed))
        with testbed.later("started"):
            eventually(lambda: waiting(testbed), "the service waits for the lock")
            (event,) = waiting(testbed)
            assert event in children(server.pid)
            os.kill(event, signal.SIGSTOP)
            eventually(lambda: waiting(testbed) - {event}, "the hook waits for the lock")
            lock.close()
    assert testbed.is_served()
    testbed.event("stopped")
    assert not testbed.is_served()
    os.kill(event, signal.SIGCONT)
    eventually(lambda: event not in children(server.pid), "the event has ended")
    assert not testbed.is_served()
    assert testbed.is_whole()
    assert state.uuids(testbed.lab.run_dir) == set()


def test_event_that_the_hook_has_given_up_is_queued_once(testbed: HandoverTestbed) -> None:
    """The lock is held for longer than service and hook wait for it."""
    limit = {"LOCK_SECONDS": "1"}
    testbed.serve(env=limit)
    testbed.event("prepare")
    testbed.patience = 0.5
    with locked(testbed), testbed.later("started", env=limit):
        pass
    assert len(state.rows(testbed.lab.run_dir, "SELECT uuid FROM queued")) == 1
    testbed.event("reconnect")
    assert testbed.is_served()
    assert testbed.is_whole()


def test_service_loads_nothing_for_an_event(testbed: HandoverTestbed) -> None:
    """What the service has not loaded is loaded for each event anew."""
    program = f"""
import sys
sys.path.insert(0, "{REPO}/lib")
from virt_forward.hooks import dispatch
from virt_forward.watch import hook_process
hook_process._load()
before = set(sys.modules)
data = sys.stdin.buffer.read()
for operation, sub in {[(name, PHASES[name][0]) for name in ("prepare", "started", "reconnect", "stopped")]}:
    assert dispatch.main("qemu", ["web", operation, sub, "-"], data) == 0
    if operation == "started":
        assert dispatch.main("network", ["default", "port-created", "begin", "-"], b"<network/>") == 0
print(*sorted(set(sys.modules) - before))
"""
    argv = ["/usr/bin/python3", "-I", "-c", program]
    assert testbed.lab.host.run(argv, stdin=domain("web", WEB), env=testbed.env).out.split() == []


def test_fifty_starts_while_the_service_is_restarted(testbed: HandoverTestbed) -> None:
    """Each event is done once, by the service or by its hook; the table is that of all guests."""
    over, guests = threading.Event(), ManyGuests(testbed.lab)

    def restart() -> None:
        servers = [testbed.serve()]
        while not over.wait(0.15):
            servers.append(testbed.serve())
            # One in two is killed with all its events, the others finish theirs.
            victims = children(servers[-2].pid) if len(servers) % 2 else []
            servers[-2].process.kill()
            for pid in victims:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    with ThreadPoolExecutor(1) as pool:
        restarting = pool.submit(restart)
        guests.all(range(50), "prepare", "started")
        over.set()
        restarting.result()
    guests.all((0,), "reconnect")
    guests.assert_right(range(50))
