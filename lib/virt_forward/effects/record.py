"""The record of what we have set outside our table: the file ``effects`` in the run directory.

One item a line: the effect's name, the words of the chain, if any, and the interface.

    route_localnet virbr0
    libvirt_accept nftables ip virbr5
"""

from collections.abc import Iterable

from virt_forward.effects import EFFECTS
from virt_forward.effects.item import Item, Items
from virt_forward.metadata import values
from virt_forward.state.store import Store

FILE = "effects"
OLD_FILES = {"admitted": "libvirt_accept", "route_localnet": "route_localnet", "hairpin": "hairpin_port"}
"""The records of an older version: a file an effect, the same lines without the effect's name."""

_KNOWN = {(effect.NAME, *chain.split()) for effect in EFFECTS for chain in effect.CHAINS}


def parse(text: str) -> Items:
    """Return the items of a record; damaged lines count as absent."""
    lines = [line.split() for line in text.splitlines()]
    return frozenset(
        Item(words[0], words[-1], " ".join(words[1:-1]))
        for words in lines
        if tuple(words[:-1]) in _KNOWN and values.is_dev(words[-1])
    )


def render(items: Iterable[Item]) -> str:
    """Return the text of a record, a line an item, sorted."""
    lines = sorted(" ".join([item.effect, *item.chain.split(), item.dev]) for item in items)
    return "".join(f"{line}\n" for line in lines)


def load(store: Store) -> Items:
    """Return the recorded items. Those of an older version count until there is a record of ours."""
    text = store.read(FILE)
    if text is not None:
        return parse(text)
    return frozenset(
        item
        for file, effect in OLD_FILES.items()
        for line in (store.read(file) or "").splitlines()
        for item in parse(f"{effect} {line}")
    )


def save(store: Store, items: Items) -> None:
    """Replace the record, and those of an older version; raises StateError."""
    store.write(FILE, render(items))
    for file in OLD_FILES:
        store.remove(file)
