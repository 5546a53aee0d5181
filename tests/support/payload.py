"""Tiny servers that say who they are and whom they saw, and clients that ask them.

A socket stays in the network namespace it was made in, whichever thread uses it: so the servers are threads
of the test itself, and an answer takes a millisecond instead of a process.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import random
import selectors
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from support import sctp

Result = TypeVar("Result")
ANSWERED, SILENCE = 10.0, 0.15
"""Seconds to wait for an answer that must come, and for one that must not.

The kernel passes a packet on at once; what takes longer is a server that has to be scheduled, which a loaded
machine may do late: a short wait tells nothing of an answer that must come. Of silence, it is better evidence
that no server was reached: ``settle`` waits for what is on its way.
"""
CLONE_NEWNET = 0x40000000
V4, V6 = socket.AF_INET, socket.AF_INET6
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Answer:
    """What a server said: its name, the client it saw, and the port it was asked on."""

    name: str
    source: str
    sport: int
    port: int


def _enter(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.setns(handle, CLONE_NEWNET):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
    finally:
        os.close(handle)


def inside(path: Path, call: Callable[[], Result]) -> Result:
    """Call in the network namespace at ``path``: a thread enters it, and ends there."""
    with ThreadPoolExecutor(1, initializer=_enter, initargs=(path,)) as pool:
        return pool.submit(call).result()


def family_of(address: str) -> socket.AddressFamily:
    return V6 if ":" in address else V4


def _new_socket(family: socket.AddressFamily, proto: str) -> socket.socket:
    if proto == "sctp":
        made = socket.socket(family, socket.SOCK_RAW, sctp.IPPROTO_SCTP)
    else:
        made = socket.socket(family, socket.SOCK_STREAM if proto == "tcp" else socket.SOCK_DGRAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == V6 and proto != "sctp":
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return made


def socket_in(path: Path, family: socket.AddressFamily, proto: str = "tcp") -> socket.socket:
    """Make a socket that lives in the namespace at ``path``."""
    return inside(path, lambda: _new_socket(family, proto))


class Server:
    """Answers on some ports of one protocol, both families unless one address is named, until closed."""

    def __init__(
        self, path: Path, name: str, proto: str, ports: tuple[int, ...], address: str | None = None
    ) -> None:
        self.name, self.proto, self.ports = name, proto, ports
        self.asked: list[Answer] = []
        self._closed = False
        self._settling, self._settled = False, threading.Event()
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ)
        hosts = [address] if address else ["0.0.0.0", "::"]
        with contextlib.ExitStack() as undo:
            undo.callback(self._close_sockets)
            inside(path, lambda: self._listen(hosts))
            undo.pop_all()
        self._thread = threading.Thread(target=self._serve, name=f"server {name}", daemon=True)
        self._thread.start()

    def _listen(self, hosts: list[str]) -> None:
        ports = (0,) if self.proto == "sctp" else self.ports
        for host, port in itertools.product(hosts, ports):
            made = _new_socket(family_of(host), self.proto)
            self._selector.register(made, selectors.EVENT_READ)
            made.bind((host, port))
            if self.proto == "tcp":
                made.listen(64)
            made.setblocking(False)

    def _serve(self) -> None:
        while True:
            ready = self._selector.select(0 if self._settling else None)
            if not ready:
                self._settling = False
                self._settled.set()
            for key, _ in ready:
                if key.fileobj is self._woken:
                    if self._woken.recv(1) == b"x":
                        return
                    self._settling = True
                elif isinstance(key.fileobj, socket.socket):
                    with contextlib.suppress(OSError):
                        self._one(key.fileobj)

    def _one(self, ready: socket.socket) -> None:
        if self.proto == "tcp" and ready.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            connection, _ = ready.accept()
            connection.setblocking(False)
            self._selector.register(connection, selectors.EVENT_READ)
        elif self.proto == "tcp":
            self._talk(ready)
        elif self.proto == "udp":
            _, peer = ready.recvfrom(2048)
            ready.sendto(self._words(peer, ready.getsockname()[1]), peer)
        else:
            self._associate(ready)

    def _talk(self, connection: socket.socket) -> None:
        try:
            asked = connection.recv(2048)
            if asked:
                connection.sendall(self._words(connection.getpeername(), connection.getsockname()[1]))
                return
        except OSError:
            asked = b""
        self._selector.unregister(connection)
        connection.close()

    def _associate(self, raw: socket.socket) -> None:
        datagram, peer = raw.recvfrom(2048)
        parsed = sctp.parse(sctp.payload(datagram, raw.family == V4))
        if parsed and parsed[2] == sctp.INIT and parsed[1] in self.ports:
            words = self._words((peer[0], parsed[0]), parsed[1])
            raw.sendto(sctp.init_ack(parsed[1], parsed[0], words), (peer[0], 0))

    def _words(self, peer: tuple[str, int], port: int) -> bytes:
        answer = Answer(self.name, peer[0], peer[1], port)
        self.asked.append(answer)
        return f"{answer.name} {answer.source} {answer.sport} {answer.port}\n".encode()

    def settle(self) -> None:
        """Wait until everything that has reached the server by now is in ``asked``."""
        self._settled.clear()
        self._wake.send(b"s")
        assert self._settled.wait(10), f"server {self.name} does not end its work"

    def _close_sockets(self) -> None:
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        self._selector.close()
        self._wake.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._wake.send(b"x")
        self._thread.join(5)
        self._close_sockets()


def understand(words: bytes) -> Answer | None:
    parts = words.decode(errors="replace").split()
    return Answer(parts[0], parts[1], int(parts[2]), int(parts[3])) if len(parts) == 4 else None


class Conversation:
    """A client's open socket: what keeps a flow alive in conntrack while rules change around it."""

    def __init__(
        self, path: Path, host: str, port: int, proto: str = "tcp",
        *, source: str | None = None, sport: int = 0, wait: float = ANSWERED,
    ) -> None:  # fmt: skip
        self.proto, self.host, self.port = proto, host, port
        self.socket = socket_in(path, family_of(host), proto)
        self.socket.settimeout(wait)
        with contextlib.ExitStack() as undo:
            undo.callback(self.socket.close)
            # A raw socket has no ports of its own: they stand in the packets.
            raw = proto == "sctp"
            if source or sport:
                self.socket.bind((source or ("::" if ":" in host else "0.0.0.0"), 0 if raw else sport))
            self.socket.connect((host, 0 if raw else port))
            undo.pop_all()
        self.sport = sport or (random.randrange(40000, 60000) if raw else self.socket.getsockname()[1])

    def ask(self) -> Answer | None:
        """Ask once more on the same flow; None for a refusal. Raises TimeoutError for silence."""
        try:
            if self.proto == "sctp":
                return self._ask_sctp()
            self.socket.send(b"who are you?\n")
            return understand(self.socket.recv(2048))
        except TimeoutError:
            raise
        except OSError:
            return None

    def unanswered(self) -> bool:
        """Ask once more where silence, or a refusal, is expected: tell whether no answer comes soon."""
        before = self.socket.gettimeout()
        self.socket.settimeout(SILENCE)
        try:
            return self.ask() is None
        except TimeoutError:
            return True
        finally:
            self.socket.settimeout(before)

    def _ask_sctp(self) -> Answer | None:
        self.socket.send(sctp.init(self.sport, self.port))
        while True:
            datagram = self.socket.recv(2048)
            parsed = sctp.parse(sctp.payload(datagram, self.socket.family == V4))
            if parsed and parsed[:3] == (self.port, self.sport, sctp.INIT_ACK):
                return understand(parsed[3])

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def ask(
    path: Path, host: str, port: int, proto: str = "tcp", *, source: str | None = None, sport: int = 0,
    wait: float = ANSWERED,
) -> Answer | None:  # fmt: skip
    """Ask once from the namespace at ``path``; None for a refusal. Raises TimeoutError for silence."""
    try:
        with Conversation(path, host, port, proto, source=source, sport=sport, wait=wait) as talk:
            return talk.ask()
    except TimeoutError:
        raise TimeoutError(
            f"nobody has answered on {host} {proto}/{port} for {wait} s (if that is right: unanswered())"
        ) from None
    except OSError:
        return None
