"""The service's loop: wait for an event of any kind, let a burst of them settle, do what they ask for.

Nothing in it waits for libvirt, which may hang: its events come from a thread, and what is
asked of it is asked by a child process.
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
from virt_forward.reconcile.refresh import put_back, refresh, verify
from virt_forward.state.config_file import load_config_or_last
from virt_forward.state.store import Store
from virt_forward.watch.backoff import Job
from virt_forward.watch.kernel_events import TABLE_GONE, NeighbourMonitor, TableMonitor
from virt_forward.watch.libvirt_events import MOST_DOMAINS, LibvirtEvents
from virt_forward.watch.notify import notify
from virt_forward.watch.prober import Prober
from virt_forward.watch.syncing import Syncing
from virt_forward.watch.table_check import intact
from virt_forward.watch.watched import Watched

SETTLE_SECONDS = 0.02
"""How long a burst of events may go on before it is acted upon."""

LEASE_SECONDS = 0.5
"""How often the DHCP servers' lease files are looked at, while guests with forwards run."""

LOOK_SECONDS = 30.0
"""How often the table is looked at though nothing has happened to it, while guests with forwards run."""

MONITOR_SECONDS = 1.0
"""How long ``nft monitor`` may take from its start until it listens."""

READY_SECONDS = 5.0
"""How long the first sync may keep us from telling that we are ready."""

SYNC_SECONDS = 0.25
"""How long to wait after a sync before the next: a guest that starts causes a handful of events."""

HEARD_SECONDS, NEIGHBOUR_SECONDS = 0.25, 1.0
"""How far apart the refreshes are, at least, that come of leases and answers, and of the neighbour
table: guests cause these events, and must not keep the host busy."""


