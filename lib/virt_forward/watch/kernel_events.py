"""Events of the kernel: the table deleted by somebody, and neighbours learned."""

import contextlib
import os
import socket
import struct
import subprocess
from collections.abc import Iterator
from ipaddress import ip_address

from virt_forward.model import Address
from virt_forward.process import ENVIRONMENT

RTMGRP_NEIGH = 0x4
RTM_NEWNEIGH = 28
NDA_DST, NDA_LLADDR = 1, 2
"""linux/rtnetlink.h, linux/neighbour.h."""


TABLE_GONE = (b"delete table inet virt-forward", b"delete rule inet virt-forward dispatch ")
"""What ``nft monitor`` prints where somebody deletes our table, or flushes it."""


class TableMonitor:
    """``nft monitor``, for tables that are deleted and chains made anew; started again where it ends."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> int | None:
        """Return a descriptor that becomes readable with each event, or None without nft."""
        try:
            self._process = subprocess.Popen(
                ["nft", "monitor"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=ENVIRONMENT,
            )
        except OSError:
            return None
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        return self._process.stdout.fileno()

    def read(self) -> bytes | None:
        """Return what it printed since the last call; None where the monitor has ended."""
        assert self._process is not None
        assert self._process.stdout is not None
        text = b""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self._process.stdout.fileno(), 65536):
                text += chunk
            return None
        return text

    def stop(self) -> None:
        """End the monitor."""
        if self._process:
            self._process.kill()
            self._process.wait(5)
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None


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

    def read(self) -> set[tuple[str, Address]] | None:
        """Return the (MAC, address) pairs that were learned; None where events were lost."""
        found: set[tuple[str, Address]] = set()
        try:
            while True:
                found.update(neighbours(self._socket.recv(65536)))
        except BlockingIOError:
            return found
        except OSError:
            # ENOBUFS: more came than the socket holds.
            return None

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def neighbours(data: bytes) -> Iterator[tuple[str, Address]]:
    """Yield the (MAC, address) pairs in a buffer of netlink messages; damaged ones end it."""
    while len(data) >= 16:
        length, kind = struct.unpack_from("=IH", data)
        if length < 28 or length > len(data):
            return
        if kind == RTM_NEWNEIGH:
            # struct ndmsg is 12 bytes; attributes follow it.
            found = dict(_attributes(data[28:length]))
            mac, raw = found.get(NDA_LLADDR, b""), found.get(NDA_DST, b"")
            if len(mac) == 6 and len(raw) in (4, 16):
                yield mac.hex(":"), ip_address(raw)
        data = data[(length + 3) & ~3 :]


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length < 4:
            return
        yield kind, data[4:length]
        data = data[(length + 3) & ~3 :]
