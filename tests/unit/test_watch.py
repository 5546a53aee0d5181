"""The parts of the service without its main loop: kernel events, schedules, jobs, monitors."""

from __future__ import annotations

import itertools
import math
import os
import select
import struct
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from socket import AF_INET, AF_INET6
from types import SimpleNamespace
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.proc import eventually
from unit.build import BRIDGE, MAC, endpoint, forward, guest
from virt_forward.host import nft
from virt_forward.host.netlink import attribute
from virt_forward.libvirtd import api
from virt_forward.model import Nic, Sighting
from virt_forward.state.store import LOCK_SECONDS
from virt_forward.watch import child, kernel_events, prober, sync_process, table_process
from virt_forward.watch.backoff import BACKOFF_SECONDS, RETRY_SECONDS, Backoff, Job
from virt_forward.watch.kernel_events import (
    NDA_DST,
    NDA_LLADDR,
    NUD_FAILED,
    RT_SCOPE_LINK,
    RTM_DELADDR,
    RTM_DELNEIGH,
    RTM_DELROUTE,
    RTM_NEWADDR,
    RTM_NEWNEIGH,
    RTM_NEWROUTE,
    TABLE_DELETED,
    Neighbour,
    TableMonitor,
    concerns_guests,
    neighbours,
)
from virt_forward.watch.prober import PROBE_AFTER, VERIFY_LEASE_AFTER, ProbeSchedule
from virt_forward.watch.running_guests import RunningGuests
from virt_forward.watch.sync_process import SyncProcess, SyncResult

OTHER = "52:54:00:00:00:02"
IP, NEW = ip_address("198.51.100.200"), ip_address("198.51.100.201")
LINK_LOCAL = ip_address("fe80::5054:ff:fea0:8f2c")
REACHABLE, INCOMPLETE, STALE = 0x02, 0x01, 0x04


def message(kind: int, state: int, ip: str, mac: str | None) -> bytes:
    """Return a message of rtnetlink's neighbour group."""
    raw = ip_address(ip).packed
    body = struct.pack("=BBHiHBB", 2 if len(raw) == 4 else 10, 0, 0, 5, state, 0, 1) + attribute(NDA_DST, raw)
    body += attribute(NDA_LLADDR, bytes.fromhex(mac.replace(":", ""))) if mac else b""
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (message(RTM_NEWNEIGH, REACHABLE, "10.10.0.95", MAC), Neighbour(ip_address("10.10.0.95"), MAC)),
        (message(RTM_NEWNEIGH, STALE, "fd10::5", MAC), Neighbour(ip_address("fd10::5"), MAC)),
        (message(RTM_NEWNEIGH, INCOMPLETE, "10.10.0.95", None), None),
        (
            message(RTM_NEWNEIGH, NUD_FAILED, "10.10.0.95", None),
            Neighbour(ip_address("10.10.0.95"), "", True),
        ),
        (message(RTM_DELNEIGH, STALE, "10.10.0.95", MAC), Neighbour(ip_address("10.10.0.95"), MAC, True)),
        (message(RTM_NEWNEIGH, REACHABLE, "10.10.0.95", "52:54"), None),
        (message(24, REACHABLE, "10.10.0.95", MAC), None),
    ],
)
def test_neighbour_events_are_parsed(data: bytes, expected: Neighbour | None) -> None:
    assert list(neighbours(data * 2)) == ([expected] * 2 if expected else [])
    for cut in range(len(data)):
        assert list(neighbours(data[:cut])) == []


def about(kind: int, *body: int) -> bytes:
    """Return a message of rtnetlink whose payload begins with some bytes."""
    payload = bytes(body).ljust(12, b"\0")
    return struct.pack("=IHHII", 16 + len(payload), kind, 0, 0, 0) + payload


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (about(RTM_NEWADDR, AF_INET, 24, 0, 0), True),
        (about(RTM_DELADDR, AF_INET6, 64, 0, 0), True),
        (about(RTM_NEWADDR, AF_INET6, 64, 0, RT_SCOPE_LINK), False),
        (about(RTM_NEWROUTE, AF_INET, 0), True),
        (about(RTM_DELROUTE, AF_INET6, 0), True),
        (about(RTM_NEWROUTE, AF_INET, 24), False),
        (about(RTM_NEWNEIGH, AF_INET, 0), False),
    ],
)
def test_events_of_addresses_and_default_routes_concern_guests(data: bytes, expected: bool) -> None:
    assert concerns_guests(about(RTM_NEWROUTE, AF_INET, 24) + data) is expected
    for cut in range(len(data)):
        assert not concerns_guests(data[:cut])


