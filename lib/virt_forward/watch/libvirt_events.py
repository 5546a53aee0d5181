"""Events of libvirt, on a thread of their own: libvirt-python's loop wants one."""

import contextlib
import os
import threading
import time
from typing import Any

from virt_forward import log, text

RETRY_SECONDS = (1, 2, 5, 10, 30)
"""Waits between attempts to reach a libvirt that is away."""


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

    def _tell(self, uuid: str | None) -> None:
        with self._lock:
            if uuid is None:
                self._everything = True
            else:
                self._domains.add(uuid)
        os.eventfd_write(self.fd, 1)

    def _run(self) -> None:
        attempt = 0
        while True:
            if self._opened is None and not self._connect():
                wait = RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)]
                attempt += 1
                time.sleep(wait)
                continue
            attempt = 0
            # The default loop waits without end where it has no timer, and a keepalive is one.
            self._libvirt.virEventRunDefaultImpl()

    def _connect(self) -> bool:
        try:
            opened = self._libvirt.openReadOnly(self._uri)
            opened.setKeepAlive(5, 3)
            opened.registerCloseCallback(self._closed, None)
            self._register(opened)
        except self._libvirt.libvirtError as error:
            log.warning(f"libvirt is not reachable at {text.plain(self._uri)}: {text.output(str(error))}")
            return False
        self._opened = opened
        self._tell(None)
        return True

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
