"""What others do to us: programs that fail, a full /run, damaged files, a table edited by hand."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from netns.faults.edges import Outcome, Steps, missing, refused
from netns.faults.testbed import FaultTestbed, xml_of
from support import person, state
from support.proc import REPO, eventually, is_tied, run
from support.xml import Network, domain, network_hook, port_forward, uuid_of
from virt_forward.hooks import dispatch
from virt_forward.host import nft
from virt_forward.reconcile import refresh, teardown
from virt_forward.state import database, store

pytestmark = pytest.mark.root
RUNNING_EVENTS = ("started", "reconnect", "restore")


@pytest.fixture
def two(testbed: FaultTestbed) -> FaultTestbed:
    """web and db run, mail is prepared."""
    if testbed.before:
        testbed.restore()
        testbed.lab.host.run(["nft", "-f", testbed.run_dir / "ruleset.nft"])
    else:
        testbed.start("web", "db")
        assert testbed.event("mail", "prepare").status == 0
        testbed.before = testbed.saved()
    return testbed


CONNECTION = (
    "-I -p tcp -s 192.0.2.2 -d 192.0.2.1 --sport 999 --dport 2525 --dst-nat 10.10.0.202:25"
    " --state ESTABLISHED -t 300"
)
"""What conntrack(8) is told for a connection to mail."""


def program(name: str) -> Callable[[str], bool]:
    return named(f"run {name}")


def named(name: str) -> Callable[[str], bool]:
    return lambda step: step == name


# ---- programs and the kernel ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("which", "how"),
    [
        (program("nft"), missing),
        (program("nft"), refused(5)),
        (program("ip"), missing),
        (named("list connections"), refused(5)),
        (named("delete connections"), refused(5)),
    ],
    ids=["nft missing", "nft failing", "ip missing", "connections not listed", "connections not deleted"],
)
@pytest.mark.parametrize("operation", [*RUNNING_EVENTS, "stopped"])
def test_program_or_request_that_fails_costs_no_running_guest(
    two: FaultTestbed, which: Callable[[str], bool], how: Callable[[str], object], operation: str
) -> None:
    if operation == "stopped":
        two.start("mail")
        # It may still be there: what could not be deleted stays.
        two.lab.host.run(["conntrack", *CONNECTION.split()], check=False)
    done = two.event("mail", operation, Steps(1, which, how, forever=True))
    assert (done.status, done.out) == (0, ""), done
    assert done.reasons or not done.steps, done
    two.assert_kept("web", "db", why=done)
    # From here on it works again, and the next event of that guest is enough.
    assert two.event("mail", "stopped" if operation == "stopped" else "reconnect").status == 0
    two.assert_right(*(("web", "db") if operation == "stopped" else ("web", "db", "mail")), why=done)


def test_without_nft_no_guest_with_forwards_starts_and_it_is_said_why(two: FaultTestbed) -> None:
    two.flush()
    (two.run_dir / "ruleset.nft").unlink()
    done = two.event("late", "prepare", Steps(1, program("nft"), missing, forever=True))
    assert done.status == 1
    assert "error: nft not found" in done.err
    assert "install the package nftables" in done.err
    two.stop("late")


def test_refusal_by_nft_for_one_guest_refuses_no_other_guests_start(two: FaultTestbed) -> None:
    """web's end could not be told to the kernel; late has no part in that."""
    failing = Steps(1, program("nft"), refused(5), forever=True)
    assert two.event("web", "stopped", failing).status == 0
    done = two.event("late", "prepare", Steps(1, program("nft"), refused(5), forever=True))
    assert (done.status, done.err) == (0, "")
    assert "nft refused" in done.reasons
    assert two.event("late", "started").status == 0
    two.stop("mail")
    two.assert_right("db", "late")


def hanging(folder: Path, name: str) -> Callable[[], None]:
    """Put a program first that notes each start and never ends, and shorten the time limit."""
    program = folder / name
    program.write_text(f"#!/bin/sh\necho started >>{folder}/starts\nexec sleep 60\n")
    program.chmod(0o755)

    def patch() -> None:
        os.environ["PATH"] = f"{folder}:{os.environ['PATH']}"
        vars(nft)["TIMEOUT"] = 0.5

    return patch


