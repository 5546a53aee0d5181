"""The database of the run directory: its schema, how it is opened, created, and replaced where it is damaged.

A rollback journal, as the file is small and one process at a time writes. PERSIST keeps the
journal's blocks, so that a change which is no larger than those before it can be written even
where the file system is full. synchronous=OFF: /run does not outlive a power failure, and a
process that is killed loses nothing that it has written; whoever opens the database next rolls
back what it had not committed. journal_mode=MEMORY would not survive that.
"""

# The package sqlite3 builds on this one. It imports datetime for what nothing here uses: 1 ms of each event.
import _sqlite3 as sqlite3
import contextlib
import errno
import os
from collections.abc import Iterator

from virt_forward.errors import StateError
from virt_forward.text import output

Connection = sqlite3.Connection

FILE = "state.db"
VERSION = 1
"""user_version of the file. A change that an older program cannot read gets the next number."""

APPLICATION = 0x76664631
"""application_id of the file, which file(1) shows."""

UNUSED = "unused"
"""What is added to the name of a file that cannot be used."""

PAGE_SIZE = 1024
"""Most changes are of a few rows, and there are more tables than rows on most hosts."""

BUSY_SECONDS = 1.0
"""How long to wait for another process's transaction, which is one short write."""

SIZES = (1, 16, 256, 4096, 65536)
"""Classes of claims by their number of ports: claims that overlap a span are searched for in each class,
where they can begin no further below the span than the class is wide."""

SCHEMA = f"""
CREATE TABLE state (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE guest (
  uuid TEXT PRIMARY KEY, name TEXT NOT NULL, phase TEXT NOT NULL,
  sequence INTEGER NOT NULL, changed REAL NOT NULL, starter TEXT NOT NULL, record TEXT NOT NULL);
CREATE INDEX guest_sequence ON guest (sequence);
CREATE INDEX guest_starter ON guest (starter) WHERE phase = 'prepared' AND starter <> '';
CREATE TABLE claim (
  uuid TEXT NOT NULL, number INTEGER NOT NULL, state TEXT NOT NULL, proto TEXT NOT NULL,
  address TEXT NOT NULL, dev TEXT NOT NULL, source TEXT NOT NULL,
  size INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
  PRIMARY KEY (proto, size, first, uuid, number)) WITHOUT ROWID;
CREATE INDEX claim_guest ON claim (uuid);
CREATE INDEX claim_wide ON claim (proto, address) WHERE size > {SIZES[0]} AND (dev <> '' OR source <> '');
CREATE TABLE endpoint (
  uuid TEXT NOT NULL, ip TEXT NOT NULL, bridge TEXT NOT NULL, origin TEXT NOT NULL, holds INTEGER NOT NULL,
  version INTEGER NOT NULL, open INTEGER NOT NULL,
  PRIMARY KEY (ip, bridge, uuid)) WITHOUT ROWID;
CREATE INDEX endpoint_guest ON endpoint (uuid);
CREATE INDEX endpoint_open ON endpoint (bridge, version) WHERE open;
CREATE TABLE part (
  uuid TEXT NOT NULL, kind TEXT NOT NULL, place TEXT NOT NULL, value TEXT NOT NULL,
  PRIMARY KEY (kind, place, value, uuid)) WITHOUT ROWID;
CREATE INDEX part_guest ON part (uuid);
CREATE TABLE network (uuid TEXT PRIMARY KEY, name TEXT NOT NULL, record TEXT NOT NULL);
CREATE INDEX network_name ON network (name);
CREATE TABLE queued (uuid TEXT PRIMARY KEY, number INTEGER NOT NULL, record TEXT);
CREATE TABLE previous (uuid TEXT PRIMARY KEY, record TEXT);
CREATE TABLE effect (effect TEXT NOT NULL, dev TEXT NOT NULL, chain TEXT NOT NULL,
  PRIMARY KEY (effect, dev, chain)) WITHOUT ROWID;
"""
"""state      revision, include (which file is the table of that revision), settings (what it was rendered
           from), config (the last valid text),
           identity (the first revision: another one is another state)
guest      what a guest declares and where it is, as JSON; ``sequence`` grows with every change of one
claim, endpoint, part
           the rows of claims/rows.py, derived from the guests, for searches; ``part`` has those of which
           one is enough, whoever has it: subnets (by bridge), gateways, lookups, isolated addresses
network    libvirt's networks, from the network hook
queued     what a guest is to be (NULL: absent), from a hook that could not have the lock in time
previous   guests before the last change, until it is known that all of it was done
effect     what is set outside our table
"""


class NewerStateError(StateError):
    """The database is that of a newer version, and is left as it is."""


class DamagedStateError(StateError):
    """The file is no database, or not one of ours, or SQLite finds it malformed."""


