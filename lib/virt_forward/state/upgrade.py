"""What an older version left in the run directory: a file for each guest, network and change.

guests/UUID.json, networks/UUID.json   records, in the words of state/records.py
unfinished                             a change that was begun: guests before and after it
todo/UUID.*.json                       changes that were queued; empty where the guest is to be absent
effects, or one file an effect         what is set outside our table
config.toml                            the last configuration that was valid
claims                                 an index, derived
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

from virt_forward.errors import StateError
from virt_forward.host import log
from virt_forward.host.files import list_directory
from virt_forward.model import Guest, Network
from virt_forward.namedtuple import TYPE_CHECKING, NamedTuple
from virt_forward.state import records

if TYPE_CHECKING:
    from typing import Any, TypeVar

    T = TypeVar("T")

STARTED = ".started"
"""How the name of a queued change ends by which a guest that is recorded as prepared runs."""

EFFECTS = {"admitted": "libvirt_accept", "route_localnet": "route_localnet", "hairpin": "hairpin_port"}
"""The files that have the lines of one effect."""


class Old(NamedTuple):
    """The state of an older version."""

    guests: dict[str, Guest]
    queued: dict[str, Guest | None]
    previous: dict[str, Guest | None]
    networks: dict[str, Network]
    effects: tuple[tuple[str, str, str], ...]
    config: str


def read(directory: str) -> Old:
    """Return the state of an older version; what is damaged is logged and left out."""
    guests = dict(_records(f"{directory}/guests", records.load_guest))
    before, after, taken = _read_unfinished(_text(f"{directory}/unfinished"))
    known = {uuid: guest for uuid, guest in (guests | after).items() if guest}
    return Old(
        known,
        _read_queued(f"{directory}/todo", known, taken),
        before,
        dict(_records(f"{directory}/networks", records.load_network)),
        tuple(_effects(directory)),
        _text(f"{directory}/config.toml"),
    )


def remove(directory: str) -> None:
    """Remove the files of an older version; the markers of guests stay."""
    for name in list_directory(f"{directory}/guests"):
        if name.endswith((".json", ".new")):
            _unlink(f"{directory}/guests/{name}")
    for name in ("unfinished", "claims", "config.toml", "effects", *EFFECTS):
        _unlink(f"{directory}/{name}")
    # The last one tells that there is something to remove: see Store._is_old().
    for folder in (f"{directory}/todo", f"{directory}/networks"):
        for name in list_directory(folder):
            _unlink(f"{folder}/{name}")
        with contextlib.suppress(OSError):
            os.rmdir(folder)


def _unlink(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError):
        return ""


def _records(folder: str, load: Callable[[str, str], T]) -> Iterator[tuple[str, T]]:
    for name in sorted(list_directory(folder)):
        uuid, dot, _ = name.partition(".json")
        if dot and not name.startswith("."):
            try:
                found: Any = load(_text(f"{folder}/{name}"), f"{folder}/{name}")
                if found.uuid == uuid:
                    yield uuid, found
            except StateError as error:
                log.error(f"{error}; it is left out")


Guests = dict[str, Guest | None]


def _read_unfinished(text: str) -> tuple[Guests, Guests, frozenset[str]]:
    """Return the guests before and after a change, and the names of the queued changes it has taken in."""
    import json

    try:
        document = json.loads(text or "{}")
        pairs = {str(uuid): (_guest(a), _guest(b)) for uuid, (a, b) in document.get("guests", {}).items()}
        taken = frozenset(map(str, document.get("taken", ())))
    except (TypeError, ValueError, AttributeError, RecursionError, StateError):
        return {}, {}, frozenset()
    return {u: pair[0] for u, pair in pairs.items()}, {u: pair[1] for u, pair in pairs.items()}, taken


def _guest(text: str | None) -> Guest | None:
    return None if text is None else records.load_guest(text, "unfinished")


def _read_queued(folder: str, guests: dict[str, Guest], taken: frozenset[str]) -> Guests:
    """Return the last queued change of each guest. The names sort by time."""
    found: Guests = {}
    for name in sorted(list_directory(folder)):
        uuid, stem = name.partition(".")[0], name.removesuffix(".json")
        if name.startswith(".") or stem in taken:
            continue
        text = _text(f"{folder}/{name}")
        try:
            if stem.endswith(STARTED):
                guest = found.get(uuid, guests.get(uuid))
                found |= {uuid: guest._replace(phase="running")} if guest else {}
            else:
                found[uuid] = records.load_guest(text, f"{folder}/{name}") if text else None
        except StateError as error:
            log.error(f"{error}; it is left out")
    return found


def _effects(directory: str) -> Iterator[tuple[str, str, str]]:
    """Yield the effect, the interface and the chain of each line."""
    lines = _text(f"{directory}/effects").splitlines()
    for file, effect in EFFECTS.items():
        lines += [f"{effect} {line}" for line in _text(f"{directory}/{file}").splitlines()]
    for effect, *chain, dev in (line.split() for line in lines if len(line.split()) > 1):
        yield effect, dev, " ".join(chain)