@given(st.binary(max_size=200), st.integers(0, 60), st.binary(max_size=4))
def test_neighbour_parser_accepts_any_data(data: bytes, at: int, patch: bytes) -> None:
    whole = message(RTM_NEWNEIGH, REACHABLE, "10.10.0.95", MAC)
    list(neighbours(data))
    list(neighbours(whole[:at] + patch + whole[at + len(patch) :]))


@pytest.fixture
def guests() -> RunningGuests:
    made = RunningGuests()
    running = guest("web", forward(), endpoints=[endpoint(str(IP))])._replace(
        nics=(Nic(MAC, "bridge", BRIDGE),)
    )
    made.update([running], [])
    return made


@pytest.mark.parametrize(
    ("neighbour", "expected"),
    [
        (Neighbour(IP, MAC), False),
        (Neighbour(NEW, MAC), True),
        (Neighbour(NEW, OTHER), False),
        (Neighbour(LINK_LOCAL, MAC), False),
        (Neighbour(IP, OTHER), True),  # another NIC has it now
        (Neighbour(IP, MAC, removed=True), True),
        (Neighbour(IP, "", removed=True), True),
        (Neighbour(NEW, MAC, removed=True), False),
        (Neighbour(NEW, "", removed=True), False),
    ],
)
def test_neighbour_affects_guest_if_its_address_may_change(
    guests: RunningGuests, neighbour: Neighbour, expected: bool
) -> None:
    assert guests.affects_guest(neighbour) is expected