def insertion(table: str) -> str:
    """Return the statement that inserts a row into a table, unless it has one with that key."""
    return f"INSERT OR IGNORE INTO {table} VALUES ({', '.join('?' * _COLUMNS[table])})"


_COLUMNS = {
    "state": 2,
    "claim": 10,
    "endpoint": 7,
    "part": 4,
    "network": 3,
    "queued": 3,
    "previous": 2,
    "effect": 3,
}
"""How many columns a table has."""


def connect(directory: str) -> sqlite3.Connection | None:
    """Return a connection to the database in a directory, or None where there is none yet.

    Raises NewerStateError, DamagedStateError, and StateError where the file cannot be read.
    """
    path = os.path.join(directory, FILE)
    with failing(path):
        try:
            with open(path, "rb") as file:
                header = file.read(72)
        except FileNotFoundError:
            return None
        if not header:
            return None
        _check(header, path)
        connection = _opened(path)
        ((version,),) = connection.execute("PRAGMA user_version")
        if version:
            return connection
        # What was rolled back just now was the creation of the tables.
        connection.close()
        return None


def _check(header: bytes, path: str) -> None:
    """Raise where the header is not that of a database of ours (sqlite.org/fileformat.html 1.3)."""
    version = int.from_bytes(header[60:64], "big")
    if header[:16] != b"SQLite format 3\0" or header[68:] != APPLICATION.to_bytes(4, "big"):
        raise DamagedStateError(f"{path}: is not a database of virt-forward")
    if version > VERSION:
        raise NewerStateError(
            f"{path}: was written by a newer version of virt-forward",
            "install that version again, or run virt-forward sync to rebuild the state with this one",
        )


def create(directory: str) -> sqlite3.Connection:
    """Return a connection to a new database in a directory, in a transaction that has made its tables."""
    path = os.path.join(directory, FILE)
    with failing(path):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = _opened(path)
        try:
            _make_tables(connection)
        except BaseException:
            connection.close()
            raise
        return connection


def in_memory() -> sqlite3.Connection:
    """Return a connection to an empty database that is no file."""
    connection = _opened(":memory:")
    _make_tables(connection)
    connection.execute("COMMIT")
    return connection


def effects_of_newer(directory: str) -> list[tuple[str, str, str]]:
    """Return what a newer version has recorded of what it has set outside our table, if it is there."""
    try:
        with contextlib.closing(_opened(os.path.join(directory, FILE))) as connection:
            return connection.execute("SELECT effect, dev, chain FROM effect").fetchall()
    except sqlite3.Error:
        return []


def _make_tables(connection: sqlite3.Connection) -> None:
    connection.execute(f"PRAGMA page_size = {PAGE_SIZE}")
    connection.execute("BEGIN IMMEDIATE")
    for statement in filter(str.strip, SCHEMA.split(";\n")):
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION}")
    connection.execute(f"PRAGMA user_version = {VERSION}")


def set_aside(directory: str) -> None:
    """Rename a database that cannot be used; one such file is kept."""
    path = os.path.join(directory, FILE)
    with failing(path):
        os.rename(path, f"{path}.{UNUSED}")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{path}-journal")


def change_counter(directory: str) -> int:
    """Return a number that every transaction changes (the file's header, sqlite.org/fileformat.html 1.3.7).

    It is -1 where there is no database.
    """
    try:
        with open(os.path.join(directory, FILE), "rb") as file:
            return int.from_bytes(file.read(28)[24:], "big")
    except OSError:
        return -1


def _opened(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    for setting in ("journal_mode = PERSIST", "synchronous = OFF", "temp_store = MEMORY"):
        connection.execute(f"PRAGMA {setting}")
    return connection


@contextlib.contextmanager
def failing(path: str) -> Iterator[None]:
    """Raise StateError for what SQLite or the kernel says about a file."""
    try:
        yield
    except OSError as error:
        raise unusable(error.filename or path, error) from None
    except sqlite3.Error as error:
        # The primary result code is the low byte (sqlite.org/rescode.html).
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        reason = _REASONS.get(code) or output(str(error))
        kind = DamagedStateError if code in _DAMAGED else StateError
        raise kind(f"{path}: {reason}", _HINT) from None


_DAMAGED = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)
_REASONS = {
    sqlite3.SQLITE_FULL: os.strerror(errno.ENOSPC),
    sqlite3.SQLITE_READONLY: os.strerror(errno.EROFS),
}
_HINT = "see df and mount for this directory"


def unusable(path: str, error: OSError) -> StateError:
    """Return the error for a file that the kernel does not let us have."""
    hint = "run it as root" if isinstance(error, PermissionError) else _HINT
    return StateError(f"{path}: {error.strerror}", hint)
