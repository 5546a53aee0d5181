"""Events of the kernel: the table deleted by somebody, and neighbours that come, change and go."""

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

from virt_forward.host import log
from virt_forward.host.process import ENVIRONMENT
from virt_forward.model import Address
from virt_forward.watch.backoff import BACKOFF_SECONDS, Backoff

RTMGRP_NEIGH = 0x4
RTM_NEWNEIGH, RTM_DELNEIGH = 28, 29
NDA_DST, NDA_LLADDR = 1, 2
NUD_FAILED = 0x20
"""linux/rtnetlink.h, linux/neighbour.h."""

TABLE_GONE = (
    b"delete table inet virt-forward",
    b"delete rule inet virt-forward dispatch ",
    b"# ERROR: ",  # "We lost some netlink events!" (nftables' src/mnl.c): what they were, nobody knows
)
"""What ``nft monitor`` prints where somebody deletes our table or flushes it, or may have done so."""

MOST_CHUNKS, LONGEST_LINE = 64, 4096
"""How much is read at once, and kept of a line that has no end yet."""


STAYED_UP_SECONDS = 10.0
"""How long a monitor has to be up for its end to count as the first."""


class TableMonitor:
    """``nft monitor``, for tables that are deleted and chains made anew; started again where it ends."""

    def __init__(self, poller: select.poll) -> None:
        self._poller = poller
        self._process: subprocess.Popen[bytes] | None = None
        # The monitor of nft 1.0.6 ends as our table is first made: once is no reason to wait.
        self._backoff = Backoff((0.05, *BACKOFF_SECONDS))
        self._started = -math.inf
        self._start_at = -math.inf
        self._told = False
        self._rest = b""

    def next_at(self) -> float:
        """Return when it is to be started, on the monotonic clock; infinity while it runs."""
        return math.inf if self._process else self._start_at

    def start(self) -> None:
        """Start it; where that fails, ``next_at`` tells when to try again."""
        self._started, self._rest = time.monotonic(), b""
        try:
            self._process = subprocess.Popen(
                ["nft", "monitor"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=ENVIRONMENT,
            )
        except OSError as error:
            self._ended(str(error.strerror))
            return
        os.set_blocking(self.fileno(), False)
        self._poller.register(self.fileno(), select.POLLIN)

    def fileno(self) -> int:
        """Return the descriptor that becomes readable with each event; -1 while it does not run."""
        return self._process.stdout.fileno() if self._process and self._process.stdout else -1

    def read(self) -> bytes:
        """Return what it printed since the last call, by whole lines."""
        text = self._rest
        with contextlib.suppress(BlockingIOError):
            for _ in range(MOST_CHUNKS):
                chunk = os.read(self.fileno(), 65536)
                text += chunk
                if not chunk:
                    self.stop()
                    last = text.strip().rpartition(b"\n")[2][:200]
                    self._ended(last.decode("utf-8", "replace") or "without a word")
                    return text
        whole, end, rest = text.rpartition(b"\n")
        self._rest = rest[-LONGEST_LINE:]
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

    def _ended(self, how: str) -> None:
        now = time.monotonic()
        if now - self._started >= STAYED_UP_SECONDS:
            self._backoff.reset()
            self._told = False
        self._start_at = now + self._backoff.wait()
        if not self._told:
            self._told = True
            log.warning(f"watch: nft monitor has ended: {how!r}; it is started again, less often each time")


class Neighbour(NamedTuple):
    """An entry of the neighbour table that changed; ``mac`` is empty where it is not known.

    ``gone`` tells that the entry was deleted, or that nobody answers at the address any more.
    """

    ip: Address
    mac: str
    gone: bool = False


class NeighbourMonitor:
    """rtnetlink's neighbour group (rtnetlink(7))."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        self._socket.bind((0, RTMGRP_NEIGH))
        self._socket.setblocking(False)

    def fileno(self) -> int:
        """Return the descriptor to wait for."""
        return self._socket.fileno()

    def read(self) -> set[Neighbour] | None:
        """Return the entries that changed; None where events were lost."""
        found: set[Neighbour] = set()
        try:
            for _ in range(MOST_CHUNKS):
                found.update(neighbours(self._socket.recv(65536)))
        except BlockingIOError:
            pass
        except OSError:
            # ENOBUFS: more came than the socket holds.
            return None
        return found

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def neighbours(data: bytes) -> Iterator[Neighbour]:
    """Yield the IP neighbours in a buffer of netlink messages; damaged ones end it.

    An entry that is being resolved, or has no hardware address of six bytes, tells nothing.
    """
    while len(data) >= 16:
        length, kind = struct.unpack_from("=IH", data)
        if length < 28 or length > len(data):
            return
        if kind in (RTM_NEWNEIGH, RTM_DELNEIGH):
            # struct ndmsg is 12 bytes, the state among them; attributes follow it.
            state = struct.unpack_from("=H", data, 24)[0]
            found = dict(_attributes(data[28:length]))
            mac, raw = found.get(NDA_LLADDR, b""), found.get(NDA_DST, b"")
            gone = kind == RTM_DELNEIGH or bool(state & NUD_FAILED)
            if len(raw) in (4, 16) and (gone or len(mac) == 6):
                yield Neighbour(ip_address(raw), mac.hex(":") if len(mac) == 6 else "", gone)
        data = data[(length + 3) & ~3 :]


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length < 4:
            return
        yield kind, data[4:length]
        data = data[(length + 3) & ~3 :]