class Service:
    """``virt-forward watch``; ``run`` returns when the service is told to end."""

    def __init__(self) -> None:
        self.store = Store()
        self.ending = False
        self.poller = select.poll()
        self.libvirt = LibvirtEvents(load_config_or_last(self.store).uri)
        self.syncing = Syncing(self.poller)
        self.table = TableMonitor(self.poller)
        self.neighbours = NeighbourMonitor()
        self.prober = Prober(self.poller)
        self.watched = Watched()
        self.jobs = {
            "table": Job(),
            "look": Job(),
            "libvirt": Job(SYNC_SECONDS),
            "addresses": Job(HEARD_SECONDS),
            "neighbours": Job(NEIGHBOUR_SECONDS),
            "chains": Job(),
        }
        self.domains: set[str] = set()
        self.everything = True
        self._synced = False
        self._ready_at = self._look_at = self._leases_at = 0.0
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        for fd in (self.libvirt.fd, self.neighbours.fileno(), self._wake_fd):
            self.poller.register(fd, select.POLLIN)

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT; SIGHUP asks for everything anew."""
        signal.signal(signal.SIGTERM, self._end)
        signal.signal(signal.SIGINT, self._end)
        signal.signal(signal.SIGHUP, self._again)
        self._ready_at = time.monotonic() + READY_SECONDS
        self._want("table", "libvirt")
        while not self.ending:
            self._turn()
        notify("STOPPING=1")
        self.syncing.stop()
        self.table.stop()
        self.neighbours.close()
        self.prober.close()
        return 0

    def _end(self, _signal: int, _frame: FrameType | None) -> None:
        self.ending = True
        os.eventfd_write(self._wake_fd, 1)

    def _again(self, _signal: int, _frame: FrameType | None) -> None:
        self.everything = True
        self._want("libvirt")
        os.eventfd_write(self._wake_fd, 1)

    def _want(self, *names: str) -> None:
        for name in names:
            self.jobs[name].wanted = True

    def _turn(self) -> None:
        self._collect(self._patience())
        if self._is_due("table"):
            # Somebody's clients are waiting for this one.
            self._attempt("table")
        if any(map(self._is_due, self.jobs)):
            self._collect(SETTLE_SECONDS)
            for name in self.jobs:
                if self._is_due(name) and not self.ending:
                    self._attempt(name)
        self._tell_ready()

    def _is_due(self, name: str) -> bool:
        if name == "libvirt" and self.syncing.busy():
            return False
        return self.jobs[name].at() <= time.monotonic()

    def _tell_ready(self) -> None:
        """Tell it once: after the first sync, or where that is not to come soon."""
        if self._ready_at == math.inf:
            return
        if self._synced or time.monotonic() >= self._ready_at or not self.libvirt.daemon_runs():
            notify("READY=1")
            self._ready_at = math.inf

    def _patience(self) -> float | None:
        """Return how long to wait for an event, in seconds; without end where nothing is to be looked at."""
        times = [job.at() for name, job in self.jobs.items() if name != "libvirt" or not self.syncing.busy()]
        times += [self.table.next_at(), self.syncing.next_at(), self.prober.next_at(), self._ready_at]
        if self.watched.running:
            times += [self._leases_at, self._look_at]
        soonest = min(times)
        return None if soonest == math.inf else max(soonest - time.monotonic(), 0)

    def _collect(self, seconds: float | None) -> None:
        """Wait for events, and note what they ask for."""
        milliseconds = None if seconds is None else math.ceil(seconds * 1000)
        ready = {fd for fd, _ in self.poller.poll(milliseconds)}
        if self._wake_fd in ready:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake_fd)
        if self.ending:
            # systemd ends our children along with us, which is no news.
            return
        if self.watched.follow(self.store):
            self.prober.set_probes(self.watched.probes)
        self._collect_libvirt(ready)
        self._collect_table(ready)
        if self.neighbours.fileno() in ready:
            self._collect_neighbours()
        if self.prober.work():
            self._want("addresses")
        if self.watched.running:
            self._look_around()

    def _collect_libvirt(self, ready: set[int]) -> None:
        if self.libvirt.fd in ready:
            domains, everything = self.libvirt.take()
            self._note_domains(None if everything else domains)
        if ended := self.syncing.ended():
            self._synced = True
            now = time.monotonic()
            if ended.failure:
                self._note_domains(ended.only)
                self.jobs["libvirt"].failed(now, ended.failure)
            else:
                self.jobs["libvirt"].done(now)

    def _note_domains(self, domains: set[str] | frozenset[str] | None) -> None:
        """Note that domains need a look; None stands for all."""
        self.domains |= domains or set()
        self.everything |= domains is None or len(self.domains) > MOST_DOMAINS
        if self.everything or self.domains:
            self._want("libvirt")

    def _collect_table(self, ready: set[int]) -> None:
        if self.table.fileno() in ready:
            text = self.table.read()
            if any(words in text for words in TABLE_GONE):
                self._want("table")
            if chain_changed(text) or TABLE_GONE[-1] in text:
                self._want("chains")
        if self.table.next_at() <= time.monotonic():
            self.table.start()
            # What happened while nobody was looking; and again once it surely listens.
            self._want("look", "chains")
            self._look_at = time.monotonic() + MONITOR_SECONDS

    def _collect_neighbours(self) -> None:
        changed = self.neighbours.read()
        if changed is None or any(map(self.watched.matters, changed)):
            self._want("neighbours")
        for ip, mac, gone in changed or ():
            if ip.is_link_local and not gone and self.prober.has_probe(mac):
                # Its network is up, so that it may have an address of use by now.
                self.prober.add_link_local(mac, ip)

    def _look_around(self) -> None:
        """Look at what tells nobody that it changes, where it is time to."""
        now = time.monotonic()
        if now >= self._leases_at:
            self._leases_at = now + LEASE_SECONDS
            if self.watched.leases_changed():
                self._want("addresses")
        if now >= self._look_at:
            self._look_at = now + LOOK_SECONDS
            self._want("look")

    def _attempt(self, name: str) -> None:
        """Do one thing that is wanted; where it fails, it stays wanted."""
        job = self.jobs[name]
        job.wanted = False
        try:
            getattr(self, f"_do_{name}")()
        except VirtForwardError as error:
            job.failed(time.monotonic(), str(error))
        else:
            # A sync has only begun.
            if name != "libvirt":
                job.done(time.monotonic())

    def _do_table(self) -> None:
        verify(self.store)

    def _do_look(self) -> None:
        if self.watched.running and not intact(self.store):
            verify(self.store)

    def _do_libvirt(self) -> None:
        only, self.domains = None if self.everything else self.domains, set()
        self.everything = False
        # Where libvirt is away, nobody is asked: once we are connected we look at everything.
        if not self.libvirt.connected():
            return
        try:
            self.syncing.start(only)
        except VirtForwardError:
            self._note_domains(only)
            raise

    def _do_addresses(self) -> None:
        refresh(self.store, self.prober.sightings)
        self.prober.clear_sightings()
        # It has looked at the neighbours as well.
        self.jobs["neighbours"].wanted = False

    def _do_neighbours(self) -> None:
        self._do_addresses()

    def _do_chains(self) -> None:
        """Put our rule back where libvirt has made its chain anew; nothing changes where all is well."""
        put_back(self.store)
