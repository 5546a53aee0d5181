"""The state as one process has it while it holds the lock, and the one way to change it.

A snapshot reads what it is asked for: the guests of one event, and by indexed searches the rows of
others that are near theirs. What an event costs does not depend on how many other guests there are.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cached_property

from virt_forward import text
from virt_forward.claims.rows import Index, Row
from virt_forward.errors import StateError
from virt_forward.host import log, process
from virt_forward.model import Guest, Guests, Network
from virt_forward.namedtuple import TYPE_CHECKING, NamedTuple
from virt_forward.state import database, index, records
from virt_forward.state.database import Connection
from virt_forward.state.index import Side

if TYPE_CHECKING:
    from typing import Any

    from virt_forward.state.upgrade import Old


class Queued(NamedTuple):
    """What a guest is to be (None: absent), queued by a hook that could not have the lock in time."""

    number: int
    guest: Guest | None


class Commit(NamedTuple):
    """One change of the state.

    ``after`` are the guests that change. ``previous`` are guests as they were before this change and
    an interrupted one that it completes. ``taken`` are the queued changes that are part of it, by UUID
    and number. ``revision``, ``include`` and ``settings`` are those of the table where it changes; without a
    revision it does not. ``settings`` is what it was rendered from (ruleset.static.settings).
    ``starter`` is the process that has asked for the start of guests that are prepared (host/starter.py).
    """

    after: Mapping[str, Guest | None]
    previous: Mapping[str, Guest | None] = {}
    taken: Mapping[str, int] = {}
    revision: int | None = None
    include: str = ""
    settings: str = ""
    starter: str = ""


class Snapshot:
    """The state; see Store.open.

    ``created`` tells that there was none before, ``damaged`` that a record was read that cannot be used.

    Every method raises StateError where the database cannot be read or written.
    """

    def __init__(self, connection: Connection, path: str, *, created: bool = False) -> None:
        self._connection = connection
        self.path = path
        self.created = created
        self.damaged = False
        self._loaded: dict[str, Guest] = {}

    def _all(self, statement: str, *parameters: object) -> list[Any]:
        with database.failing(self.path):
            return self._connection.execute(statement, parameters).fetchall()

    def _one(self, statement: str, *parameters: object) -> Any:
        found = self._all(statement, *parameters)
        return found[0] if found else None

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Commit what is executed on the connection, or nothing of it."""
        with database.failing(self.path):
            if not self._connection.in_transaction:
                self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    # What is known of the whole.

    def value(self, name: str) -> str:
        """Return a value of the table ``state``, empty where it was never set."""
        return str(self._values.get(name, ""))

    @cached_property
    def _values(self) -> dict[str, object]:
        return dict(self._all("SELECT name, value FROM state"))

    def set_value(self, name: str, value: str) -> None:
        """Set a value of the table ``state``."""
        with self.transaction() as connection:
            connection.execute("REPLACE INTO state VALUES (?, ?)", (name, value))
        self._forget()

    @property
    def revision(self) -> int:
        """The revision of the table that follows from the state."""
        found = self.value("revision")
        return int(found) if found.isdecimal() else 0

    @property
    def is_new(self) -> bool:
        """Whether no table was ever made from it: what is in the kernel then is that of another state."""
        return not self.value("settings")

    def has_table(self) -> bool:
        """Tell whether any guest has a part in the table."""
        return index.is_any_in_table(self._all)

    # Guests.

    @cached_property
    def queued(self) -> dict[str, Queued]:
        """The changes that were queued, by UUID."""
        found = {}
        for uuid, number, record in self._all("SELECT uuid, number, record FROM queued ORDER BY number"):
            try:
                found[uuid] = Queued(number, self._guest(uuid, record) if record is not None else None)
            except StateError as error:
                log.error(f"{error}; it is dropped")
                found[uuid] = Queued(number, self.recorded(uuid))
        return found

    @cached_property
    def previous(self) -> Guests:
        """Guests before the last change, where it may have been interrupted (see Commit)."""
        found: Guests = {}
        for uuid, record in self._all("SELECT uuid, record FROM previous"):
            with contextlib.suppress(StateError):
                found[uuid] = self._guest(uuid, record) if record is not None else None
        return found

    def guest(self, uuid: str) -> Guest | None:
        """Return a guest as it is to be: its record, or what was queued."""
        return self.queued[uuid].guest if uuid in self.queued else self.recorded(uuid)

    def guests(self) -> dict[str, Guest]:
        """Return all guests as they are to be, by UUID."""
        found: Guests = {**self.all_recorded(), **{uuid: item.guest for uuid, item in self.queued.items()}}
        return {uuid: guest for uuid, guest in sorted(found.items()) if guest}

    def recorded(self, uuid: str) -> Guest | None:
        """Return a guest's record; one that is damaged counts as none."""
        found = self._one("SELECT record FROM guest WHERE uuid = ?", uuid)
        try:
            return self._guest(uuid, found[0]) if found else None
        except StateError as error:
            log.error(f"{error}; it is rebuilt")
            self.damaged = True
            return None

    def knows(self, uuid: str) -> bool:
        """Tell whether a guest is recorded, even where the record is damaged, or was queued."""
        return bool(self._one("SELECT 1 FROM guest WHERE uuid = ?", uuid)) or uuid in self.queued_now()

    def all_recorded(self) -> dict[str, Guest]:
        """Return all records but those that are damaged, by UUID."""
        found = {}
        for uuid, record in self._all("SELECT uuid, record FROM guest ORDER BY uuid"):
            try:
                found[uuid] = self._guest(uuid, record)
            except StateError as error:
                log.error(f"{error}; it is left out")
        return found

    def versions(self) -> dict[str, object]:
        """Return by UUID what differs between two versions of a guest, as it is to be."""
        found = dict(self._all("SELECT uuid, record FROM guest"))
        queued = self._all("SELECT uuid, record FROM queued ORDER BY number")
        return {uuid: record for uuid, record in (found | dict(queued)).items() if record is not None}

    def age(self, uuid: str) -> float:
        """Return how many seconds ago a guest was changed; infinity where there is none."""
        found = self._one("SELECT changed FROM guest WHERE uuid = ?", uuid)
        return abs(time.monotonic() - found[0]) if found else float("inf")

    def in_order(self, uuids: Collection[str]) -> list[str]:
        """Return those of ``uuids`` that are recorded, in the order in which they were changed last."""
        order = self._all("SELECT uuid FROM guest ORDER BY sequence")
        return [uuid for (uuid,) in order if uuid in uuids]

    def starters(self) -> list[str]:
        """Return which processes have prepared guests that do not run yet; see host/starter.py."""
        found = self._all(
            "SELECT DISTINCT starter FROM guest WHERE phase = 'prepared' AND starter <> '' ORDER BY starter"
        )
        return [starter for (starter,) in found]

    def prepared_by(self, starter: str) -> dict[str, str]:
        """Return the names of the guests that a process has prepared and that do not run, by UUID."""
        where = "phase = 'prepared' AND starter <> '' AND starter = ?"
        return dict(self._all(f"SELECT uuid, name FROM guest WHERE {where}", starter))

    def _guest(self, uuid: str, record: str) -> Guest:
        if record in self._loaded and self._loaded[record].uuid == uuid:
            return self._loaded[record]
        guest = records.load_guest(record, f"{self.path}: guest {uuid}")
        if guest.uuid != uuid:
            raise StateError(f"{self.path}: guest {uuid}: is the record of another guest, {guest.uuid}")
        self._loaded[record] = guest
        return guest

    # Claims.

    def near(self, touching: Iterable[Row], without: Collection[str]) -> Index:
        """Return the rows of guests but those in ``without`` that may matter to ``touching``, by UUID.

        Claims to the same host ports, whatever else they ask for, and of those narrowed to a device or
        source the wide ones of the same protocol and address; endpoints at the same address of the same
        bridge. Of subnets on the same bridge, of the same gateways and isolated hardware addresses, and of
        all lookups, one row of each, whoever has it.
        """
        touching = tuple(touching)
        try:
            return index.near(self._all, touching, without)
        except (ValueError, TypeError) as error:
            log.error(f"{self.path}: a claim is damaged: {text.output(str(error))}; all are derived again")
            self.derive()
            return index.near(self._all, touching, without)

    def derive(self) -> None:
        """Derive the rows of all guests again from their records."""
        guests = self.all_recorded()
        with self.transaction() as connection:
            for table in index.TABLES:
                connection.execute(f"DELETE FROM {table}")
            for guest in guests.values():
                index.insert(connection, guest)

    def sides(self) -> frozenset[Side]:
        """Return the bridges with open forwards, by the IP version of the guests' addresses."""
        return index.sides(self._all)

    def bridges(self) -> frozenset[str]:
        """Return the bridges on which running guests have forwards."""
        return index.bridges(self._all)

    # Networks and effects.

    def networks(self) -> list[Network]:
        """Return the records of libvirt's networks; damaged ones count as absent."""
        found = []
        for uuid, record in self._all("SELECT uuid, record FROM network ORDER BY uuid"):
            with contextlib.suppress(StateError):
                found.append(records.load_network(record, f"{self.path}: network {uuid}"))
        return found

    def put_networks(self, networks: Mapping[str, Network | None]) -> None:
        """Write networks by their UUIDs, or remove them."""
        with self.transaction() as connection:
            for uuid, network in networks.items():
                connection.execute("DELETE FROM network WHERE uuid = ?", (uuid,))
                if network:
                    record = records.dump_network(network)
                    connection.execute("INSERT INTO network VALUES (?, ?, ?)", (uuid, network.name, record))

    def effects(self) -> list[tuple[str, str, str]]:
        """Return what is set outside our table: the effect, the interface, the chain."""
        return self._all("SELECT effect, dev, chain FROM effect")

    def set_effects(self, effects: Iterable[tuple[str, str, str]]) -> None:
        """Record other effects in the place of those that are recorded."""
        with self.transaction() as connection:
            connection.execute("DELETE FROM effect")
            connection.executemany(database.insertion("effect"), effects)

    # Changes.

    def commit(self, change: Commit) -> None:
        """Make one change, as a whole or not at all."""
        with self.transaction() as connection:
            ((sequence,),) = connection.execute("SELECT coalesce(max(sequence), 0) FROM guest")
            for number, (uuid, guest) in enumerate(change.after.items(), sequence + 1):
                _put(connection, uuid, guest, number, change.starter)
            for uuid, number in change.taken.items():
                connection.execute("DELETE FROM queued WHERE uuid = ? AND number = ?", (uuid, number))
            if change.revision is not None:
                connection.execute("DELETE FROM previous")
                dumped = ((uuid, _dump(guest)) for uuid, guest in change.previous.items())
                connection.executemany("INSERT INTO previous VALUES (?, ?)", dumped)
                found = {"revision": str(change.revision), "include": change.include}
                found["settings"] = change.settings
                connection.executemany("REPLACE INTO state VALUES (?, ?)", found.items())
        self._forget()

    def fill(self, old: Old, revision: int) -> None:
        """Write a new state, with what an older version has left."""
        found: dict[str, Iterable[tuple[object, ...]]] = {
            "queued": ((uuid, n, _dump(guest)) for n, (uuid, guest) in enumerate(old.queued.items())),
            "previous": ((uuid, _dump(guest)) for uuid, guest in old.previous.items()),
            "network": ((u, n.name, records.dump_network(n)) for u, n in old.networks.items()),
            "effect": old.effects,
            "state": (("revision", str(revision)), ("identity", str(revision)), ("config", old.config)),
        }
        with self.transaction() as connection:
            for number, (uuid, guest) in enumerate(old.guests.items(), 1):
                _put(connection, uuid, guest, number, "")
            for table, rows_ in found.items():
                connection.executemany(database.insertion(table), rows_)

    def queued_now(self) -> set[str]:
        """Return the guests of all changes that are queued by now, also since this was opened."""
        return {uuid for (uuid,) in self._all("SELECT uuid FROM queued")}

    def queue(self, uuid: str, guest: Guest | None, mark: Callable[[], None] = lambda: None) -> None:
        """Queue a change of a guest in the place of an earlier one; without the lock, see Store.queue.

        ``mark`` is called in the transaction that does it.
        """
        process.end_if_unwanted()
        with self.transaction() as connection:
            mark()
            # The time since boot does not jump.
            row = (uuid, time.monotonic_ns(), _dump(guest))
            connection.execute("REPLACE INTO queued VALUES (?, ?, ?)", row)
        self._forget()

    def _forget(self) -> None:
        for name in ("queued", "previous", "_values"):
            self.__dict__.pop(name, None)

    def close(self) -> None:
        """Close the database."""
        self._connection.close()


def _put(connection: Connection, uuid: str, guest: Guest | None, sequence: int, starter: str) -> None:
    for table in ("guest", *index.TABLES):
        connection.execute(f"DELETE FROM {table} WHERE uuid = ?", (uuid,))
    if guest is None:
        return
    row = (
        *(uuid, index.plain_name(guest.name), guest.phase, sequence, time.monotonic()),
        *(starter if guest.phase == "prepared" else "", records.dump_guest(guest)),
    )
    connection.execute("INSERT INTO guest VALUES (?, ?, ?, ?, ?, ?, ?)", row)
    index.insert(connection, guest)


def _dump(guest: Guest | None) -> str | None:
    return records.dump_guest(guest) if guest else None
