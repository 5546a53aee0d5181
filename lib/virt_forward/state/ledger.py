"""What is written down in the run directory: the guests, what was begun, what was queued, who claims what.

A ledger is read for one change, with the lock held. It trusts the derived files (claims,
include) only while nothing says that a change was cut off.
"""

from collections.abc import Iterable, Mapping
from itertools import pairwise
from zlib import crc32

from virt_forward.claims import index as claims
from virt_forward.errors import StateError
from virt_forward.host import log
from virt_forward.model import Guest, Listen, Span
from virt_forward.state import journal
from virt_forward.state.journal import Guests, Journal
from virt_forward.state.store import Queued, Store

SEAL = "# unchanged as long as this is its sum: "
"""The last line of a derived file. A person may edit one, or a disk that fills up cut it off."""


class Ledger:
    """The state before a change; ``rebuild`` trusts nothing but the records, and libvirt's word on top.

    ``counted`` tells that the index had to be made from the records.
    """

    def __init__(self, store: Store, *, rebuild: bool = False) -> None:
        text = store.read("unfinished")
        self.store = store
        self.pending = (text and journal.parse(text)) or Journal({}, {})
        if rebuild:
            self._drop_newcomers()
        self.unfinished = text is not None
        self.trusted = not rebuild and not self.unfinished
        self.counted = False
        self._damaged: set[str] = set()

    def _drop_newcomers(self) -> None:
        # libvirt ended the guest whose hook was cut off before it was even recorded.
        after = {u: guest for u, guest in self.pending.after.items() if not guest or self.store.knows(u)}
        self.pending = self.pending._replace(after=after)

    def guest(self, uuid: str) -> Guest | None:
        """Return a guest's record; a damaged one counts as none, and nothing derived is trusted any more."""
        try:
            return self.store.guest(uuid)
        except StateError as error:
            log.error(f"{error}; it is rebuilt")
            self._damaged.add(uuid)
            self.trusted = False
            return None

    def guests(self) -> dict[str, Guest]:
        """Return all guests as they should be now: their records, and what was begun on top of them."""
        found, errors = self.store.guests()
        for error in errors:
            log.error(f"{error}; it is left out")
        guests = {guest.uuid: guest for guest in found} | self.pending.after
        return _consistent([guest for guest in guests.values() if guest])

    def recorded(self, uuid: str) -> Guest | None:
        """Return a guest with what was begun on top of its record; a damaged record counts as none."""
        return self.pending.after[uuid] if uuid in self.pending.after else self.guest(uuid)

    def known(self, uuid: str) -> Guest | None:
        """Return a guest likewise, with what was queued on top."""
        for item in self.queued()[0]:
            if item.uuid == uuid:
                return item.guest
        return self.recorded(uuid)

    def merged(self) -> dict[str, Guest]:
        """Return all guests as they will be once what was begun, and what was queued, is done."""
        found: dict[str, Guest | None] = {**self.guests()}
        found |= {item.uuid: item.guest for item in self.queued()[0]}
        return {uuid: guest for uuid, guest in found.items() if guest}

    def index(self) -> claims.Index:
        """Return the index of claims, rebuilt from the records where it is not to be trusted."""
        text = self.derived("claims")
        try:
            if text is not None:
                return claims.parse_index(text)
        except ValueError as error:
            log.warning(f"{error}; it is rebuilt")
        self.counted = True
        return tuple(row for guest in self.guests().values() for row in claims.rows(guest))

    def queued(self) -> tuple[list[Queued], frozenset[str]]:
        """Return the last change that was queued for each guest, and the names of all that were."""
        found, errors = self.store.queued()
        for error in errors:
            log.error(f"{error}; it is skipped")
        last = {item.uuid: item for item in found if item.uuid and item.name not in self.pending.taken}
        return list(last.values()), frozenset(item.name for item in found)

    def begin(self, before: Guests, after: Guests, taken: frozenset[str]) -> None:
        """Write down what is about to be done, where anything is; raises StateError."""
        changed = {uuid: guest for uuid, guest in after.items() if self._differs(uuid, before[uuid], guest)}
        if changed or taken or self.pending.after:
            known = before | self.pending.before
            self.store.write("unfinished", journal.render(known, self.pending.after | changed, taken))

    def mark(self) -> None:
        """Leave at least a sign that a change was begun: an empty file needs no space."""
        if not self.unfinished:
            try:
                self.store.write("unfinished", "")
            except StateError as error:
                log.error(str(error))

    def put(self, before: Guests, after: Guests) -> bool:
        """Write the records; return whether that could be done."""
        changed = [uuid for uuid, guest in after.items() if self._differs(uuid, before[uuid], guest)]
        failed = [uuid for uuid in changed if not self._put(uuid, after[uuid])]
        return not failed

    def _put(self, uuid: str, guest: Guest | None) -> bool:
        try:
            self.store.put(uuid, guest)
        except StateError as error:
            log.error(f"{error}; the next change makes it good")
            return False
        return True

    def _differs(self, uuid: str, before: Guest | None, after: Guest | None) -> bool:
        return before != after or uuid in self._damaged

    def derive(self, files: Mapping[str, str]) -> bool:
        """Write derived files; return whether that could be done."""
        try:
            for name, text in files.items():
                self._derive(name, text)
        except StateError as error:
            log.error(f"{error}; the table is right, but the include file may be out of date")
            return False
        return True

    def derived(self, name: str) -> str | None:
        """Return a derived file's text, or None where it is not to be trusted, or not as we left it."""
        text = self.store.read(name) if self.trusted else None
        if text is None:
            return None
        body, mark, seal = text.rpartition(SEAL)
        if not mark or seal != f"{crc32(body.encode()):08x}\n":
            log.warning(f"{self.store.path}/{name} is not as it was left; it is rebuilt")
            return None
        return body

    def _derive(self, name: str, text: str) -> None:
        text = f"{text}{SEAL}{crc32(text.encode()):08x}\n"
        try:
            self.store.write(name, text)
        except StateError as error:
            # Rather none than a wrong one; and the old text may have been what took the space.
            log.warning(f"{error}; another attempt without the old text")
            self.store.remove(name)
            self.store.write(name, text)

    def finish(self, taken: Iterable[str]) -> None:
        """Take back the sign that a change was begun, and what it has taken in."""
        try:
            # What was taken in must go first: the journal is what says that it was.
            self.store.dequeue(taken)
            self.store.remove("unfinished")
            self.store.sweep()
        except StateError as error:
            log.error(f"{error}; the next change does it again")


