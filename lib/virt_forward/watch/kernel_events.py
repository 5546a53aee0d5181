"""Events of the kernel: our table deleted; neighbours, addresses and default routes changed."""

import contextlib
import math
import os
import select
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from ipaddress import ip_address
from typing import NamedTuple

from virt_forward.host import log, netlink
from virt_forward.host.process import ENVIRONMENT
from virt_forward.model import Address
from virt_forward.watch.backoff import BACKOFF_SECONDS, Backoff

RTMGRP_NEIGH = 0x4
RTMGRP_IFADDR, RTMGRP_ROUTE = 0x10 | 0x100, 0x40 | 0x400  # of IPv4 and IPv6
RTM_NEWADDR, RTM_DELADDR, RTM_NEWROUTE, RTM_DELROUTE = 20, 21, 24, 25
RTM_NEWNEIGH, RTM_DELNEIGH = 28, 29
RT_SCOPE_LINK = 253
NDA_DST, NDA_LLADDR = 1, 2
NUD_FAILED = 0x20
"""linux/rtnetlink.h, linux/neighbour.h."""

_MESSAGE = struct.Struct("=8xH2x")
"""struct ndmsg: of all its fields, ndm_state."""

TABLE_DELETED = (
    b"delete table inet virt-forward",
    b"delete rule inet virt-forward postrouting ",
    b"# ERROR: ",  # "We lost some netlink events!" (nftables' src/mnl.c): any event may be among them
)
"""What ``nft monitor`` prints if our table is deleted or flushed, or may have been."""

MAX_CHUNKS, MAX_LINE = 64, 4096
"""The most reads at once, and the most bytes that are kept of an incomplete line."""

STABLE_SECONDS = 10.0
"""How long a monitor has to run for the backoff to start again."""


