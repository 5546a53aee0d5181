"""The state as a test wants it: in memory, or in a directory, with some guests in it."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from virt_forward.model import Guest
from virt_forward.state import database
from virt_forward.state.snapshot import Commit, Snapshot


def in_memory(*guests: Guest) -> Snapshot:
    """Return a state that is no file, with these guests."""
    state = Snapshot(database.in_memory(), ":memory:")
    put(state, *guests)
    return state


def put(state: Snapshot, *guests: Guest) -> None:
    """Write guests into a state."""
    state.commit(Commit({guest.uuid: guest for guest in guests}))


@contextlib.contextmanager
def edited(directory: Path) -> Iterator[sqlite3.Connection]:
    """Edit the database of a run directory as a person could with sqlite3(1)."""
    with contextlib.closing(sqlite3.connect(directory / database.FILE)) as connection, connection:
        yield connection


def adopt_include(directory: Path) -> None:
    """Let the state of a run directory that was copied name the include file that is there."""
    include = directory / "ruleset.nft"
    if (directory / database.FILE).exists() and include.exists():
        with edited(directory) as connection:
            connection.execute("UPDATE state SET value = ? WHERE name = 'include'", (name_of(include),))


def name_of(include: Path) -> str:
    """Return the name by which the state knows an include file."""
    found = include.stat()
    return f"{found.st_ino}:{found.st_size}:{found.st_mtime_ns}"


def uuids(directory: Path) -> set[str]:
    """Return the guests in the database of a run directory; none where there is no database."""
    return {str(uuid) for (uuid,) in rows(directory, "SELECT uuid FROM guest")}


def left(directory: Path) -> list[str]:
    """Return what is in a run directory only while something is under way, or was interrupted."""
    found = [path.name for path in directory.iterdir() if path.name.startswith(".")]
    found += [f"queued {uuid}" for (uuid,) in rows(directory, "SELECT uuid FROM queued")]
    markers = {path.name for path in (directory / "guests").iterdir()} ^ uuids(directory)
    return found + [f"marker {uuid}" for uuid in markers]


def rows(directory: Path, statement: str) -> list[tuple[object, ...]]:
    """Return what a statement reads from the database of a run directory."""
    if not (directory / database.FILE).exists():
        return []
    with edited(directory) as connection:
        return connection.execute(statement).fetchall()