def _consistent(guests: list[Guest]) -> dict[str, Guest]:
    """Return guests by UUID; where two records claim the same, one has to go without.

    nft would refuse the whole table for it. Only a record that is not of our making does that.
    """
    guests = sorted(guests, key=lambda guest: (guest.phase != "running", guest.uuid))
    if not _clash(row for guest in guests for row in claims.rows(guest)):
        return {guest.uuid: guest for guest in guests}
    log.error("records of different guests claim the same; the later ones are kept out")
    index: claims.Index = ()
    settled: dict[str, Guest] = {}
    for guest in guests:
        settled[guest.uuid] = claims.settle(index, guest, dict(guest.conflicts).get)
        index += claims.rows(settled[guest.uuid])
    return settled


def _clash(rows: Iterable[claims.Row]) -> bool:
    endpoints: dict[claims.Location, str] = {}
    spans: dict[Listen, list[Span]] = {}
    for row in rows:
        if isinstance(row, claims.EndpointRow):
            if endpoints.setdefault(claims.location(row), row.uuid) != row.uuid:
                return True
        elif isinstance(row, claims.PortRow) and row.holds:
            spans.setdefault(row.listen, []).append(row.span)
    return any(one.overlaps(other) for found in map(sorted, spans.values()) for one, other in pairwise(found))