class TableMonitor:
    """``nft monitor``, for deleted tables and rebuilt chains; it is restarted when it ends."""

    def __init__(self, poller: select.poll) -> None:
        self._poller = poller
        self._process: subprocess.Popen[bytes] | None = None
        # The monitor of nft 1.0.6 ends when our table is first added, so the first restart is immediate.
        self._backoff = Backoff((0.05, *BACKOFF_SECONDS))
        self._started = -math.inf
        self._next_start = -math.inf
        self._warned = False
        self._incomplete = self._last = b""

    def next_at(self) -> float:
        """Return when the monitor is to be started, on the monotonic clock; infinity while it runs."""
        return math.inf if self._process else self._next_start

    def start(self) -> None:
        """Start the monitor; after a failure, ``next_at`` returns when to try again."""
        self._started, self._incomplete, self._last = time.monotonic(), b"", b""
        try:
            self._process = subprocess.Popen(
                ["nft", "monitor"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=ENVIRONMENT,
            )
        except OSError as error:
            self._schedule_restart(str(error.strerror))
            return
        os.set_blocking(self.fileno(), False)
        self._poller.register(self.fileno(), select.POLLIN)

    def fileno(self) -> int:
        """Return the descriptor that becomes readable with each event; -1 while the monitor does not run."""
        return self._process.stdout.fileno() if self._process and self._process.stdout else -1

    def read(self) -> bytes:
        """Return the complete lines that were printed since the last call."""
        text = self._incomplete
        with contextlib.suppress(BlockingIOError):
            for _ in range(MAX_CHUNKS):
                chunk = os.read(self.fileno(), 65536)
                text += chunk
                if not chunk:
                    self.stop()
                    last = _last_line(text) or self._last
                    self._schedule_restart(last.decode("utf-8", "replace") or "no message")
                    return text
        whole, end, rest = text.rpartition(b"\n")
        self._incomplete, self._last = rest[-MAX_LINE:], _last_line(whole) or self._last
        return whole + end

    def stop(self) -> None:
        """End the monitor."""
        if self._process:
            self._poller.unregister(self.fileno())
            self._process.kill()
            self._process.wait(5)
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None

    def _schedule_restart(self, reason: str) -> None:
        now = time.monotonic()
        if now - self._started >= STABLE_SECONDS:
            self._backoff.reset()
            self._warned = False
        self._next_start = now + self._backoff.wait()
        if not self._warned:
            self._warned = True
            log.warning(f"watch: nft monitor has ended: {reason!r}; restarting it with increasing delays")


def _last_line(text: bytes) -> bytes:
    return text.strip().rpartition(b"\n")[2][:200]


class Neighbour(NamedTuple):
    """A changed entry of the neighbour table; ``mac`` is empty if it is not known.

    ``removed`` tells that the entry was deleted or has failed: there is no answer at the address.
    """

    ip: Address
    mac: str
    removed: bool = False


class _Monitor:
    """Some groups of rtnetlink(7)."""

    GROUPS: int

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        self._socket.bind((0, self.GROUPS))
        self._socket.setblocking(False)

    def fileno(self) -> int:
        """Return the descriptor that becomes readable with each event."""
        return self._socket.fileno()

    def _chunks(self) -> list[bytes] | None:
        """Return what has come since the last call; None if events were lost."""
        found: list[bytes] = []
        try:
            while len(found) < MAX_CHUNKS:
                found.append(self._socket.recv(65536))
        except BlockingIOError:
            pass
        except OSError:
            # ENOBUFS: the receive buffer has overflowed.
            return None
        return found

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


class NeighbourMonitor(_Monitor):
    """The neighbour table."""

    GROUPS = RTMGRP_NEIGH

    def read(self) -> set[Neighbour] | None:
        """Return the entries that changed since the last call; None if events were lost."""
        chunks = self._chunks()
        return None if chunks is None else {found for data in chunks for found in neighbours(data)}


class HostMonitor(_Monitor):
    """The host's addresses and routes."""

    GROUPS = RTMGRP_IFADDR | RTMGRP_ROUTE

    def read(self) -> bool:
        """Tell whether an address or a default route may have changed since the last call."""
        chunks = self._chunks()
        return chunks is None or any(map(concerns_guests, chunks))


def concerns_guests(data: bytes) -> bool:
    """Tell whether a message in a buffer is about an address or a default route, up to a damaged one.

    From these follow the subnets of bridges, and which of them have an uplink. Link-local addresses,
    which every new tap has, are left out.
    """
    with contextlib.suppress(OSError):
        for kind, _, _, payload in netlink.messages(data):
            # struct ifaddrmsg begins with family, prefix length, flags and scope, struct rtmsg with family
            # and prefix length.
            if kind in (RTM_NEWADDR, RTM_DELADDR) and len(payload) > 3 and payload[3] != RT_SCOPE_LINK:
                return True
            if kind in (RTM_NEWROUTE, RTM_DELROUTE) and len(payload) > 1 and payload[1] == 0:
                return True
    return False


def neighbours(data: bytes) -> Iterator[Neighbour]:
    """Yield the IP neighbours in a buffer of netlink messages (rtnetlink(7)), up to a damaged one.

    Entries without a MAC address are left out, unless they are removed.
    """
    with contextlib.suppress(OSError):
        for message in netlink.messages(data):
            if message.kind in (RTM_NEWNEIGH, RTM_DELNEIGH) and len(message.payload) >= _MESSAGE.size:
                yield from _neighbour(message)


def _neighbour(message: netlink.Message) -> Iterator[Neighbour]:
    (state,) = _MESSAGE.unpack_from(message.payload)
    found = dict(netlink.attributes(message.payload[_MESSAGE.size :]))
    mac, raw = found.get(NDA_LLADDR, b""), found.get(NDA_DST, b"")
    removed = message.kind == RTM_DELNEIGH or bool(state & NUD_FAILED)
    if len(raw) in (4, 16) and (removed or len(mac) == 6):
        yield Neighbour(ip_address(raw), mac.hex(":") if len(mac) == 6 else "", removed)
