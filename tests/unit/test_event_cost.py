"""What an event reads: it costs the same whatever the number of other guests."""

from __future__ import annotations

import _sqlite3
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from support.fake_host import FakeHost, fake_host
from support.state import in_memory
from support.xml import host_ip, port_forward
from unit.build import endpoint, forward, guest, uuid_of
from virt_forward.claims.rows import rows
from virt_forward.model import Guest
from virt_forward.state.snapshot import Commit, Snapshot
from virt_forward.state.store import Store

WEB = (host_ip("10.10.0.200"), port_forward("8080:80", "443", "5000-5020:6000"))
DB = (host_ip("10.10.0.201"), port_forward("5432"))


class Cost(NamedTuple):
    """What was asked of the database: statements, rows that came back, and SQLite's own steps."""

    statements: int
    rows: int
    steps: int


def crowd(number: int) -> list[Guest]:
    """Return running guests on the bridge of the others, with a port each, and some more that lost one."""
    found = []
    for n in range(number):
        own = endpoint(f"10.10.{1 + n // 200}.{n % 200 + 1}", mac=f"52:54:01:00:{n // 256:02x}:{n % 256:02x}")
        kept_out = ((forward(20_000), "host port tcp/20000 is taken by guest db"),) if n % 3 == 0 else ()
        made = guest(f"g{n}", forward(10_000 + n), endpoints=[own])
        found.append(made._replace(conflicts=kept_out))
    return found


def counted(host: FakeHost, event: Callable[[FakeHost], object]) -> Cost:
    """Run an event, and return what it asked of the database."""
    statements, steps, found = [0], [0], [0]
    plain = Snapshot._all

    def step() -> None:
        steps[0] += 1

    def connect(*arguments: Any, **named: Any) -> sqlite3.Connection:
        made: sqlite3.Connection = opened(*arguments, **named)
        made.set_progress_handler(step, 1)
        made.set_trace_callback(lambda _: statements.__setitem__(0, statements[0] + 1))
        return made

    def noted(state: Snapshot, *arguments: object) -> list[object]:
        result = plain(state, *arguments)  # type: ignore[arg-type]
        found[0] += len(result)
        return result

    with pytest.MonkeyPatch.context() as patch:
        opened = _sqlite3.connect
        patch.setattr(_sqlite3, "connect", connect)
        patch.setattr(Snapshot, "_all", noted)
        event(host)
    return Cost(statements[0], found[0], steps[0])


EVENTS: dict[str, Callable[[FakeHost], object]] = {
    "prepare": lambda host: host.event("web", "prepare", *WEB),
    "started": lambda host: host.event("web", "started", *WEB),
    "reconnect": lambda host: host.event("web", "reconnect", *WEB),
    "stopped": lambda host: host.event("web", "stopped", *WEB),
}


def costs(directory: Path, others: int) -> dict[str, Cost]:
    """Return what each event of a guest costs beside a number of other guests."""
    with fake_host(directory) as host:
        with Store().open() as state:
            state.commit(Commit({made.uuid: made for made in crowd(others)}))
        # The table is made of all of them.
        host.start("db", *DB)
        return {name: counted(host, event) for name, event in EVENTS.items()}


def test_event_costs_the_same_beside_six_hundred_guests(tmp_path: Path) -> None:
    few, many = (costs(tmp_path / str(number), number) for number in (6, 600))
    for name in EVENTS:
        assert few[name].statements == many[name].statements, name
        assert few[name].rows == many[name].rows, name
        # A search in a larger index goes through a step or two more.
        assert many[name].steps < 1.1 * few[name].steps, name


def test_event_reads_no_record_but_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    plain = Snapshot._guest

    def noted(state: Snapshot, uuid: str, record: str) -> Guest:
        read.append(uuid)
        return plain(state, uuid, record)

    with fake_host(tmp_path) as host:
        host.start("db", *DB)
        monkeypatch.setattr(Snapshot, "_guest", noted)
        host.start("web", *WEB)
        host.stop("web", *WEB)
    assert set(read) == {uuid_of("web")}


def test_search_for_claims_reads_those_near_and_no_others() -> None:
    """A span is searched for by its ports, however wide other claims are."""
    wide = guest("wide", forward(30_000, 40_000), endpoints=[endpoint("10.10.200.1")])
    state = in_memory(*crowd(300), wide)
    wanted = guest("web", forward(10_100, 10_102), forward(35_000), endpoints=[endpoint("10.10.201.1")])
    names = sorted({row.name for row in state.near(rows(wanted), ()) if row.name != "web"})
    assert names[:3] == ["g100", "g101", "g102"]
    assert names[-1] == "wide"