def test_neighbour_check_reads_no_file(guests: RunningGuests, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a file is read")

    monkeypatch.setattr("builtins.open", forbidden)
    monkeypatch.setattr(os, "stat", forbidden)
    monkeypatch.setattr(os, "listdir", forbidden)
    assert not guests.affects_guest(Neighbour(IP, MAC))
    assert guests.affects_guest(Neighbour(NEW, MAC))


def probe_times(
    schedule: ProbeSchedule, times: range, event: Callable[[int], object] = lambda _: None
) -> list[int]:
    """Return the seconds of ``times`` at which a NIC is probed."""
    found = []
    for now in times:
        event(now)
        if schedule.due_at() <= now:
            schedule.record_probe(now)
            found.append(now)
    return found


def test_schedule_ends() -> None:
    schedule = ProbeSchedule(0)
    assert probe_times(schedule, range(1000)) == [int(at) for at in PROBE_AFTER]
    assert schedule.due_at() == math.inf
    assert schedule.is_finished(1000)


def test_schedule_restarts_on_first_event() -> None:
    schedule = ProbeSchedule(0)
    probe_times(schedule, range(40))
    schedule.add_link_local(40, LINK_LOCAL)
    assert probe_times(schedule, range(40, 1000)) == [40 + int(at) for at in PROBE_AFTER]


def test_schedule_ignores_known_link_local_address() -> None:
    """An IPv6-only guest sends from it for as long as it runs."""
    schedule = ProbeSchedule(0)
    schedule.add_link_local(0, LINK_LOCAL)
    assert len(
        probe_times(schedule, range(1000), lambda now: schedule.add_link_local(now, LINK_LOCAL))
    ) == len(PROBE_AFTER)


def test_schedule_probes_once_a_minute_at_most_after_many_events() -> None:
    schedule = ProbeSchedule(0)
    probe_times(schedule, range(200), schedule.restart)
    later = probe_times(schedule, range(200, 2000), schedule.restart)
    assert later
    assert min(b - a for a, b in itertools.pairwise(later)) >= 60


def test_schedule_ends_despite_ever_new_link_local_addresses() -> None:
    schedule = ProbeSchedule(0)
    times = probe_times(
        schedule, range(20000), lambda now: schedule.add_link_local(now, ip_address(f"fe80::{now + 1:x}"))
    )
    assert times[-1] < 2000


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """A clock that the test sets; sockets that record the probes."""
    made = [0.0]
    monkeypatch.setattr("virt_forward.watch.prober.time", SimpleNamespace(monotonic=lambda: made[0]))
    monkeypatch.setattr(prober, "ProbeSocket", FakeSocket)
    FakeSocket.sent.clear()
    monkeypatch.setattr(prober, "send", lambda probes, _: FakeSocket.sent.extend(probes))
    yield made


class FakeSocket:
    sent: ClassVar[list[object]] = []
    received: ClassVar[list[Sighting]] = []

    def __init__(self, bridge: str, version: int) -> None:
        self.bridge, self.version = bridge, version
        self._fd = os.eventfd(0)

    def fileno(self) -> int:
        return self._fd

    def read(self, _probes: object) -> list[Sighting]:
        found = list(self.received)
        self.received.clear()
        return found

    def close(self) -> None:
        os.close(self._fd)


def test_prober_keeps_schedule_while_other_guests_change(clock: list[float]) -> None:
    from unit.test_probe import FOUR

    made = prober.Prober(select.poll())
    other = FOUR._replace(mac=OTHER)
    try:
        for now in range(600):
            clock[0] = float(now)
            made.set_probes([FOUR, other] if now % 3 else [FOUR])
            made.work()
    finally:
        made.close()
    assert FakeSocket.sent.count(FOUR) == len(PROBE_AFTER)
    assert FakeSocket.sent.count(other) <= 2 * len(PROBE_AFTER) + 600 // 60


def test_prober_verifies_leased_address_until_it_is_known(clock: list[float]) -> None:
    from unit.test_probe import FOUR

    made, lease = prober.Prober(select.poll()), Sighting(IP, FOUR.mac, "leased")
    wanted = FOUR._replace(subnet=ip_network(IP))
    try:
        made.set_probes([FOUR])
        for now in range(1200):
            clock[0] = now / 10
            # Other clients can make the server repeat the lease at any rate.
            FakeSocket.received.extend([lease] * (now > 800))
            made.work()
            if now == 700:
                assert wanted not in FakeSocket.sent
        assert made.sightings == {FOUR.bridge: (lease,)}
        made.clear_sightings()
        assert made.sightings == {FOUR.bridge: (lease,)}
        count = FakeSocket.sent.count(wanted)
        assert len(VERIFY_LEASE_AFTER) <= count <= 40 // VERIFY_LEASE_AFTER[-1] * len(VERIFY_LEASE_AFTER)
        made.set_probes([])
        made.clear_sightings()
        assert made.sightings == {}
        clock[0] += 100
        made.work()
        assert FakeSocket.sent.count(wanted) == count
    finally:
        FakeSocket.received.clear()
        made.close()


def test_backoff_waits_longer_each_time() -> None:
    backoff = Backoff()
    assert [backoff.wait() for _ in range(7)] == [*BACKOFF_SECONDS, 30, 30]
    backoff.reset()
    assert backoff.wait() == BACKOFF_SECONDS[0]


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    for name in ("error", "warning", "info"):
        monkeypatch.setattr(f"virt_forward.host.log.{name}", lines.append)
    return lines


def test_failed_job_waits_before_retry(logged: list[str]) -> None:
    job = Job()
    job.fail(100, "no")
    for _ in range(3):
        job.pending = True
        assert job.due_at() == 100 + RETRY_SECONDS


def test_job_logs_failure_once_until_it_changes_or_ends(logged: list[str]) -> None:
    job = Job()
    for message_ in ("no", "no", "never", "never", "no"):
        job.fail(0, message_)
    job.finish(0)
    job.fail(0, "no")
    assert logged == ["watch: no", "watch: never", "watch: no", "watch: no"]


def test_job_with_pause_is_due_immediately_then_after_pause() -> None:
    job = Job(pause=1)
    assert job.due_at() == math.inf
    job.pending = True
    assert job.due_at() <= 0
    job.pending = False
    job.finish(50)
    job.pending = True
    assert job.due_at() == 51


@pytest.fixture
def monitor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[TableMonitor, Path]]:
    """A monitor, and the path of the program it runs as nft."""
    monkeypatch.setattr(kernel_events, "ENVIRONMENT", {"PATH": f"{tmp_path}:/usr/bin:/bin"})
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    made = TableMonitor(select.poll())
    yield made, tmp_path / "nft"
    made.stop()


