"""The run directory: opening its state, the lock, and what happens where it cannot be used."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.state import put
from unit.build import UUID, forward, guest
from virt_forward.errors import LockTimeout, StateError, StateRemovedError
from virt_forward.host import log
from virt_forward.state import database
from virt_forward.state.database import DamagedStateError, NewerStateError
from virt_forward.state.store import Store

WEB = guest("web", forward(80))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "run"))


@pytest.fixture(autouse=True)
def messages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(log, "error", found.append)
    return found


def test_environment_names_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIRT_FORWARD_RUN_DIR", str(tmp_path))
    assert Store().include_path == str(tmp_path / "ruleset.nft")
    monkeypatch.setenv("VIRT_FORWARD_RUN_DIR", "")
    assert Store().path == "/run/virt-forward"
    monkeypatch.delenv("VIRT_FORWARD_RUN_DIR")
    assert Store().path == "/run/virt-forward"


def test_nobody_else_may_look_inside(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "run"))
    assert not store.exists()
    with store.open(1) as state:
        store.mark([WEB.uuid])
        put(state, WEB)
    assert store.exists()
    found = {path.name for path in (tmp_path / "run").rglob("*")}
    assert found == {"guests", WEB.uuid, "lock", "state.db", "state.db-journal"}
    for path in [tmp_path / "run", *(tmp_path / "run").rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path


def test_state_is_what_was_committed(store: Store) -> None:
    with store.open() as state:
        assert state.created
        put(state, WEB)
    with store.open() as state:
        assert not state.created
        assert state.guests() == {WEB.uuid: WEB}


def test_reader_of_a_host_without_state_makes_none(store: Store) -> None:
    with store.open(create=False) as state:
        assert (state.guests(), state.networks()) == ({}, [])
    assert not store.exists()


def test_new_state_has_another_revision_than_the_one_before(store: Store) -> None:
    """The table of a state that was lost may still be in the kernel."""
    found = set()
    for _ in range(5):
        with store.open() as state:
            found.add(state.revision)
        Path(store.path, "state.db").unlink()
    assert len(found) > 1


def test_marker_is_made_and_removed(store: Store) -> None:
    marker = Path(store.path, "guests", WEB.uuid)
    with store.open() as state:
        store.mark([WEB.uuid])
        store.mark([WEB.uuid])
        assert marker.exists()
        store.unmark(state, {WEB.uuid})
        store.unmark(state, {WEB.uuid})
    assert not marker.exists()


DAMAGES = {
    "text": b"this is a text, and longer than the header of a database is" * 3,
    "another program's database": b"SQLite format 3\0" + bytes(44) + b"\0\0\0\1" + bytes(100),
    "half a header": b"SQLite form",
    "zeros": bytes(4096),
}


@pytest.mark.parametrize("data", DAMAGES.values(), ids=DAMAGES)
def test_damaged_database_is_kept_and_replaced(store: Store, messages: list[str], data: bytes) -> None:
    with store.open():
        pass
    path = Path(store.path, "state.db")
    path.write_bytes(data)
    with store.open() as state:
        assert state.created
        put(state, WEB)
    assert Path(store.path, "state.db.unused").read_bytes() == data
    assert "is not a database of virt-forward; it is replaced" in messages[0]
    with store.open() as state:
        assert state.guests() == {WEB.uuid: WEB}


def test_malformed_page_is_damage(store: Store, messages: list[str]) -> None:
    with store.open() as state:
        put(state, *(guest(f"g{number}", forward(number)) for number in range(1, 60)))
    path = Path(store.path, "state.db")
    data = path.read_bytes()
    path.write_bytes(data[: database.PAGE_SIZE] + b"\xff" * (len(data) - database.PAGE_SIZE))
    with contextlib.suppress(DamagedStateError), store.open() as state:
        state.guests()
    assert Path(store.path, "state.db.unused").exists()
    with store.open() as state:
        assert state.guests() == {}
    assert "it is replaced" in messages[0]


def test_file_that_was_created_and_not_filled_is_no_state(store: Store) -> None:
    with store.open():
        pass
    Path(store.path, "state.db").write_bytes(b"")
    with store.open() as state:
        assert state.created


def test_database_of_a_newer_version_is_left_as_it_is(store: Store) -> None:
    with store.open() as state:
        put(state, WEB)
        with state.transaction() as connection:
            connection.execute(f"PRAGMA user_version = {database.VERSION + 1}")
    data = Path(store.path, "state.db").read_bytes()
    with pytest.raises(NewerStateError, match="newer version") as caught, store.open():
        pytest.fail("it cannot be read")
    assert "virt-forward sync" in caught.value.hint
    assert Path(store.path, "state.db").read_bytes() == data


def test_change_is_queued_while_another_process_has_the_lock(store: Store) -> None:
    with store.open() as state:
        with Store(store.path).peek() as other:
            assert other is not None
            other.queue(WEB.uuid, WEB)
            other.queue(UUID, None)
        assert (state.guest(WEB.uuid), state.guest(UUID)) == (WEB, None)
    with store.open() as state:
        assert state.guests() == {WEB.uuid: WEB}


def killed_beyond(store: Store, limit: int) -> bool:
    """Change the state in a process that is killed when it writes a file beyond an offset; return whether."""
    pid = os.fork()
    if pid == 0:
        try:
            # Python ignores the signal by default.
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            with store.open() as state:
                put(state, *AFTER)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


BEFORE = [guest(f"g{number}", forward(number)) for number in range(1, 25)]
AFTER = [item._replace(phase="prepared") for item in BEFORE]


@pytest.mark.parametrize("journal", [True, False], ids=["with journal", "first journal"])
def test_process_killed_within_its_commit_has_changed_all_or_nothing(store: Store, journal: bool) -> None:
    """Each page of the journal and of the database is the last one in turn."""
    with store.open() as state:
        put(state, *BEFORE)
    saved = {path: path.read_bytes() for path in Path(store.path).iterdir() if path.is_file()}
    size, found = len(saved[Path(store.path, "state.db")]), []
    for limit in range(0, size + 8192, 2048):
        for path, data in saved.items():
            path.write_bytes(data)
        if not journal:
            Path(store.path, "state.db-journal").unlink()
        killed = killed_beyond(store, limit)
        with store.open() as state:
            guests = [*state.guests().values()]
            assert not state.created
        assert guests in (sorted(BEFORE), sorted(AFTER)), limit
        found.append((killed, guests == sorted(AFTER)))
    assert set(found) >= {(True, False), (False, True)}
    assert len([killed for killed, _ in found if killed]) > 10


def test_peek_returns_nothing_without_state(store: Store) -> None:
    with store.peek() as state:
        assert state is None


def test_counter_changes_with_every_change(store: Store) -> None:
    assert store.change_counter() == -1
    with store.open() as state:
        before = store.change_counter()
        put(state, WEB)
        assert store.change_counter() != before


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the lock as another process would: by another open file."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def test_wait_for_the_lock_is_bounded(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with (
        held(tmp_path / "lock"),
        pytest.raises(LockTimeout, match=r"held the lock for 0\.05 seconds"),
        store.lock(0.05),
    ):
        pytest.fail("two have the lock")
    with store.lock(0.05):
        pass


def test_directory_that_is_removed_while_it_is_in_use_is_told_as_that(store: Store) -> None:
    with pytest.raises(StateRemovedError, match="was removed while it was in use"), store.open():
        shutil.rmtree(store.path)
        store.mark([UUID])


def test_lock_in_a_directory_that_was_removed_is_waited_for_by_nobody(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "run"))
    with store.lock(1):
        shutil.rmtree(store.path)
        with Store(store.path).lock(5):
            assert store.exists()


def test_lock_of_a_file_that_is_removed_during_the_wait_is_not_taken(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waited for the old file gets it when its holder ends; by then others use the new one."""
    with store.lock():
        removed = Path(store.path, "removed")
        removed.touch()
        opened = [os.open(removed, os.O_RDWR)]
        real = Store._open_lock
        monkeypatch.setattr(Store, "_open_lock", lambda self: opened.pop() if opened else real(self))
        with pytest.raises(LockTimeout), Store(store.path).lock(0.05):
            pytest.fail("two have the lock")


def test_lock_is_free_again_after_an_error(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with pytest.raises(KeyError), store.lock(1):
        raise KeyError
    with store.lock(0.05):
        pass


def test_path_that_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(StateError, match="run"), Store(str(tmp_path / "run")).lock(1):
        pytest.fail("no directory, no lock")


@pytest.mark.parametrize("error", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_directory_that_cannot_be_written(error: int, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root writes into any directory, so the kernel's answer is stood in for."""
    with store.open():
        pass

    def refuse(path: str, *_: Any) -> int:
        raise OSError(error, os.strerror(error), path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        with pytest.raises(StateError, match=os.strerror(error)) as caught:
            store.mark([WEB.uuid])
        assert caught.value.hint == ("run it as root" if error == errno.EACCES else caught.value.hint)
        other = Store(f"{store.path}/guests")
        with pytest.raises(StateError, match=os.strerror(error)), other.lock(1):
            pytest.fail("a lock that cannot be opened")
