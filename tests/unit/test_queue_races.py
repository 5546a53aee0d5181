"""A start that is queued without the lock, at each step of the event that has it: its stop is seen."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from support.fake_host import FakeHost, fake_host
from support.xml import domain, forwards, host_ip, port_forward, uuid_of
from unit.build import forward
from unit.expected_table import guest, holds
from virt_forward.errors import StateError
from virt_forward.hooks import dispatch
from virt_forward.metadata.domain import parse_known
from virt_forward.reconcile.wants import Present
from virt_forward.state import database
from virt_forward.state.store import Store

WEB_XML = (host_ip("10.10.0.200"), port_forward("8080:80"))
DB_XML = (host_ip("10.10.0.201"), port_forward("5432"))
db = guest("db", "10.10.0.201", forward(5432))

STARTED = domain("web", forwards(*WEB_XML), phase="started").encode()


class Late:
    """``started`` of the guest web, which queues it in step ``number`` of another event."""

    def __init__(self, host: FakeHost, number: int) -> None:
        self.marker = host.run_dir / "guests" / uuid_of("web")
        self.left, self.done, self.vanished, self._busy = number, False, False, False

    def step(self) -> None:
        if self._busy:
            return
        self.vanished |= self.done and not self.marker.exists()
        if self.left:
            self.left -= 1
        elif not self.done:
            self._busy = True
            # While the other event is in a transaction it waits, and its turn comes in a later step.
            with contextlib.suppress(StateError):
                dispatch._queue(Present(parse_known(STARTED), "running"), Store())
                self.done = True
            self._busy = False


def taken_stop(_host: FakeHost) -> None:
    """Leave a queued stop of web to the event that follows, which then finds no guest in its record."""
    with Store().peek() as state:
        assert state
        state.queue(uuid_of("web"), None)


def rebuild(host: FakeHost) -> None:
    """Leave a rebuild to the event that follows, which removes a marker without a guest as well."""
    host.event("web", "release", *WEB_XML)
    (host.run_dir / "guests" / uuid_of("app")).touch()
    host.nft.flush_ruleset()


@pytest.mark.parametrize("before", [taken_stop, rebuild], ids=["taken stop", "rebuild"])
def test_marker_of_a_queued_guest_stays_whichever_step_of_another_event_queues_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: Callable[[FakeHost], None]
) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.0)
    number, reached = 0, True
    while reached:
        directory = tmp_path / str(number)
        directory.mkdir()
        with fake_host(directory) as host:
            host.start("db", *DB_XML)
            host.event("web", "prepare", *WEB_XML)
            before(host)
            late = Late(host, number)
            with monkeypatch.context() as patch:
                patch.setattr(host, "step", late.step)
                assert host.event("db", "reconnect", *DB_XML) == 0
            reached = late.left == 0
            if reached and not late.done:
                late.step()
            assert not reached or (late.marker.exists() and not late.vanished), number
            host.stop("web", *WEB_XML)
            host.event("db", "reconnect", *DB_XML)
            assert holds(host, db), number
        number += 1
    assert number > 4
