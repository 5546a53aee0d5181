"""Guests that come, change and go, as the engine would have it, without a kernel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from hypothesis import strategies as st

from unit import strategies as make
from virt_forward.claims import index as claims
from virt_forward.config import Config
from virt_forward.model import Guest
from virt_forward.names import TABLE
from virt_forward.ruleset import table


class Event(NamedTuple):
    """A guest becomes this, or is gone."""

    number: int
    guest: Guest | None


@st.composite
def histories(draw: st.DrawFn) -> list[Event]:
    """Make up to eight events of four guests, each of which comes, moves, changes, pauses and goes."""
    base = [draw(make.guests(number, "running")) for number in range(4)]
    found = []
    for number in draw(st.lists(st.integers(0, 3), min_size=1, max_size=8)):
        what = draw(st.sampled_from(("as it is", "as it is", "moved", "changed", "paused", "gone")))
        guest = base[number]
        if what == "moved":
            guest = guest._replace(
                endpoints=tuple(endpoint._replace(ip=endpoint.ip + 100) for endpoint in guest.endpoints)
            )
        elif what == "changed":
            guest = draw(make.guests(number))
        elif what == "paused":
            guest = guest._replace(phase="prepared")
        found.append(Event(number, None if what == "gone" else guest))
    return found


events = histories()


class Simulation:
    """The records, and the include file as a chain of changes has made it."""

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or Config()
        self.guests: dict[int, Guest] = {}
        self.include = table.whole((), self.config, 1)

    def index(self, without: int | None = None) -> claims.Index:
        others = (guest for number, guest in self.guests.items() if number != without)
        return tuple(row for guest in others for row in claims.rows(guest))

    def change(self, happening: Event) -> table.Change:
        """Make an event happen; the include file is spliced, not rendered as a whole."""
        number, wanted = happening
        before, others = self.guests.pop(number, None), self.index(number)
        after = claims.resolve_conflicts(others, wanted) if wanted else None
        old, new = [before] if before else [], [after] if after else []
        old_rows = tuple(row for guest in old for row in claims.rows(guest))
        new_rows = tuple(row for guest in new for row in claims.rows(guest))
        touching = old_rows + new_rows
        change = table.Change(
            table.blocks_of(old, others + old_rows, touching, self.config),
            table.blocks_of(new, others + new_rows, touching, self.config),
        )
        if after:
            self.guests[number] = after
        self.include = self._spliced(change)
        return change

    def _spliced(self, change: table.Change) -> table.Include:
        """Return the include file after a change; as a whole where there was no table or is none now."""
        revision, whole = self.include.revision, self.whole()._replace(revision=self.include.revision + 1)
        if not self.include.paragraphs or not whole.paragraphs:
            return whole
        before = table.text(self.include).encode()
        pieces = table.splice(before, revision, revision + 1, change, self.config)
        assert pieces is not None, change
        text = b"".join(pieces).decode()
        assert text == table.text(whole)
        return parts(text, revision + 1)

    def commands(self, happening: Event) -> str:
        """Make an event happen, and return what the engine would say to nft."""
        before = self.include
        change = self.change(happening)
        if not self.include.paragraphs:
            return f"add table {TABLE}\ndelete table {TABLE}\n"
        return transaction(before, change) if before.paragraphs else table.text(self.include)

    def whole(self) -> table.Include:
        """Return what the include file should be, rendered from the records."""
        return table.whole(self.guests.values(), self.config, self.include.revision)


def transaction(include: table.Include, change: table.Change) -> str:
    """Return the commands of a change on top of a kernel that has ``include``."""
    return table.transaction(include.revision, include.revision + 1, change)


def parts(text: str, revision: int) -> table.Include:
    """Return an include file taken apart."""
    top, *paragraphs = text.rstrip("\n").split("\n\n")
    header, last = top.rsplit("\n", 1)
    assert last == f"add element {TABLE} revision {{ {revision} }}"
    return table.Include(header, revision, tuple(paragraphs))


def owners(include: table.Include) -> Mapping[str, str]:
    """Return the paragraphs by their keys."""
    return {text.partition("\n")[0]: text for text in include.paragraphs}