def program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def printed(made: TableMonitor, what: bytes) -> bytes:
    text = b""

    def come() -> bool:
        nonlocal text
        if made.fileno() >= 0:
            text += made.read()
        return what in text

    eventually(come, f"{what!r} is printed")
    return text


def test_monitor_returns_complete_lines(monitor: tuple[TableMonitor, Path]) -> None:
    made, nft = monitor
    program(nft, "printf 'delete table inet vi'; sleep 0.2; echo rt-forward; exec sleep 60")
    made.start()
    assert TABLE_DELETED[0] in printed(made, b"virt-forward\n")


def test_monitor_reports_lost_events_as_deleted_table(monitor: tuple[TableMonitor, Path]) -> None:
    made, nft = monitor
    program(nft, "echo '# ERROR: We lost some netlink events!'; exec sleep 60")
    made.start()
    text = printed(made, b"\n")
    assert any(words in text for words in TABLE_DELETED)


def test_monitor_limits_incomplete_line(monitor: tuple[TableMonitor, Path]) -> None:
    made, nft = monitor
    program(nft, "head -c 300000 /dev/zero | tr '\\0' x; echo; echo end; exec sleep 60")
    made.start()
    assert len(printed(made, b"end\n")) < 400000
    assert len(made._incomplete) <= kernel_events.MAX_LINE


def test_monitor_that_keeps_ending_is_restarted_with_backoff_and_logged_once(
    monitor: tuple[TableMonitor, Path], logged: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, nft = monitor
    program(nft, "echo 'netlink: Protocol not supported' >&2; exit 1")
    clock = [0.0]
    monkeypatch.setattr("virt_forward.watch.kernel_events.time", SimpleNamespace(monotonic=lambda: clock[0]))
    waits = []
    for _ in range(6):
        made.start()
        printed_end(made)
        waits.append(made.next_at() - clock[0])
        clock[0] = made.next_at()
    assert waits == pytest.approx([0.05, *BACKOFF_SECONDS])
    (line,) = logged
    assert "nft monitor has ended: 'netlink: Protocol not supported'" in line


def test_message_that_was_read_before_the_monitor_ended_is_logged(
    monitor: tuple[TableMonitor, Path], logged: list[str], tmp_path: Path
) -> None:
    made, nft = monitor
    end = tmp_path / "end"
    program(nft, f"echo 'netlink: Protocol not supported' >&2; until [ -e {end} ]; do sleep 0.01; done")
    made.start()
    printed(made, b"supported\n")
    end.touch()
    printed_end(made)
    assert "'netlink: Protocol not supported'" in logged[0]


def printed_end(made: TableMonitor) -> None:
    def ended() -> bool:
        if made.fileno() >= 0:
            made.read()
        return made.fileno() < 0

    eventually(ended, "the monitor has ended")


def test_monitor_without_nft_retries_later(monitor: tuple[TableMonitor, Path], logged: list[str]) -> None:
    made, nft = monitor
    program(nft, "")
    nft.chmod(0o644)
    made.start()
    assert made.fileno() == -1
    assert made.next_at() < math.inf
    assert len(logged) == 1


def sync_by(monkeypatch: pytest.MonkeyPatch, text: str) -> SyncProcess:
    """Return a sync that is begun, with a shell's program in the place of its child process."""
    monkeypatch.setattr(child, "argv", lambda *_: ["/bin/sh", "-c", text])
    made = SyncProcess(select.poll())
    made.start({"one"})
    return made


def ended(made: SyncProcess) -> SyncResult:
    found: list[SyncResult] = []

    def end() -> bool:
        found.extend(filter(None, [made.result()]))
        return bool(found)

    eventually(end, "the sync has ended")
    assert not made.is_running()
    assert made.deadline() == math.inf
    return found[0]


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("echo 'step: reading'", ""),
        ("echo 'step: reading'; echo one; echo two; exit 3", "one two"),
        ("echo Traceback; echo 'Error: why'; exit 1", "Error: why"),
        ("exit 2", "sync failed with exit status 2"),
        ("kill -9 $$", "sync failed with exit status -9"),
    ],
)
def test_sync_tells_why_it_failed(monkeypatch: pytest.MonkeyPatch, program: str, expected: str) -> None:
    assert ended(sync_by(monkeypatch, program)) == SyncResult(frozenset({"one"}), expected)


