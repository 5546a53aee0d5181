"""Messages to the journal, also if it does not read them."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from virt_forward.host import log


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    path = str(tmp_path / "log")
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


def test_missing_journal_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "SOCKET", str(tmp_path / "none"))
    log.error("lost")
