"""Whole events of the qemu hook on a fake host: the table afterwards is what a fresh load makes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from support.ctnetlink import connection
from support.fake_host import FakeHost, fake_host
from support.netns import CLIENT4, HOST4
from support.xml import host_ip, port_forward, uuid_of
from unit.build import forward
from unit.expected_table import guest, holds, include_loads_the_same
from virt_forward import text
from virt_forward.claims.sockets import Listener
from virt_forward.errors import NftError, NftTimeout, VirtForwardError
from virt_forward.hooks import dispatch
from virt_forward.host import collect, starter
from virt_forward.reconcile import refresh
from virt_forward.state.store import Store

WEB, DB = "10.10.0.200", "10.10.0.201"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[FakeHost]:
    with fake_host(tmp_path) as made:
        yield made


web = guest("web", WEB, forward(8080, to=80))
db = guest("db", DB, forward(5432))
WEB_XML = (host_ip(WEB), port_forward("8080:80"))
DB_XML = (host_ip(DB), port_forward("5432"))
APP_XML = (host_ip("10.10.0.202"), port_forward("9090"))


def test_guest_without_metadata_runs_no_program(host: FakeHost) -> None:
    host.start("web")
    host.stop("web")
    assert host.nft.applied == []
    assert host.programs == []


def test_prepare_claims_and_started_adds_rules(host: FakeHost) -> None:
    assert host.event("web", "prepare", *WEB_XML) == 0
    assert holds(host)
    assert host.event("web", "started", *WEB_XML) == 0
    assert holds(host, web)


@pytest.mark.parametrize("operation", ["prepare", "started"])
def test_event_is_handled_again_where_the_run_directory_is_removed_meanwhile(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    mark = Store.mark

    def remove_once(store: Store, *words: object) -> None:
        monkeypatch.setattr(Store, "mark", mark)
        shutil.rmtree(store.path)
        mark(store, ["web"])

    monkeypatch.setattr(Store, "mark", remove_once)
    assert host.event("web", operation, *WEB_XML) == 0
    monkeypatch.setattr(Store, "mark", mark)
    assert host.event("web", "started", *WEB_XML) == 0
    assert holds(host, web)


def test_start_and_stop_leave_the_table_of_the_others(host: FakeHost) -> None:
    host.start("db", *DB_XML)
    before = host.nft.plain_listing()
    host.start("web", *WEB_XML)
    assert holds(host, web, db)
    assert include_loads_the_same(host)
    host.stop("web", *WEB_XML)
    assert holds(host, db)
    assert before != host.nft.plain_listing()  # the revision alone differs
    host.stop("db", *DB_XML)
    assert holds(host)
    assert include_loads_the_same(host)


def test_reconnect_with_nothing_new_changes_nothing(host: FakeHost) -> None:
    host.start("web", *WEB_XML)
    revision, flows = host.nft.revision(), [connection(CLIENT4, (HOST4, 8080), (WEB, 80))]
    host.connections = [*flows]
    host.event("web", "reconnect", *WEB_XML)
    assert holds(host, web)
    assert host.connections == flows
    assert (host.nft.revision() or 0) >= (revision or 0)


def test_conflicting_guest_is_refused_and_starts_after_the_other_stops(
    host: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    host.start("web", *WEB_XML)
    rival = (host_ip(DB), port_forward("8080:80"))
    assert host.event("db", "prepare", *rival) == 1
    said = capsys.readouterr().err
    assert "host port tcp/8080 is taken by guest web" in said
    # The copy that virt-clone makes has the forwards of the original.
    assert "virt-forward remove db --all --config removes this guest's forwards" in said
    assert host.event("db", "release", *rival) == 0
    assert holds(host, web)
    host.stop("web", *WEB_XML)
    host.start("db", *rival)
    assert holds(host, guest("db", DB, forward(8080, to=80)))


def test_conflicting_guest_that_runs_gets_its_port_when_the_other_stops(host: FakeHost) -> None:
    host.config.write_text('[policy]\non_error = "warn"\n')
    host.start("web", *WEB_XML)
    host.start("db", host_ip(DB), port_forward("8080:80", "5432"))
    assert holds(host, web, db)
    host.stop("web", *WEB_XML)
    assert holds(host, guest("db", DB, forward(5432), forward(8080, to=80)))


def test_port_on_which_the_host_listens_is_refused(
    host: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    host.listeners = [Listener("tcp", ip_address("0.0.0.0"), 8080, 4711)]
    assert host.event("web", "prepare", *WEB_XML) == 1
    assert "tcp/8080" in capsys.readouterr().err
    assert holds(host)


def test_restart_with_another_address_moves_the_rules_and_ends_old_flows(host: FakeHost) -> None:
    host.start("web", *WEB_XML)
    host.start("db", *DB_XML)
    kept = connection(CLIENT4, (HOST4, 5432), (DB, 5432))
    host.connections = [connection(CLIENT4, (HOST4, 8080), (WEB, 80)), kept]
    host.stop("web", *WEB_XML)
    assert host.connections == [kept]
    host.start("web", host_ip("10.10.0.210"), port_forward("8080:80"))
    assert holds(host, guest("web", "10.10.0.210", forward(8080, to=80)), db)


def test_reconnect_with_another_address_moves_the_rules_and_ends_old_flows(host: FakeHost) -> None:
    host.start("web", *WEB_XML)
    kept = connection(CLIENT4, (HOST4, 22), (HOST4, 22))
    host.connections = [connection(CLIENT4, (HOST4, 8080), (WEB, 80)), kept]
    host.event("web", "reconnect", host_ip("10.10.0.210"), port_forward("8080:80"))
    assert holds(host, guest("web", "10.10.0.210", forward(8080, to=80)))
    assert host.connections == [kept]


def test_start_ends_udp_flows_that_clients_opened_to_the_host(host: FakeHost) -> None:
    own = [connection(CLIENT4, (HOST4, port), (HOST4, port), "udp") for port in (53, 54)]
    host.connections = [*own]
    host.start("web", host_ip(WEB), port_forward("53", proto="udp"))
    assert host.connections == own[1:]


def test_host_that_tracks_nothing_is_not_asked_for_connections(host: FakeHost) -> None:
    host.start("web", host_ip(WEB), port_forward("53", proto="udp"))
    host.stop("web")
    assert host.dumps == 0
    host.connections = [connection(CLIENT4, (HOST4, 22), (HOST4, 22))]
    host.start("web", host_ip(WEB), port_forward("53", proto="udp"))
    assert host.dumps == 1


def edit(host: FakeHost) -> None:
    host.nft.apply("delete element inet virt-forward ports { tcp . 8080 }\n")
    host.nft.apply("flush set inet virt-forward revision\n")


def load_an_older_table(host: FakeHost) -> None:
    """Load what an include file of another time has: a map of another type, a chain that is not used."""
    host.nft.apply(
        "add table inet virt-forward\ndelete table inet virt-forward\ntable inet virt-forward {\n"
        "\tmap any { type inet_service : verdict; }\n\tchain old {\n\t\taccept\n\t}\n}\n"
    )


HARMS: dict[str, Callable[[FakeHost], None]] = {
    "flushed ruleset": lambda host: host.nft.flush_ruleset(),
    "edited": edit,
    "older table": load_an_older_table,
}


@pytest.mark.parametrize("event", ["started", "stopped", "reconnect"])
@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
def test_next_event_rebuilds_a_table_that_somebody_changed(
    host: FakeHost, event: str, harm: Callable[[FakeHost], None]
) -> None:
    host.start("web", *WEB_XML)
    host.event("db", "prepare", *DB_XML)
    if event != "started":
        host.event("db", "started", *DB_XML)
    harm(host)
    host.event("db", event, *DB_XML)
    assert holds(host, web) if event == "stopped" else holds(host, web, db)
    assert include_loads_the_same(host)


def too_slow(_text: str) -> None:
    raise NftTimeout("nft did not finish within 14 seconds")


def test_table_that_no_hook_has_time_to_rebuild_is_rebuilt_by_whoever_has(host: FakeHost) -> None:
    host.start("web", *WEB_XML)
    host.nft.flush_ruleset()
    before, host.nft.before_apply = host.nft.before_apply, too_slow
    # The guest that needs the rebuild is not refused for it, and neither are those after it.
    for name, declared in (("db", DB_XML), ("app", APP_XML)):
        for operation in ("prepare", "start", "started"):
            assert host.event(name, operation, *declared) == 0, operation
    assert "qemu db started: nft did not finish within 14 seconds" in host.messages
    for operation in ("stopped", "release"):
        assert host.event("app", operation, *APP_XML) == 0
    assert host.nft.table is None
    host.nft.before_apply = before
    # The service, in any case every half minute; or sync.
    refresh.verify(Store())
    assert holds(host, web, db)
    assert include_loads_the_same(host)


def test_lost_record_of_a_running_guest_is_rebuilt_by_its_reconnect(host: FakeHost) -> None:
    host.start("web", *WEB_XML)
    host.start("db", *DB_XML)
    with Store().open() as state, state.transaction() as connection:
        connection.execute("DELETE FROM guest WHERE name = 'web'")
    host.event("web", "reconnect", *WEB_XML)
    assert holds(host, web, db)
    assert include_loads_the_same(host)
    host.stop("web", *WEB_XML)
    assert holds(host, db)


def test_change_killed_at_any_step_is_finished_by_the_next_event(tmp_path: Path) -> None:
    number, killed = 0, True
    phases = set()
    while killed:
        directory = tmp_path / str(number)
        directory.mkdir()
        with fake_host(directory) as host:
            host.start("db", *DB_XML)
            host.event("web", "prepare", *WEB_XML)
            with host.killed_before_step(number) as done:
                host.event("web", "started", *WEB_XML)
            killed = bool(done)
            with Store().open() as state:
                recorded = state.guest(web.uuid)
            assert recorded is not None
            phases.add(recorded.phase)
            host.start("app", host_ip("10.10.0.202"), port_forward("9090"))
            app = guest("app", "10.10.0.202", forward(9090))
            known = (web, db, app) if recorded.phase == "running" else (db, app)
            assert holds(host, *known), number
            # The records say the same as the table.
            host.nft.flush_ruleset()
            host.event("db", "reconnect", *DB_XML)
            assert holds(host, *known), number
            host.event("web", "reconnect", *WEB_XML)
            assert holds(host, web, db, app), number
            assert include_loads_the_same(host), number
        number += 1
    assert number > 4  # BEGIN, COMMIT, nft, the include file
    assert phases == {"prepared", "running"}


def test_stop_killed_at_any_step_is_finished_by_the_next_event(tmp_path: Path) -> None:
    number, killed = 0, True
    while killed:
        directory = tmp_path / str(number)
        directory.mkdir()
        with fake_host(directory) as host:
            host.start("web", *WEB_XML)
            host.start("db", *DB_XML)
            kept = connection(CLIENT4, (HOST4, 5432), (DB, 5432))
            host.connections = [connection(CLIENT4, (HOST4, 8080), (WEB, 80)), kept]
            with host.killed_before_step(number) as done:
                host.event("web", "stopped", *WEB_XML)
            killed = bool(done)
            host.event("web", "release", *WEB_XML)
            host.event("db", "reconnect", *DB_XML)
            assert holds(host, db), number
            assert include_loads_the_same(host), number
            assert host.connections == [kept], number
            host.nft.flush_ruleset()
            host.event("db", "reconnect", *DB_XML)
            assert holds(host, db), number
        number += 1
    assert number > 4


@contextlib.contextmanager
def locked(host: FakeHost) -> Iterator[None]:
    """Hold the lock as another process does, and let a hook wait for it only shortly."""
    with (host.run_dir / "lock").open("a") as file, pytest.MonkeyPatch.context() as patch:
        fcntl.flock(file, fcntl.LOCK_EX)
        patch.setattr(dispatch, "SECONDS", 0.05)
        yield


def fail_ip(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise VirtForwardError("ip not found")

    monkeypatch.setattr(collect, "read_interfaces", fail)


def test_host_that_cannot_be_read_refuses_a_start_and_leaves_what_runs(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.start("db", *DB_XML)
    fail_ip(host, monkeypatch)
    assert host.event("web", "prepare", *WEB_XML) == 1
    assert "ip not found" in host.messages[-1]
    assert host.event("db", "reconnect", *DB_XML) == 0
    assert "ip not found" in host.messages[-1]
    assert holds(host, db)


def test_stop_does_not_need_the_host_read_for_a_guest_that_waits(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.config.write_text('[policy]\non_error = "warn"\n')
    host.start("web", *WEB_XML)
    host.start("db", host_ip(DB), port_forward("8080:80", "5432"))
    fail_ip(host, monkeypatch)
    host.stop("web", *WEB_XML)
    assert any("ip not found" in message for message in host.messages)
    assert holds(host, db)


def test_lock_timeout_queues_a_start(host: FakeHost) -> None:
    host.start("db", *DB_XML)
    host.event("web", "prepare", *WEB_XML)
    with locked(host):
        assert host.event("web", "started", *WEB_XML) == 0
    assert "has held the lock" in host.messages[-1]
    assert holds(host, db)
    host.event("db", "reconnect", *DB_XML)
    assert holds(host, web, db)
    assert include_loads_the_same(host)


def test_lock_timeout_queues_a_stop_and_a_start_after_it_wins(host: FakeHost) -> None:
    host.start("db", *DB_XML)
    host.start("web", *WEB_XML)
    host.connections = [connection(CLIENT4, (HOST4, 8080), (WEB, 80))]
    with locked(host):
        assert host.event("web", "stopped", *WEB_XML) == 0
    assert holds(host, web, db)
    host.event("db", "reconnect", *DB_XML)
    assert holds(host, db)
    assert host.connections == []
    host.start("web", *WEB_XML)
    with locked(host):
        host.event("web", "stopped", *WEB_XML)
    host.start("web", *WEB_XML)
    assert holds(host, web, db)


def test_refused_nft_refuses_no_start_and_is_healed_by_the_next_event(host: FakeHost) -> None:
    host.start("db", *DB_XML)

    def refuse(_text: str) -> None:
        raise NftError("nft refused: Error: Cannot allocate memory")

    host.nft.before_apply = refuse
    assert host.event("web", "prepare", *WEB_XML) == 0
    assert host.event("web", "started", *WEB_XML) == 0
    assert holds(host, db)
    assert any("Cannot allocate memory" in message for message in host.messages)
    host.nft.before_apply = lambda _text: None
    host.event("db", "reconnect", *DB_XML)
    assert holds(host, web, db)


def test_guest_whose_rules_nft_refuses_is_kept_out_and_blocks_no_rebuild(host: FakeHost) -> None:
    host.start("db", *DB_XML)

    def refuse(text: str) -> None:
        if uuid_of("web") in text:
            raise NftError("nft refused: Error: Cannot parse that")

    host.nft.before_apply = refuse
    host.event("web", "prepare", *WEB_XML)
    assert host.event("web", "started", *WEB_XML) == 0
    assert any('guest "web"' in message and "kept out" in message for message in host.messages)
    assert holds(host, db)
    assert include_loads_the_same(host)
    with Store().open() as state:
        found = state.guest(web.uuid)
    assert found is not None
    assert found.conflicts == ((web.forwards[0], "nft refused: Error: Cannot parse that"),)
    # Others come and go, and a flushed table comes back.
    host.start("app", host_ip("10.10.0.202"), port_forward("9090"))
    host.nft.flush_ruleset()
    host.event("db", "reconnect", *DB_XML)
    assert holds(host, db, guest("app", "10.10.0.202", forward(9090)))
    host.nft.before_apply = lambda _text: None
    host.event("web", "reconnect", *WEB_XML)
    assert holds(host, web, db, guest("app", "10.10.0.202", forward(9090)))


def test_guest_that_lost_an_address_gets_its_forwards_when_the_other_stops(host: FakeHost) -> None:
    host.config.write_text('[policy]\non_error = "warn"\n')
    host.start("web", *WEB_XML)
    host.start("db", host_ip(WEB), port_forward("5432"))
    assert holds(host, web)
    host.stop("web", *WEB_XML)
    assert holds(host, guest("db", WEB, forward(5432)))


def test_event_of_another_guest_does_not_look_at_one_that_is_kept_out(host: FakeHost) -> None:
    """It waits for the claim that it lost to, and costs nobody else."""
    host.config.write_text('[policy]\non_error = "warn"\n')
    host.listeners = [Listener("tcp", ip_address("0.0.0.0"), 5432, 4711)]
    host.start("db", *DB_XML)
    host.listeners = []
    host.start("web", *WEB_XML)
    host.stop("web", *WEB_XML)
    assert holds(host)
    host.event("db", "reconnect", *DB_XML)
    assert holds(host, db)


@pytest.mark.parametrize("status", [False, True], ids=["no status file", "status file"])
def test_claim_of_a_start_that_ended_with_the_daemon_is_dropped(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: bool
) -> None:
    """No event tells of it; a guest with a status file gets one from the next daemon."""
    monkeypatch.setattr(starter, "STATUS", str(tmp_path))
    monkeypatch.setattr(starter, "current", lambda: "1 started-before-this-boot")
    if status:
        (tmp_path / "web.xml").touch()
    assert host.event("web", "prepare", *WEB_XML) == 0
    rival = (host_ip(DB), port_forward("8080:80"))
    assert host.event("db", "prepare", *rival) == int(status)
    assert any("its start ended with libvirt" in message for message in host.messages) != status


def test_claim_of_a_start_that_is_under_way_stands(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starter, "DAEMONS", (Path(f"/proc/{os.getppid()}/comm").read_text().strip(),))
    assert not starter.is_gone(starter.current())
    assert host.event("web", "prepare", *WEB_XML) == 0
    assert host.event("db", "prepare", host_ip(DB), port_forward("8080:80")) == 1


@pytest.mark.parametrize("operation", ["reconnect", "restored prepare"])
def test_journal_is_told_of_a_limited_number_of_errors(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    monkeypatch.setattr(text, "MAX_LINES", 3)
    ranges = [port_forward(str(port)) for port in range(8000, 8020)]
    host.start("web", host_ip(WEB), *ranges)
    host.messages.clear()
    if operation == "reconnect":
        host.event("db", "reconnect", host_ip(DB), *ranges)
    else:
        wrong = (host_ip(DB), *(port_forward("0") for _ in range(20)))
        host.event("db", "restore", *wrong)
        host.event("db", "prepare", *wrong)
    assert host.messages[3:] == ["... and 17 more"]


def test_guest_without_a_known_address_waits_without_rules(host: FakeHost) -> None:
    host.start("web", port_forward("8080:80"))
    assert holds(host)
    assert host.event("db", "prepare", host_ip(DB), port_forward("8080:80")) == 1


def test_range_that_is_made_longer_ends_no_flow(host: FakeHost) -> None:
    host.start("web", host_ip(WEB), port_forward("5000-5010:6000"))
    host.connections = [connection(CLIENT4, (HOST4, 5005), (WEB, 6005))]
    before = [*host.connections]
    host.event("web", "reconnect", host_ip(WEB), port_forward("5000-5020:6000"))
    assert holds(host, guest("web", WEB, forward(5000, 5020, 6000)))
    assert host.connections == before
    host.event("web", "reconnect", host_ip(WEB), port_forward("5000-5004:6000"))
    assert host.connections == []


def test_isolated_guest_without_forwards_is_in_the_table(host: FakeHost) -> None:
    host.start("web", host_ip(WEB), attributes='isolate="yes"')
    assert holds(host, guest("web", WEB)._replace(isolate=True))
    host.stop("web", host_ip(WEB))
    assert holds(host)


def test_broken_metadata_of_a_running_guest_leaves_its_rules(host: FakeHost) -> None:
    host.start("web", *WEB_XML)
    assert host.event("web", "reconnect", port_forward("0")) == 0
    assert holds(host, web)
    assert host.event("db", "prepare", port_forward("0")) == 1
    assert holds(host, web)


def test_removed_metadata_takes_the_rules_away(host: FakeHost) -> None:
    host.start("web", *WEB_XML)
    assert host.event("web", "reconnect") == 0
    assert holds(host)


@pytest.mark.parametrize("last", ["started", "stopped"])
def test_last_of_several_queued_changes_counts(host: FakeHost, last: str) -> None:
    host.start("db", *DB_XML)
    host.start("web", *WEB_XML)
    moved = (host_ip("10.10.0.210"), port_forward("8080:80"))
    with locked(host):
        for operation in ("started", "stopped", "started") if last == "started" else ("started", "stopped"):
            assert host.event("web", operation, *moved) == 0
    host.event("db", "reconnect", *DB_XML)
    now = [guest("web", "10.10.0.210", forward(8080, to=80))] if last == "started" else []
    assert holds(host, *now, db)


def test_guest_that_starts_again_is_refused_a_port_on_which_the_host_listens_meanwhile(
    host: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    """A start that did not follow has given it nothing that the host may not veto any more."""
    assert host.event("web", "prepare", *WEB_XML) == 0
    host.listeners = [Listener("tcp", ip_address("0.0.0.0"), 8080, 4711)]
    assert host.event("web", "prepare", *WEB_XML) == 1
    assert "host port tcp/8080 is taken by" in capsys.readouterr().err


def test_running_guest_keeps_a_port_on_which_the_host_listens_later(host: FakeHost) -> None:
    host.start("web", *WEB_XML)
    host.listeners = [Listener("tcp", ip_address("0.0.0.0"), 8080, 4711)]
    host.event("web", "reconnect", *WEB_XML)
    assert holds(host, web)


def test_guest_that_starts_in_spite_of_a_conflict_claims_the_rest(host: FakeHost) -> None:
    host.config.write_text('[policy]\non_error = "warn"\n')
    host.start("web", *WEB_XML)
    assert host.event("db", "prepare", host_ip(DB), port_forward("8080:80", "5432")) == 0
    host.config.unlink()
    assert host.event("app", "prepare", host_ip("10.10.0.202"), port_forward("5432")) == 1