def test_sync_logs_what_is_wrong_with_guests(monkeypatch: pytest.MonkeyPatch, logged: list[str]) -> None:
    assert ended(sync_by(monkeypatch, "echo 'step: reading'; echo 'guest web: no'")).failure == ""
    assert logged == ["watch: guest web: no"]


def test_sync_that_libvirt_does_not_answer_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync_process, "LIBVIRT_SECONDS", 0.2)
    made = sync_by(monkeypatch, "echo 'step: reading the guests from libvirt'; exec sleep 60")
    assert ended(made).failure == (
        "sync has not ended within 0.2 seconds: it was reading the guests from libvirt"
    )


def test_sync_of_a_large_table_has_more_time_than_libvirt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync_process, "LIBVIRT_SECONDS", 0.0)
    made = sync_by(monkeypatch, "echo 'step: reading'; echo 'step: loading'; exec sleep 60")
    started = made.deadline()
    eventually(made.changes_table, "libvirt has answered")
    assert made.result() is None
    assert made.deadline() == started + sync_process.SECONDS
    monkeypatch.setattr(sync_process, "SECONDS", 0.0)
    made._deadline = started
    assert ended(made).failure == "sync has not ended within 0 seconds: it was loading"


def test_processes_have_more_time_than_nft_for_100000_forwards() -> None:
    characters = 25_000_000
    longest = nft.TIMEOUT + characters * nft.TIMEOUT_PER_CHARACTER
    # A table that cannot be converted is replaced: nft runs twice.
    assert LOCK_SECONDS + 2 * longest < sync_process.SECONDS
    assert LOCK_SECONDS + 3 * longest < table_process.SECONDS


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with systemd; pid files are in the directory."""
    monkeypatch.setattr(api, "PID_FILES", str(tmp_path))
    monkeypatch.setattr(api, "SYSTEMD", str(tmp_path))
    return tmp_path


def test_stopped_daemon_is_not_running(systemd: Path) -> None:
    assert not api.daemon_runs("qemu:///system")
    assert not api.daemon_runs("qemu:///system?socket=/run/x")
    # The PID file of a killed daemon; the PID is that of another process.
    (systemd / "libvirtd.pid").write_text(f"{os.getpid()}\n")
    assert not api.daemon_runs("qemu:///system")
    (systemd / "libvirtd.pid").write_text("nonsense")
    assert not api.daemon_runs("qemu:///system")


@pytest.mark.parametrize("daemon", ["libvirtd", "virtqemud"])
def test_daemon_with_pid_file_is_running(systemd: Path, daemon: str) -> None:
    import subprocess

    program = systemd / daemon
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "60"]) as process:
        (systemd / f"{daemon}.pid").write_text(str(process.pid))
        try:
            eventually(lambda: api.daemon_runs("qemu:///system"), "the daemon is found")
        finally:
            process.kill()


@pytest.mark.parametrize("uri", ["qemu:///session", "qemu+ssh://host/system", "test:///default"])
def test_other_uri_counts_as_running(systemd: Path, uri: str) -> None:
    assert api.daemon_runs(uri)


def test_host_without_systemd_counts_as_running(systemd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "SYSTEMD", str(systemd / "none"))
    assert api.daemon_runs("qemu:///system")
