"""The main loop of the service: wait for events, collect a burst of them, run the jobs that are due.

It never waits for libvirt, which may hang: events of libvirt come from a thread, and a sync runs in
a child process. So does the load of a large table, which takes nft seconds.
"""

import contextlib
import math
import os
import select
import signal
import time
from types import FrameType

from virt_forward.effects.libvirt_accept.plan import chain_changed
from virt_forward.errors import VirtForwardError
from virt_forward.reconcile.refresh import readmit, refresh
from virt_forward.state.config_file import load_config_or_last
from virt_forward.state.store import Store
from virt_forward.watch.backoff import Job
from virt_forward.watch.hook_process import HookProcess
from virt_forward.watch.kernel_events import TABLE_DELETED, HostMonitor, NeighbourMonitor, TableMonitor
from virt_forward.watch.libvirt_events import MAX_DOMAINS, LibvirtEvents
from virt_forward.watch.notify import notify
from virt_forward.watch.prober import Prober
from virt_forward.watch.running_guests import RunningGuests
from virt_forward.watch.sync_process import SyncProcess
from virt_forward.watch.table_check import is_intact, is_large, restore
from virt_forward.watch.table_process import TableProcess

SETTLE_SECONDS = 0.02
"""How long events are collected before the jobs they request are run."""

LEASE_SECONDS = 0.5
"""How often the DHCP servers' lease files are checked, while guests with forwards run."""

TABLE_CHECK_SECONDS = 30.0
"""How often the table is checked without an event, while guests with forwards run."""

MONITOR_SECONDS = 1.0
"""How long ``nft monitor`` may take to subscribe to events after its start."""

READY_SECONDS = 5.0
"""How long READY=1 waits for the first sync."""

SYNC_PAUSE = 0.25
"""The least time between two syncs, in seconds: a guest that starts causes several events."""

ADDRESS_SECONDS, NEIGHBOUR_SECONDS = 0.25, 1.0
"""The least time between two refreshes after leases and answers, and after events of neighbours, addresses
and routes: guests cause these events, and must not keep the host busy."""