@pytest.mark.parametrize("operation", ["started", "stopped"])
def test_nft_that_hangs_is_given_up(two: FaultTestbed, tmp_path: Path, operation: str) -> None:
    if operation == "stopped":
        two.start("mail")
    done = two.event("mail", operation, patch=hanging(tmp_path, "nft"))
    assert done.status == 0
    assert (tmp_path / "starts").read_text().split() == ["started"], "it is not tried again"
    assert "did not finish within" in done.reasons, done
    two.start("late")
    running = ["web", "db", "late"] if operation == "stopped" else ["web", "db", "mail", "late"]
    two.assert_right(*running, why=done)


def test_hook_has_one_deadline_for_all_that_it_runs(two: FaultTestbed, tmp_path: Path) -> None:
    """Programs that each use up a time of their own would keep libvirtd waiting for the sum."""
    hanging(tmp_path, "nft")

    def patch() -> None:
        os.environ["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
        vars(dispatch)["SECONDS"] = 3

    done = two.event("mail", "started", patch=patch)
    assert done.status == 0
    # Far less than a program has by itself.
    assert re.search(r"nft did not finish within ([0-2]\.\d+|3) seconds", done.reasons), done
    two.start("late")
    two.assert_kept("web", "db", "late")


def test_hook_that_is_killed_takes_nft_along(two: FaultTestbed, tmp_path: Path) -> None:
    """nft by itself would go on, without a time limit and with the lock, and overtake what follows."""
    hanging, finished = tmp_path / "nft", tmp_path / "finished"
    pid = tmp_path / "pid"
    os.mkfifo(pid)
    hanging.write_text(f"#!/bin/sh\nsleep 600 &\necho $! > {pid}\nwait\ntouch {finished}\n")
    hanging.chmod(0o755)
    env = [f"PATH={tmp_path}:/usr/sbin:/usr/bin:/bin", *(f"{k}={v}" for k, v in two.lab.env.items())]
    call = f"exec {REPO}/hooks/qemu mail started begin - <{xml_file(two, 'mail')}"
    started = two.lab.host.background(["env", "-i", *env, "sh", "-c", call], tmp_path / "log")
    sleeper = int(pid.read_text())
    eventually(lambda: is_tied(sleeper), "nft is tied to the hook")
    hooks = [int(found) for found in _family(started.pid) if "hooks/qemu" in _words(found)]
    assert len(hooks) == 1, hooks
    os.kill(hooks[0], 9)
    two.start("late")
    assert not Path(f"/proc/{sleeper}").exists() or not _words(str(sleeper))
    assert not finished.exists()
    assert two.event("mail", "reconnect").status == 0
    two.assert_right("web", "db", "mail", "late")
    started.end()


def xml_file(testbed: FaultTestbed, name: str) -> Path:
    path = testbed.lab.dir / f"{name}.xml"
    path.write_text(xml_of(name, "started"))
    return path


def _family(pid: int) -> Iterator[str]:
    yield str(pid)
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        yield from _family(int(child))


def _words(pid: str) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


# ---- the run directory ----------------------------------------------------------------------


@pytest.fixture
def small(testbed: FaultTestbed) -> Iterator[FaultTestbed]:
    """A run directory of its own few pages; ``fill`` takes the rest of them."""
    testbed.run_dir.mkdir(exist_ok=True)
    run(["mount", "-t", "tmpfs", "-o", "size=128k,nr_inodes=64", "vf-test", testbed.run_dir])
    try:
        yield testbed
    finally:
        run(["umount", testbed.run_dir])


def fill(testbed: FaultTestbed) -> Path:
    path = testbed.run_dir / "ballast"
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            return path


LARGE = xml_of("late", "prepare", port_forward(*map(str, range(20_000, 20_600, 2))))
"""More than there is room for in the blocks that are there already."""


def test_full_run_directory(small: FaultTestbed) -> None:
    """A start is refused with the reason, a running guest is spared, and what stops goes all the same."""
    small.start("web", "db", "mail")
    ballast = fill(small)
    refused_start = small.event("late", "prepare", xml=LARGE)
    assert refused_start.status == 1
    assert "No space left on device" in refused_start.err
    assert small.event("late", "release").status == 0
    assert small.event("web", "reconnect").status == 0
    stopped = small.event("mail", "stopped")
    assert stopped.status == 0
    assert "No space left" in stopped.reasons
    small.lab.host.run(["nft", "list", "table", "inet", "virt-forward"])
    assert "chain guest-mail" not in " ".join(small.table())
    small.assert_kept("web", "db")
    ballast.unlink()
    small.start("late")
    small.assert_right("web", "db", "late")


def test_full_run_directory_and_a_flushed_table(small: FaultTestbed) -> None:
    """Nothing has to be written to make right again what was there."""
    small.start("web", "db")
    ballast = fill(small)
    small.flush()
    for name in ("web", "db"):
        assert small.event(name, "reconnect").status == 0
    small.assert_kept("web", "db")
    ballast.unlink()
    small.stop("db")
    small.assert_right("web")


def test_start_in_a_full_run_directory_is_made_good_by_the_next_event(small: FaultTestbed) -> None:
    small.start("web")
    assert small.event("db", "prepare").status == 0
    ballast = fill(small)
    done = small.event("db", "started")
    assert done.status == 0
    assert "No space left" in done.reasons
    ballast.unlink()
    small.start("late")
    small.assert_right("web", "db", "late")


def test_read_only_run_directory(small: FaultTestbed) -> None:
    small.start("web", "db", "mail")
    read_only: list[str | Path] = ["mount", "-o", "remount,ro", small.run_dir]
    # A hook does not wait for the end of nft, which has its lock open.
    eventually(lambda: not run(read_only, check=False).status, "nobody has a file open for writing")
    for name, operation in (
        ("late", "prepare"),
        ("web", "reconnect"),
        ("db", "started"),
        ("mail", "stopped"),
    ):
        done = small.event(name, operation)
        assert done.status == (operation == "prepare"), done
        # Of guests that run already there is nothing to write.
        assert ("Read-only file system" in done.reasons) == (name in ("late", "mail")), done
    assert "chain guest-mail" not in " ".join(small.table())
    small.assert_kept("web", "db")
    run(["mount", "-o", "remount,rw", small.run_dir])
    assert small.event("mail", "release").status == 0
    small.start("late")
    small.assert_right("web", "db", "late")


def test_run_directory_that_is_gone(two: FaultTestbed) -> None:
    """Only libvirt knows then who runs: a restart of libvirtd, or sync, tells."""
    shutil.rmtree(two.run_dir)
    for name in ("web", "db"):
        assert two.event(name, "reconnect").status == 0
    two.assert_right("web", "db")
    shutil.rmtree(two.run_dir)
    two.start("late")
    assert two.sync("web", "db", "late").status == 0
    two.assert_right("web", "db", "late")


# ---- damaged files --------------------------------------------------------------------------


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def foreign(path: Path) -> None:
    path.write_text('{"version": 7, "somebody": ["else"]}\n')


def binary(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 20)


def removed(path: Path) -> None:
    path.unlink()


def edited(path: Path) -> None:
    """Change a byte and nothing of the length."""
    path.write_bytes(path.read_bytes().replace(b"10.10.0.200", b"10.10.0.250"))


DAMAGES = (truncated, emptied, foreign, binary, removed)


@pytest.mark.parametrize("damage", [*DAMAGES, edited])
def test_damaged_include_file_is_rebuilt(two: FaultTestbed, damage: Callable[[Path], None]) -> None:
    damage(two.run_dir / "ruleset.nft")
    done = two.event("mail", "started")
    assert done.status == 0
    two.assert_right("web", "db", "mail", why=done)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_database_is_rebuilt_from_libvirt(two: FaultTestbed, damage: Callable[[Path], None]) -> None:
    """No event fails for it; a restart of libvirtd, or sync, tells who runs."""
    damage(two.run_dir / "state.db")
    for name in ("web", "db"):
        assert two.event(name, "reconnect").status == 0
    two.assert_right("web", "db")
    damage(two.run_dir / "state.db")
    assert two.sync("web", "db").status == 0
    two.assert_right("web", "db")
    two.start("mail")
    twin = two.event("twin", "prepare")
    assert twin.status == 1, "what web has is known again"


@pytest.mark.parametrize("damage", DAMAGES)
def test_guest_that_stops_with_a_damaged_database_loses_its_rules(
    two: FaultTestbed, damage: Callable[[Path], None]
) -> None:
    damage(two.run_dir / "state.db")
    for operation in ("stopped", "release"):
        assert two.event("web", operation).status == 0
    assert_closed_alone(two)


def assert_closed_alone(two: FaultTestbed) -> None:
    """Check that the guest web is closed, and the guest db as open as it was."""
    assert not [part for part, rules in two.table().items() if "guest-web-" in part and len(rules) > 1]
    two.assert_kept("db")


@pytest.mark.parametrize("lost", ["", "guests", "state.db"], ids=["run directory", "markers", "database"])
def test_stop_is_seen_where_the_state_is_lost(two: FaultTestbed, lost: str) -> None:
    assert two.event("mail", "release").status == 0
    path = two.run_dir / lost
    path.unlink() if path.is_file() else shutil.rmtree(path)
    for operation in ("stopped", "release"):
        assert two.event("web", operation).status == 0
    assert_closed_alone(two)
    # What is left of the state knows the others by now.
    assert two.event("db", "reconnect").status == 0
    two.assert_right("db")
    assert two.event("db", "stopped").status == 0
    two.assert_right()


def test_markers_that_are_lost_come_back_with_any_event(two: FaultTestbed) -> None:
    assert two.event("mail", "release").status == 0
    shutil.rmtree(two.run_dir / "guests")
    assert two.event("db", "reconnect").status == 0
    assert two.event("web", "stopped").status == 0
    two.assert_right("db")


def test_malformed_database_is_replaced_by_the_event_that_meets_it(two: FaultTestbed) -> None:
    path = two.run_dir / "state.db"
    data = path.read_bytes()
    path.write_bytes(data[: database.PAGE_SIZE] + b"\xff" * (len(data) - database.PAGE_SIZE))
    assert two.event("mail", "started").status == 0
    for name in ("web", "db", "mail"):
        assert two.event(name, "reconnect").status == 0
    two.assert_right("web", "db", "mail")


def test_database_of_a_newer_version_is_not_touched_and_a_stop_closes_the_guest(two: FaultTestbed) -> None:
    with state.edited(two.run_dir) as connection:
        connection.execute("PRAGMA user_version = 99")
    data = (two.run_dir / "state.db").read_bytes()
    refused_start = two.event("late", "prepare")
    assert refused_start.status == 1
    assert "was written by a newer version" in refused_start.err
    assert "hint: install that version again" in refused_start.err
    for name, operation in (("db", "reconnect"), ("web", "stopped"), ("web", "release")):
        done = two.event(name, operation)
        assert done.status == 0
        assert "newer version" in done.reasons
    assert_closed_alone(two)
    assert (two.run_dir / "state.db").read_bytes() == data
    assert two.sync("db").status == 0
    two.assert_right("db")


def damaged_record(testbed: FaultTestbed, record: str) -> None:
    with state.edited(testbed.run_dir) as connection:
        connection.execute("UPDATE guest SET record = ? WHERE name = 'web'", (record,))


RECORDS = ["", "{", '{"version": 7}', "\0"]


@pytest.mark.parametrize("record", RECORDS)
@pytest.mark.parametrize("operation", ["reconnect", "stopped"])
def test_damaged_record_is_mended_by_its_guest(two: FaultTestbed, operation: str, record: str) -> None:
    damaged_record(two, record)
    done = two.event("web", operation)
    assert done.status == 0, done
    assert uuid_of("web") in done.reasons
    two.stop("mail")
    two.assert_right(*(("web", "db") if operation == "reconnect" else ("db",)), why=done)


@pytest.mark.parametrize("record", RECORDS)
def test_damaged_record_harms_nobody_else(two: FaultTestbed, record: str) -> None:
    damaged_record(two, record)
    two.start("mail")
    two.assert_kept("web", "db", "mail")
    two.flush()
    two.start("late")
    two.assert_kept("db", "mail", "late")
    assert two.sync("web", "db", "mail", "late").status == 0
    two.assert_kept("web", "db", "mail", "late")


def test_guest_whose_record_is_lost_has_its_rules_once(two: FaultTestbed) -> None:
    """The include file and the kernel still have them."""
    two.start("mail")
    with state.edited(two.run_dir) as connection:
        for table in ("guest", "claim", "endpoint"):
            connection.execute(f"DELETE FROM {table} WHERE uuid = ?", (uuid_of("web"),))
    assert two.event("web", "reconnect").status == 0
    two.assert_right("web", "db", "mail")


def test_record_that_claims_what_another_has(two: FaultTestbed) -> None:
    """Put there by hand: nft would refuse the whole table for it."""
    strange = uuid_of("strange")
    with state.edited(two.run_dir) as connection:
        row = connection.execute("SELECT * FROM guest WHERE name = 'web'").fetchone()
        record = row[-1].replace(uuid_of("web"), strange).replace('"web"', '"strange"')
        values = (strange, "strange", *row[2:-1], record)
        connection.execute("INSERT INTO guest VALUES (?, ?, ?, ?, ?, ?, ?)", values)
    two.flush()
    done = two.event("mail", "started")
    assert done.status == 0
    assert "claim the same" in done.reasons, done
    two.assert_kept("db", "mail", why=done)
    for _ in range(2):  # see test_ports_of_a_dead_guest_are_free_at_once
        assert two.sync("web", "db", "mail").status == 0
    two.assert_right("web", "db", "mail")


# ---- the table ------------------------------------------------------------------------------

EDITS = {
    "deleted": "delete table inet virt-forward",
    "flushed": person.RULESET,
    "emptied": "flush table inet virt-forward",
    "a chain's rules": f"flush chain inet virt-forward guest-web-{uuid_of('web')[:8]}",
    "an element": "delete element inet virt-forward ports { tcp . 8080 }",
    "a strange chain": "add chain inet virt-forward strange "
    "{ type filter hook input priority 0; policy drop; }",
    "a strange set": "add set inet virt-forward strange { type mark; elements = { 7 }; }",
    "a strange map to our chain": "add map inet virt-forward strange { type mark : verdict; elements = "
    f"{{ 7 : jump guest-web-{uuid_of('web')[:8]} }}; }}",
    "a policy": "add chain inet virt-forward forward { policy drop; }",
    "somebody else's": "delete table inet virt-forward; add table inet virt-forward; "
    "add map inet virt-forward ports { type inet_service : verdict; }",
}


@pytest.mark.parametrize("edit", EDITS)
def test_table_edited_by_hand(two: FaultTestbed, edit: str) -> None:
    """The guest's own stop takes everything of it away; sync makes the whole right."""
    two.lab.host.nft(EDITS[edit])
    assert two.event("web", "stopped").status == 0
    assert not [part for part in two.table() if "-web-" in part]
    two.start("mail")
    assert two.sync("db", "mail").status == 0
    two.assert_right("db", "mail")


@pytest.mark.parametrize("edit", ["deleted", "flushed"])
def test_table_that_is_gone_comes_back_with_any_guest(two: FaultTestbed, edit: str) -> None:
    two.lab.host.nft(EDITS[edit])
    two.start("mail")
    two.assert_right("web", "db", "mail")


# ---- time and other things ------------------------------------------------------------------


@pytest.mark.parametrize("years", [-30, 30])
def test_clock_that_jumps(two: FaultTestbed, years: int) -> None:
    """Nothing that decides anything looks at the clock on the wall."""
    really = time.time

    def jump() -> None:
        vars(time)["time"] = lambda: really() + years * 365 * 86400
        os.utime(two.run_dir / "ruleset.nft", (0, 0))

    for name, operation in (("mail", "started"), ("web", "reconnect"), ("db", "stopped"), ("db", "release")):
        assert two.event(name, operation, patch=jump).status == 0
    two.assert_right("web", "mail")


def impatient() -> None:
    vars(store)["LOCK_SECONDS"] = 0.3


@pytest.fixture
def held(two: FaultTestbed) -> Iterator[Path]:
    """Somebody has the lock and does not give it back."""
    lock = two.run_dir / "lock"
    with two.lab.host.background(["flock", lock, "sleep", "60"], two.lab.dir / "flock.log"):
        eventually(lambda: run(["flock", "-n", lock, "true"], check=False).status, "it is held")
        yield two.run_dir


def impatiently(testbed: FaultTestbed, name: str, operation: str) -> Outcome:
    done = testbed.event(name, operation, patch=impatient)
    assert done.status == 0
    assert "has held the lock for 0.3 seconds" in done.reasons
    return done


def test_lock_timeout_queues_change(two: FaultTestbed, held: Path) -> None:
    for name, operation in (("mail", "started"), ("web", "stopped"), ("web", "release"), ("twin", "prepare")):
        impatiently(two, name, operation)
    two.assert_kept("web", "db")
    two.lab.host._undo.close()
    # twin wants what web had, and can have it: web's end was told, if not made yet.
    assert two.event("twin", "prepare").status == 0
    two.assert_kept("db", "mail")
    assert two.event("twin", "started").status == 0
    two.assert_right("db", "mail", "twin")


def test_last_word_counts_of_what_was_left(two: FaultTestbed, held: Path) -> None:
    for operation in ("started", "stopped", "started"):
        impatiently(two, "mail", operation)
    for operation in ("stopped", "reconnect", "stopped"):
        impatiently(two, "web", operation)
    two.lab.host._undo.close()
    two.start("late")
    two.assert_right("db", "mail", "late")


NETWORK_EVENT = network_hook(Network("default", "virbr9", "bridge"), port_of="mail").encode()
OTHERS_WORK: dict[str, Callable[[], object]] = {
    "verify": lambda: refresh.verify(store.Store()),
    "network event": lambda: dispatch.main(
        "network", ["default", "port-created", "begin", "-"], NETWORK_EVENT
    ),
}


@pytest.mark.parametrize("work", OTHERS_WORK.values(), ids=OTHERS_WORK)
def test_queued_change_is_not_undone_by_other_work_on_the_guest(
    two: FaultTestbed, held: Path, work: Callable[[], object]
) -> None:
    impatiently(two, "mail", "started")
    impatiently(two, "web", "stopped")
    two.lab.host._undo.close()
    assert two.apart(lambda: int(bool(work()))).status == 0
    two.assert_right("db", "mail")


def test_teardown_opens_no_guest_whose_start_was_queued(two: FaultTestbed, held: Path) -> None:
    impatiently(two, "mail", "started")
    two.lab.host._undo.close()
    assert two.apart(teardown.main).status == 0
    two.assert_right()


def test_sync_does_not_open_a_guest_whose_start_was_queued_before_it_ended(
    two: FaultTestbed, held: Path
) -> None:
    impatiently(two, "mail", "started")
    two.lab.host._undo.close()
    assert two.sync("web", "db").status == 0
    two.assert_right("web", "db")


def test_guest_left_for_later_takes_no_port_of_the_host(two: FaultTestbed, held: Path) -> None:
    """It is judged like any other: nobody is locked out of the host because the lock was late."""
    two.lab.configure('[policy]\nreserved = ["tcp/8081"]\n')
    impatiently(two, "twin", "reconnect")
    two.lab.host._undo.close()
    two.start("late")
    assert not [line for line in two.table()["map ports"] if "8081" in line]
    two.assert_kept("web", "db", "late")


def test_port_of_the_host_is_not_freed_by_another_guests_end(testbed: FaultTestbed) -> None:
    """A conflict with the host stands, whoever comes and goes."""
    testbed.lab.configure('[policy]\nreserved = ["tcp/22", "tcp/2525"]\non_error = "warn"\n')
    testbed.start("mail", "web")
    testbed.stop("web")
    assert not [line for line in testbed.table()["map ports"] if "2525" in line]


def test_guest_without_metadata_any_more_is_forgotten(two: FaultTestbed) -> None:
    assert two.event("web", "reconnect", xml=domain("web")).status == 0
    two.stop("mail")
    two.assert_right("db")


def test_flows_of_a_guest_end_even_where_the_hook_that_stopped_it_was_killed(two: FaultTestbed) -> None:
    """The state has what stood before its last change."""
    two.start("mail")
    two.lab.host.run(["conntrack", *CONNECTION.split()])
    done = two.event("mail", "stopped", Steps(1, named("delete connections")))
    assert done.died
    assert "2525" in two.lab.host.run(["conntrack", "-L"]).out
    two.start("late")
    assert "2525" not in two.lab.host.run(["conntrack", "-L"]).out
    two.assert_right("web", "db", "late")
