"""Events of libvirt, from a thread of their own, which the event loop of libvirt-python needs."""

import contextlib
import os
import threading
import time
from typing import Any

from virt_forward import text
from virt_forward.host import log
from virt_forward.libvirtd import api
from virt_forward.watch.backoff import Backoff

STOPPED_SECONDS = 1.0
"""How often to check whether a stopped daemon has been started."""

MAX_DOMAINS = 500
"""The most domains that are synced one by one; if there are more, all are."""


class LibvirtEvents:
    """Collects the UUIDs of domains that have an event; ``fd`` becomes readable with the first."""

    def __init__(self, uri: str) -> None:
        import libvirt

        self._libvirt = libvirt
        self._uri = uri
        self._lock = threading.Lock()
        self._domains: set[str] = set()
        self._all_domains = False
        self._connection: Any = None
        self._warned = ""
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        libvirt.registerErrorHandler(lambda _context, _error: None, None)
        libvirt.virEventRegisterDefaultImpl()
        threading.Thread(target=self._run, name="libvirt", daemon=True).start()

    def take(self) -> tuple[set[str], bool]:
        """Return the domains with events since the last call, and whether all domains need a sync."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.fd)
        with self._lock:
            found, self._domains = self._domains, set()
            all_domains, self._all_domains = self._all_domains, False
        return found, all_domains

    def connected(self) -> bool:
        """Tell whether events arrive. After connecting, ``take`` returns that all domains need a sync."""
        return self._connection is not None

    def daemon_runs(self) -> bool:
        """Tell whether a connection to libvirt would not start a stopped daemon (socket activation)."""
        return api.daemon_runs(self._uri)

    def _add(self, uuid: str | None) -> None:
        with self._lock:
            if uuid is None or len(self._domains) >= MAX_DOMAINS:
                self._all_domains = True
            else:
                self._domains.add(uuid)
        os.eventfd_write(self.fd, 1)

    def _run(self) -> None:
        backoff = Backoff()
        while True:
            if self._connection is not None:
                # Without a timer the default loop waits forever; the keepalive is a timer.
                self._libvirt.virEventRunDefaultImpl()
            elif not self.daemon_runs():
                self._warn_once("libvirt's daemon is not running; waiting for it to start")
                backoff.reset()
                time.sleep(STOPPED_SECONDS)
            elif self._connect():
                backoff.reset()
            else:
                time.sleep(backoff.wait())

    def _connect(self) -> bool:
        try:
            connection = self._libvirt.openReadOnly(self._uri)
            connection.setKeepAlive(5, 3)
            connection.registerCloseCallback(self._on_close, None)
            self._register(connection)
        except self._libvirt.libvirtError as error:
            self._warn_once(f"libvirt is not reachable at {text.plain(self._uri)}: {text.output(str(error))}")
            return False
        self._connection = connection
        self._warned = ""
        self._add(None)
        return True

    def _warn_once(self, message: str) -> None:
        """Log why libvirt cannot be reached, once until the reason changes."""
        if message != self._warned:
            log.warning(f"watch: {message}")
            self._warned = message

    def _register(self, connection: Any) -> None:
        for event in (
            self._libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE,
            self._libvirt.VIR_DOMAIN_EVENT_ID_METADATA_CHANGE,
            self._libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_ADDED,
            self._libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED,
        ):
            connection.domainEventRegisterAny(None, event, self._on_event, None)

    def _on_event(self, _opened: Any, domain: Any, *_details: Any) -> None:
        self._add(domain.UUIDString())

    def _on_close(self, _opened: Any, _reason: int, _opaque: Any) -> None:
        log.info("libvirt has closed the connection; reconnecting when it is available again")
        self._connection = None
