"""The only writer of sysctls: route_localnet on guest bridges, for forwards on 127.0.0.1.

Without it the kernel drops the guest's answers to the host's loopback as martian. It also
lets guests address the host's loopback, which the table's guard chain forbids (ip-sysctl.rst).
"""

from virt_forward.effects.item import NOTHING, Change, Item, Items
from virt_forward.host import switches
from virt_forward.state.snapshot import Snapshot

NAME = "route_localnet"
CHAINS: tuple[str, ...] = ("",)
GUARDED = True
OTHERWISE = "forwards on 127.0.0.1 may not work"


def observe(_state: Snapshot, _change: Change) -> None:
    """Return nothing: the change tells all."""


def desired(change: Change, _facts: None) -> Items:
    """Return the bridges of running guests that have forwards, if these are to listen on 127.0.0.1."""
    return frozenset(Item(NAME, bridge) for bridge in change.bridges if change.config.localhost)


def recognized(_facts: None) -> Items:
    """Return nothing: a sysctl does not tell who has set it."""
    return NOTHING


def present(item: Item, _facts: None = None) -> bool | None:
    """Tell whether it is switched on for a bridge, whoever did that; None without the bridge."""
    return switches.is_on(_path(item.dev))


def set_items(items: Items, _facts: None) -> Items:
    """Switch it on, and return where it is not."""
    return frozenset(item for item in items if not _turn(item, "1"))


def unset_items(items: Items, _facts: None) -> Items:
    """Switch it off, and return where it still is on."""
    return frozenset(item for item in items if not _turn(item, "0") and present(item))


def _turn(item: Item, value: str) -> bool:
    return switches.turn(_path(item.dev), value, "forwards on 127.0.0.1 do not work for guests on it")


def _path(bridge: str) -> str:
    return f"/proc/sys/net/ipv4/conf/{bridge}/route_localnet"
