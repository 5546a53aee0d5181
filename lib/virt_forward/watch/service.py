"""The service's loop: wait for an event of any kind, let a burst of them settle, do what they ask for."""

import contextlib
import os
import select
import signal
import time
from types import FrameType

from virt_forward import hostfacts, log
from virt_forward.addresses import asking, attachments
from virt_forward.admit.plan import chain_changed
from virt_forward.errors import VirtForwardError
from virt_forward.model import Address, Guest
from virt_forward.network_events import put_back
from virt_forward.refresh import refresh, verify
from virt_forward.settings import load_config_or_last
from virt_forward.store import Store
from virt_forward.sync import sync
from virt_forward.watch.kernel_events import TABLE_GONE, NeighbourMonitor, TableMonitor
from virt_forward.watch.libvirt_events import LibvirtEvents
from virt_forward.watch.notify import notify
from virt_forward.watch.seeker import Seeker

SETTLE_SECONDS = 0.02
"""How long a burst of events may go on before it is acted upon."""

LEASE_SECONDS = 0.5
"""How often the DHCP servers' lease files are looked at, while guests with forwards run."""

RETRY_SECONDS = 5.0
"""When something that failed is tried again."""


class Wanted:
    """What the events since the last turn ask for."""

    def __init__(self) -> None:
        self.everything = True
        self.domains: set[str] = set()
        self.table = False
        self.chains = False
        self.addresses = False

    def anything(self) -> bool:
        """Tell whether there is something to do."""
        return bool(self.everything or self.domains or self.table or self.chains or self.addresses)


class Service:
    """``virt-forward watch``; ``run`` returns when the service is told to end."""

    def __init__(self) -> None:
        self.store = Store()
        self.wanted = Wanted()
        self.ending = False
        self.poller = select.poll()
        self.libvirt = LibvirtEvents(load_config_or_last(self.store).uri)
        self.table = TableMonitor()
        self.neighbours = NeighbourMonitor()
        self.seeker = Seeker(self.poller)
        self.leases: dict[str, int] = {}
        self._guests: list[Guest] = []
        self._lease_files: set[str] = set()
        self._read_at = -1
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._table_fd: int | None = None
        for fd in (self.libvirt.fd, self.neighbours.fileno(), self._wake_fd):
            self.poller.register(fd, select.POLLIN)

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT; SIGHUP asks for everything anew."""
        signal.signal(signal.SIGTERM, self._end)
        signal.signal(signal.SIGINT, self._end)
        signal.signal(signal.SIGHUP, self._again)
        self._monitor_table()
        self._work()
        notify("READY=1")
        while not self.ending:
            self._turn()
        notify("STOPPING=1")
        self.table.stop()
        self.neighbours.close()
        self.seeker.close()
        return 0

    def _end(self, _signal: int, _frame: FrameType | None) -> None:
        self.ending = True
        os.eventfd_write(self._wake_fd, 1)

    def _again(self, _signal: int, _frame: FrameType | None) -> None:
        self.wanted.everything = True
        os.eventfd_write(self._wake_fd, 1)

    def _turn(self) -> None:
        self._collect(self._patience())
        if self.wanted.table:
            # Somebody's clients are waiting for this one.
            self._attempt("table")
        if self.wanted.anything():
            self._collect(SETTLE_SECONDS)
            self._work()

    def _patience(self) -> float | None:
        """Return how long to wait for an event, in seconds; without end where nothing is to be looked at."""
        if self._table_fd is None or self.wanted.anything():
            return RETRY_SECONDS
        return LEASE_SECONDS if self._running() else None

    def _running(self) -> list[Guest]:
        """Return the running guests; their records are read again only where one has changed."""
        at = _changed_at(os.path.join(self.store.path, "guests"))
        if at != self._read_at:
            self._guests = [guest for guest in self.store.guests()[0] if guest.phase == "running"]
            self._read_at = at
            networks = tuple(self.store.networks())
            facts = attachments.Facts(networks)
            bridges = {place.bridge for g in self._guests for place in attachments.places(g.nics, facts)}
            self._lease_files = {path for bridge in bridges for path in hostfacts.lease_files(bridge)}
            self.seeker.seek(item for g in self._guests for item in asking.questions(g, networks))
        return self._guests

    def _collect(self, seconds: float | None) -> None:
        ready = {fd for fd, _ in self.poller.poll(None if seconds is None else seconds * 1000)}
        if self._wake_fd in ready:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake_fd)
        if self.libvirt.fd in ready:
            domains, everything = self.libvirt.take()
            self.wanted.domains |= domains
            self.wanted.everything |= everything
        if self.neighbours.fileno() in ready:
            self.wanted.addresses |= self._is_news(self.neighbours.read())
        if self._table_fd is None or self._table_fd in ready:
            self._monitor_table()
        self.wanted.addresses |= self._leases_changed()
        self.wanted.addresses |= self.seeker.work()

    def _monitor_table(self) -> None:
        text = self.table.read() if self._table_fd is not None else None
        if text is not None:
            self.wanted.table |= any(words in text for words in TABLE_GONE)
            self.wanted.chains |= chain_changed(text)
            return
        if self._table_fd is not None:
            self.poller.unregister(self._table_fd)
            self.table.stop()
        self._table_fd = self.table.start()
        if self._table_fd is not None:
            self.poller.register(self._table_fd, select.POLLIN)
        # What happened while nobody was looking.
        self.wanted.table = True

    def _is_news(self, learned: set[tuple[str, Address]] | None) -> bool:
        """Tell whether a guest's NIC was seen at an address that we do not know."""
        if learned is None:
            return True
        if not learned:
            return False
        running = self._running()
        macs = {nic.mac for guest in running for nic in guest.nics}
        known = {(seat.mac, seat.ip) for guest in running for seat in guest.seats}
        if any(ip.is_link_local and self.seeker.seeks(mac) for mac, ip in learned):
            # Its network is up, so that it may have an address of use by now.
            self.seeker.again()
        return any(mac in macs and (mac, ip) not in known and not ip.is_link_local for mac, ip in learned)

    def _leases_changed(self) -> bool:
        self._running()
        before, self.leases = self.leases, {path: _changed_at(path) for path in self._lease_files}
        return any(before.get(path) != at for path, at in self.leases.items())

    def _work(self) -> None:
        for what in ("table", "domains", "addresses", "chains"):
            self._attempt(what)

    def _attempt(self, what: str) -> None:
        """Do one thing that is wanted; where it fails, it stays wanted."""
        try:
            getattr(self, f"_do_{what}")()
        except VirtForwardError as error:
            log.error(f"watch: {error}")
            time.sleep(SETTLE_SECONDS)

    def _do_table(self) -> None:
        if self.wanted.table:
            verify(self.store)
            self.wanted.table = False

    def _do_domains(self) -> None:
        everything, domains = self.wanted.everything, self.wanted.domains
        if everything or domains:
            outcome = sync(None if everything else domains, ask_guests=False)
            self.wanted.everything, self.wanted.domains = False, set()
            for error in outcome.errors:
                log.error(f"watch: {error}")

    def _do_chains(self) -> None:
        """Put our rule back where libvirt has made its chain anew; nothing changes where all is well."""
        if self.wanted.chains:
            put_back(self.store)
            self.wanted.chains = False

    def _do_addresses(self) -> None:
        if self.wanted.addresses:
            refresh(self.store, self.seeker.heard)
            self.seeker.heard.clear()
            self.wanted.addresses = False


def _changed_at(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0
