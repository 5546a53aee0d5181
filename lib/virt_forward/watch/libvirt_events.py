"""Events of libvirt, on a thread of their own: libvirt-python's loop wants one."""

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
"""How often to look whether a daemon that is stopped has been started."""

MOST_DOMAINS = 500
"""The most domains that are looked at one by one; beyond that all are."""


class LibvirtEvents:
    """Collects the UUIDs of domains that something happened to; ``fd`` becomes readable with them."""

    def __init__(self, uri: str) -> None:
        import libvirt

        self._libvirt = libvirt
        self._uri = uri
        self._lock = threading.Lock()
        self._domains: set[str] = set()
        self._everything = False
        self._opened: Any = None
        self._told = ""
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        libvirt.registerErrorHandler(lambda _context, _error: None, None)
        libvirt.virEventRegisterDefaultImpl()
        threading.Thread(target=self._run, name="libvirt", daemon=True).start()

    def take(self) -> tuple[set[str], bool]:
        """Return the domains since the last call, and whether all of them need a look."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.fd)
        with self._lock:
            found, self._domains = self._domains, set()
            everything, self._everything = self._everything, False
        return found, everything

    def connected(self) -> bool:
        """Tell whether events come; when they begin to, ``take`` tells that all domains need a look."""
        return self._opened is not None

    def daemon_runs(self) -> bool:
        """Tell whether asking libvirt starts no daemon that somebody has stopped."""
        return api.daemon_runs(self._uri)

    def _tell(self, uuid: str | None) -> None:
        with self._lock:
            if uuid is None or len(self._domains) >= MOST_DOMAINS:
                self._everything = True
            else:
                self._domains.add(uuid)
        os.eventfd_write(self.fd, 1)

    def _run(self) -> None:
        backoff = Backoff()
        while True:
            if self._opened is not None:
                # The default loop waits without end where it has no timer, and a keepalive is one.
                self._libvirt.virEventRunDefaultImpl()
            elif not self.daemon_runs():
                self._say("libvirt's daemon does not run; waiting for it to be started")
                backoff.reset()
                time.sleep(STOPPED_SECONDS)
            elif self._connect():
                backoff.reset()
            else:
                time.sleep(backoff.wait())

    def _connect(self) -> bool:
        try:
            opened = self._libvirt.openReadOnly(self._uri)
            opened.setKeepAlive(5, 3)
            opened.registerCloseCallback(self._closed, None)
            self._register(opened)
        except self._libvirt.libvirtError as error:
            self._say(f"libvirt is not reachable at {text.plain(self._uri)}: {text.output(str(error))}")
            return False
        self._opened = opened
        self._told = ""
        self._tell(None)
        return True

    def _say(self, message: str) -> None:
        """Log what keeps us from libvirt, once until it is something else."""
        if message != self._told:
            log.warning(f"watch: {message}")
            self._told = message

    def _register(self, opened: Any) -> None:
        for event in (
            self._libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE,
            self._libvirt.VIR_DOMAIN_EVENT_ID_METADATA_CHANGE,
            self._libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_ADDED,
            self._libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED,
        ):
            opened.domainEventRegisterAny(None, event, self._happened, None)

    def _happened(self, _opened: Any, domain: Any, *_details: Any) -> None:
        self._tell(domain.UUIDString())

    def _closed(self, _opened: Any, _reason: int, _opaque: Any) -> None:
        log.info("libvirt has closed the connection; waiting for it to come back")
        self._opened = None
