"""The run directory: whole files, one at a time, and what happens where it cannot be used."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from unit.build import UUID, forward, guest, uuid_of
from virt_forward.errors import LockTimeout, StateError
from virt_forward.model import Network
from virt_forward.state.store import Store

WEB = guest("web", forward(80))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(str(tmp_path / "run"))
    with made.lock(1):
        yield made


def test_the_environment_names_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIRT_FORWARD_RUN_DIR", str(tmp_path))
    assert Store().include_path == str(tmp_path / "ruleset.nft")
    monkeypatch.setenv("VIRT_FORWARD_RUN_DIR", "")
    assert Store().path == "/run/virt-forward"
    monkeypatch.delenv("VIRT_FORWARD_RUN_DIR")
    assert Store().path == "/run/virt-forward"


def test_nobody_else_may_look_inside(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "run"))
    assert not store.exists()
    with store.lock(1):
        store.put(WEB.uuid, WEB)
    assert store.exists()
    for path in [tmp_path / "run", *(tmp_path / "run").rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path


def test_guests_and_networks_are_kept_and_forgotten(store: Store) -> None:
    db = guest("db")
    store.put(WEB.uuid, WEB)
    store.put(db.uuid, db)
    assert store.knows(WEB.uuid)
    assert store.guest(WEB.uuid) == WEB
    assert store.guests() == (sorted([WEB, db], key=lambda item: item.uuid), [])
    store.put(WEB.uuid, None)
    store.put(WEB.uuid, None)
    assert not store.knows(WEB.uuid)
    assert store.guest(WEB.uuid) is None
    assert store.guests() == ([db], [])
    network = Network("default", UUID, "virbr1")
    store.put_network(UUID, network)
    assert store.networks() == [network]
    store.put_network(UUID, None)
    assert store.networks() == []


def test_a_damaged_record_is_told_and_the_others_are_read(store: Store) -> None:
    store.put(WEB.uuid, WEB)
    store.write(f"guests/{UUID}.json", "{")
    with pytest.raises(StateError, match=f"{UUID}.json: is no record of ours"):
        store.guest(UUID)
    guests, (error,) = store.guests()
    assert guests == [WEB]
    assert UUID in str(error)
    store.write(f"networks/{UUID}.json", "null")
    assert store.networks() == []


def test_a_record_under_another_guests_name_is_damaged(store: Store) -> None:
    store.put(UUID, WEB)
    with pytest.raises(StateError, match=f"is the record of another guest, {WEB.uuid}"):
        store.guest(UUID)


def test_bytes_that_are_no_text_count_as_nothing(store: Store) -> None:
    Path(store.path, "claims").write_bytes(b"\xff\xff")
    assert store.read("claims") is None
    assert store.read("nothing") is None
    assert store.read("guests") is None


def test_what_is_left_for_later_is_there_until_it_is_forgotten(store: Store) -> None:
    store.queue(WEB.uuid, WEB)
    store.queue(UUID, None)
    store.queue(WEB.uuid, None)
    found, errors = store.queued()
    mine = [left.guest for left in found if left.uuid == WEB.uuid]
    assert mine == [WEB, None], "the oldest first"
    assert [left.guest for left in found if left.uuid == UUID] == [None]
    assert errors == []
    assert store.queued() == (found, errors)
    store.dequeue([item.name for item in found])
    assert store.queued() == ([], [])


def test_what_was_left_and_is_damaged_is_told_and_can_be_forgotten(store: Store) -> None:
    store.write(f"todo/{uuid_of('broken')}.1.2.json", "{")
    found, (error,) = store.queued()
    assert "is no record of ours" in str(error)
    store.dequeue([item.name for item in found])
    assert store.queued() == ([], [])


def test_what_a_killed_process_left_half_written_is_swept_away(store: Store) -> None:
    ours, foreign = Path(store.path, f".x.{os.getpid()}.new"), Path(store.path, ".x.999999999.new")
    for path in (ours, foreign):
        path.touch()
    store.sweep()
    assert ours.exists()
    assert not foreign.exists()


def test_a_write_replaces_the_whole_file_or_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write("ruleset.nft", "old")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", full)
        with pytest.raises(StateError, match="No space left") as caught:
            store.write("ruleset.nft", "new")
    assert "df" in caught.value.hint
    assert store.read("ruleset.nft") == "old"
    store.write("ruleset.nft", "new, and shorter")
    assert store.read("ruleset.nft") == "new, and shorter"
    # a reader that globs *.nft must never find half a file
    assert [path.name for path in Path(store.path).glob("*.nft")] == ["ruleset.nft"]
    assert not list(Path(store.path).glob(".*"))


def test_a_reader_sees_the_old_or_the_new_text(store: Store) -> None:
    texts = {"a" * 100_000, "b" * 90_000}
    store.write("x", min(texts))
    done = threading.Event()
    seen: set[str | None] = set()

    def read() -> None:
        while not done.is_set():
            seen.add(store.read("x"))

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(50):
        for text in texts:
            store.write("x", text)
    done.set()
    reader.join(10)
    assert seen <= texts


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the lock as another process would: by another open file."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def test_the_wait_for_the_lock_is_bounded(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with (
        held(tmp_path / "lock"),
        pytest.raises(LockTimeout, match=r"held the lock for 0\.05 seconds"),
        store.lock(0.05),
    ):
        pytest.fail("two have the lock")
    with store.lock(0.05):
        pass


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
    removed = Path(store.path, "removed")
    removed.touch()
    opened = [os.open(removed, os.O_RDWR)]
    real = Store._open_lock
    monkeypatch.setattr(Store, "_open_lock", lambda self: opened.pop() if opened else real(self))
    with pytest.raises(LockTimeout), Store(store.path).lock(0.05):
        pytest.fail("two have the lock")


def test_the_lock_is_free_again_after_an_error(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with pytest.raises(KeyError), store.lock(1):
        raise KeyError
    with store.lock(0.05):
        pass


def test_a_path_that_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(StateError, match="run"), Store(str(tmp_path / "run")).lock(1):
        pytest.fail("no directory, no lock")


@pytest.mark.parametrize("error", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_directory_that_cannot_be_written(
    error: int, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root writes into any directory, so the kernel's answer is stood in for."""
    store.put(WEB.uuid, WEB)

    really = os.open

    def refuse(path: str, flags: int = os.O_WRONLY, *more: Any) -> int:
        if flags & os.O_ACCMODE == os.O_RDONLY:
            return really(path, flags, *more)
        raise OSError(error, os.strerror(error), path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        patched.setattr(os, "unlink", refuse)
        with pytest.raises(StateError, match=os.strerror(error)) as caught:
            store.put(WEB.uuid, WEB)
        assert caught.value.hint == ("run it as root" if error == errno.EACCES else caught.value.hint)
        with pytest.raises(StateError, match=os.strerror(error)):
            store.put(WEB.uuid, None)
        other = Store(f"{store.path}/guests")
        with pytest.raises(StateError, match=os.strerror(error)), other.lock(1):
            pytest.fail("a lock that cannot be opened")
    assert store.guest(WEB.uuid) == WEB


def test_an_absent_directory_reads_as_empty(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "none"))
    assert store.guests() == ([], [])
    assert store.networks() == []
    assert store.queued() == ([], [])
    assert store.guest(UUID) is None