class Service:
    """``virt-forward watch``; ``run`` returns when the service is stopped."""

    def __init__(self) -> None:
        self.store = Store()
        self.stopping = False
        self.poller = select.poll()
        self.libvirt = LibvirtEvents(self._uri())
        self.sync = SyncProcess(self.poller)
        self.restorer = TableProcess(self.poller)
        self.hooks = HookProcess(self.poller)
        self.table = TableMonitor(self.poller)
        self.neighbours = NeighbourMonitor()
        self.host = HostMonitor()
        self.prober = Prober(self.poller)
        self.guests = RunningGuests()
        self.jobs = {
            "table": Job(),
            "table_check": Job(),
            "libvirt": Job(SYNC_PAUSE),
            "addresses": Job(ADDRESS_SECONDS),
            "neighbours": Job(NEIGHBOUR_SECONDS),
            "chains": Job(),
        }
        self.domains: set[str] = set()
        self.all_domains = True
        self._synced = self._verified = False
        self._ready_at = self._table_check_at = self._leases_at = 0.0
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        for fd in (self.libvirt.fd, self.neighbours.fileno(), self.host.fileno(), self._wake_fd):
            self.poller.register(fd, select.POLLIN)

    def _uri(self) -> str:
        with self.store.peek() as state:
            return load_config_or_last(state).uri

    def run(self) -> int:
        """Run until SIGTERM or SIGINT; SIGHUP requests a sync of all domains."""
        signal.signal(signal.SIGTERM, self._on_stop)
        signal.signal(signal.SIGINT, self._on_stop)
        signal.signal(signal.SIGHUP, self._on_reload)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        self._ready_at = time.monotonic() + READY_SECONDS
        self._request("table", "libvirt")
        while not self.stopping:
            self._run_once()
        notify("STOPPING=1")
        self.hooks.stop()
        self.sync.stop()
        self.restorer.stop()
        self.table.stop()
        self.neighbours.close()
        self.host.close()
        self.prober.close()
        return 0

    def _on_stop(self, _signal: int, _frame: FrameType | None) -> None:
        self.stopping = True
        os.eventfd_write(self._wake_fd, 1)
        # The alarm of a job that waits for the lock (Store.lock); nothing else has one.
        signal.setitimer(signal.ITIMER_REAL, 0.001)

    def _on_reload(self, _signal: int, _frame: FrameType | None) -> None:
        self.all_domains = True
        self._request("libvirt")
        os.eventfd_write(self._wake_fd, 1)

    def _request(self, *names: str) -> None:
        for name in names:
            self.jobs[name].pending = True

    def _run_once(self) -> None:
        self._wait(self._timeout())
        if self._is_due("table"):
            # Without the table no forward works, so this job does not wait for further events.
            self._run_job("table")
        if any(map(self._is_due, self.jobs)):
            self._wait(SETTLE_SECONDS)
            for name in self.jobs:
                if self._is_due(name) and not self.stopping:
                    self._run_job(name)
        self._notify_ready()

    def _due_at(self, name: str) -> float:
        # Jobs need the lock, for which the loop would wait as long as a child process has it.
        waits = self.restorer.is_running() or self.sync.changes_table()
        if waits or (name == "libvirt" and self.sync.is_running()):
            return math.inf
        return self.jobs[name].due_at()

    def _is_due(self, name: str) -> bool:
        return self._due_at(name) <= time.monotonic()

    def _notify_ready(self) -> None:
        """Send READY=1 once: after the first sync, after READY_SECONDS, or if libvirt is not running."""
        if self._ready_at == math.inf:
            return
        if self._synced or time.monotonic() >= self._ready_at or not self.libvirt.daemon_runs():
            notify("READY=1")
            self._ready_at = math.inf

    def _timeout(self) -> float | None:
        """Return how long to wait for an event, in seconds; None if no job or check is due."""
        times = [self._due_at(name) for name in self.jobs]
        times += [
            self.hooks.next_at(),
            self.table.next_at(),
            self.sync.deadline(),
            self.restorer.deadline(),
            self.prober.next_at(),
            self._ready_at,
        ]
        if self.guests.any_running:
            times += [self._leases_at, self._table_check_at]
        soonest = min(times)
        return None if soonest == math.inf else max(soonest - time.monotonic(), 0)

    def _wait(self, seconds: float | None) -> None:
        """Wait for events up to ``seconds`` (None: forever), and request the jobs that they need."""
        milliseconds = None if seconds is None else math.ceil(seconds * 1000)
        ready = {fd for fd, _ in self.poller.poll(milliseconds)}
        if self._wake_fd in ready:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake_fd)
        if self.stopping:
            # systemd stops our children at the same time, which is no event.
            return
        if self.guests.reload(self.store):
            self.prober.set_probes(self.guests.probes)
        if self.guests.lost:
            self.guests.lost = False
            self._queue_domains(None)
        self._handle_hooks(ready)
        self._handle_libvirt(ready)
        self._handle_table(ready)
        if self.neighbours.fileno() in ready:
            self._handle_neighbours()
        if self.host.fileno() in ready and self.host.read():
            self._request("neighbours")
        if self.prober.work():
            self._request("addresses")
        if self.guests.any_running:
            self._check_timers()

    def _handle_hooks(self, ready: set[int]) -> None:
        if self.hooks.fd in ready:
            self.hooks.restart_later()
        if self.hooks.next_at() <= time.monotonic():
            self.hooks.start()

    def _handle_libvirt(self, ready: set[int]) -> None:
        if self.libvirt.fd in ready:
            domains, all_domains = self.libvirt.take()
            self._queue_domains(None if all_domains else domains)
        if result := self.sync.result():
            self._synced = True
            now = time.monotonic()
            if result.failure:
                self._queue_domains(result.only)
                self.jobs["libvirt"].fail(now, result.failure)
            else:
                self.jobs["libvirt"].finish(now)

    def _queue_domains(self, domains: set[str] | frozenset[str] | None) -> None:
        """Queue domains for the next sync; None means all."""
        self.domains |= domains or set()
        self.all_domains |= domains is None or len(self.domains) > MAX_DOMAINS
        if self.all_domains or self.domains:
            self._request("libvirt")

    def _handle_table(self, ready: set[int]) -> None:
        if self.table.fileno() in ready:
            text = self.table.read()
            if any(words in text for words in TABLE_DELETED):
                self._request("table")
            if chain_changed(text) or TABLE_DELETED[-1] in text:
                self._request("chains")
        failure = self.restorer.result()
        if failure is not None:
            self._finish_restoring(failure)
        if self.table.next_at() <= time.monotonic():
            self.table.start()
            # Check for missed events now, and again when the monitor is certainly subscribed.
            self._request("table_check", "chains")
            self._table_check_at = time.monotonic() + MONITOR_SECONDS

    def _finish_restoring(self, failure: str) -> None:
        now = time.monotonic()
        if failure:
            self.jobs["table"].fail(now, failure)
        else:
            self._verified = True
            self.jobs["table"].finish(now)

    def _handle_neighbours(self) -> None:
        changed = self.neighbours.read()
        if changed is None or any(map(self.guests.affects_guest, changed)):
            self._request("neighbours")
        for ip, mac, removed in changed or ():
            if ip.is_link_local and not removed and self.prober.has_probe(mac):
                # The network of the NIC is up, so it may have an address by now.
                self.prober.add_link_local(mac, ip)

    def _check_timers(self) -> None:
        """Check what has no events: the lease files, and as a precaution the table."""
        now = time.monotonic()
        if now >= self._leases_at:
            self._leases_at = now + LEASE_SECONDS
            if self.guests.leases_changed():
                self._request("addresses")
        if now >= self._table_check_at:
            self._table_check_at = now + TABLE_CHECK_SECONDS
            self._request("table_check")

    def _run_job(self, name: str) -> None:
        """Run a pending job; if it fails, it stays pending."""
        job = self.jobs[name]
        job.pending = False
        try:
            getattr(self, f"_do_{name}")()
        except VirtForwardError as error:
            if self.stopping:
                return
            job.fail(time.monotonic(), str(error))
        else:
            # What a child process does has only been started.
            if name != "libvirt" and not self.restorer.is_running():
                job.finish(time.monotonic())

    def _do_table(self) -> None:
        if is_large(self.store):
            self.restorer.start(verified=self._verified)
        else:
            restore(self.store, verified=self._verified)
            self._verified = True

    def _do_table_check(self) -> None:
        if self.guests.any_running and not is_intact(self.store):
            self._do_table()

    def _do_libvirt(self) -> None:
        only, self.domains = None if self.all_domains else self.domains, set()
        self.all_domains = False
        # Without a connection nothing is synced: all domains are after the next connect.
        if not self.libvirt.connected():
            return
        try:
            self.sync.start(only)
        except VirtForwardError:
            self._queue_domains(only)
            raise

    def _do_addresses(self) -> None:
        refresh(self.store, self.prober.sightings)
        self.prober.clear_sightings()
        # The refresh includes the neighbours.
        self.jobs["neighbours"].pending = False

    def _do_neighbours(self) -> None:
        self._do_addresses()

    def _do_chains(self) -> None:
        """Restore our rule if libvirt has rebuilt its chain."""
        readmit(self.store)
