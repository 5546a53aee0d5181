"""The record of what we have set outside our table: the table ``effect`` of the state."""

from virt_forward.effects import EFFECTS
from virt_forward.effects.item import Item, Items
from virt_forward.metadata import values
from virt_forward.state.snapshot import Snapshot

_KNOWN = {(effect.NAME, chain) for effect in EFFECTS for chain in effect.CHAINS}


def load(state: Snapshot) -> Items:
    """Return the recorded items; damaged ones count as absent."""
    return frozenset(
        Item(effect, dev, chain)
        for effect, dev, chain in state.effects()
        if (effect, chain) in _KNOWN and values.is_dev(dev)
    )


def save(state: Snapshot, items: Items) -> None:
    """Record other items in their place; raises StateError."""
    state.set_effects(sorted(items))
