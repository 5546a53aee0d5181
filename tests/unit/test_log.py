"""Messages to the journal, also if it does not read them."""

from __future__ import annotations

import _socket
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from virt_forward.host import log


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    path = str(tmp_path / "log")
    monkeypatch.setattr(log, "_until", 0.0)
    monkeypatch.setattr(log, "SOCKET", path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(path)
        server.setblocking(False)
        yield server


def test_message_has_priority_time_and_identifier(journal: socket.socket) -> None:
    log.error("one")
    log.warning("two")
    log.info("three\nlines")
    form = rb"<(\d+)>[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d virt-forward\[\d+\]: (.*)"
    found = [re.fullmatch(form, journal.recv(1000)) for _ in range(3)]
    assert [match and match.groups() for match in found] == [
        (b"27", b"one"),
        (b"28", b"two"),
        (b"30", b"three?lines"),
    ]


def test_blocked_journal_does_not_block(journal: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """libvirtd waits for the hook, and syslog(3) would wait for the journal forever."""
    monkeypatch.setattr(log, "SECONDS", 0.001)
    # As many as its queue takes, and some more.
    room = int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text())
    for number in range(room + 10):
        log.error(f"message {number}")
    assert b"message 0" in journal.recv(1000)


def test_messages_wait_together_no_longer_than_one_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal that takes a message now and then would keep libvirtd waiting for each."""
    waits: list[float] = []
    clock = [1000.0]

    class Slow:
        """A socket that takes a message in 0.15 seconds."""

        def __init__(self, *_: int) -> None:
            self.limit = 0.0

        def settimeout(self, limit: float) -> None:
            self.limit = limit

        def connect(self, _path: str) -> None:
            """Connect to the journal."""

        def send(self, _data: bytes) -> None:
            waits.append(min(0.15, self.limit))
            clock[0] += waits[-1]
            if self.limit < 0.15:
                raise TimeoutError

        def close(self) -> None:
            """Close the socket."""

    monkeypatch.setattr(_socket, "socket", Slow)
    monkeypatch.setattr(log, "_until", 0.0)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    for _ in range(100):
        log.error("message")
    assert len(waits) == 100
    assert sum(waits) == pytest.approx(log.SECONDS)
    clock[0] += log.WINDOW_SECONDS
    log.error("message")
    assert waits[-1] == 0.15, "a process that goes on waits again"


def test_missing_journal_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "SOCKET", str(tmp_path / "none"))
    log.error("lost")
