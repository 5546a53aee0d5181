"""What a change is about to do, as the text of the file ``unfinished``.

It is written before anything else of the change. Whoever finds it does all of it again,
and knows what stood before: old connections can be ended even then.
"""

import json
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from virt_forward.errors import StateError
from virt_forward.model import Guest
from virt_forward.state import records

VERSION = 1

Guests = dict[str, Guest | None]


class Journal(NamedTuple):
    """Guests by UUID before and after a change, and the names of the left changes that it takes in."""

    before: Guests
    after: Guests
    taken: frozenset[str] = frozenset()


def render(
    before: Mapping[str, Guest | None], after: Mapping[str, Guest | None], taken: Iterable[str]
) -> str:
    """Return the text of a journal."""
    texts = {uuid: [_dump(before.get(uuid)), _dump(guest)] for uuid, guest in after.items()}
    return json.dumps({"version": VERSION, "guests": texts, "taken": sorted(taken)}) + "\n"


def parse(text: str) -> Journal | None:
    """Return a journal, or None where the text is none: then only the records can tell."""
    try:
        document = json.loads(text)
        if document["version"] != VERSION:
            return None
        pairs = {str(uuid): (_load(uuid, a), _load(uuid, b)) for uuid, (a, b) in document["guests"].items()}
        taken = frozenset(map(str, document["taken"]))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, StateError):
        return None
    before = {uuid: pair[0] for uuid, pair in pairs.items()}
    return Journal(before, {uuid: pair[1] for uuid, pair in pairs.items()}, taken)


def _dump(guest: Guest | None) -> str | None:
    return records.dump_guest(guest) if guest else None


def _load(uuid: str, text: str | None) -> Guest | None:
    guest = None if text is None else records.load_guest(text, "unfinished")
    if guest and guest.uuid != uuid:
        raise ValueError(f"{guest.uuid} is not {uuid}")
    return guest
