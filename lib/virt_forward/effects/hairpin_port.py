"""The only writer of bridge port flags: hairpin mode for guests' ports, where the configuration asks for it.

With br_netfilter a guest's packet to its own forward comes back to the very port it left,
and a bridge sends nothing back there unless the port is in hairpin mode (bridge(8)).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from virt_forward.effects.item import NOTHING, Change, Item, Items
from virt_forward.host import switches
from virt_forward.host.files import list_directory
from virt_forward.model import Guest
from virt_forward.namedtuple import NamedTuple
from virt_forward.state.snapshot import Snapshot

NAME = "hairpin_port"
CHAINS: tuple[str, ...] = ("",)
GUARDED = False
OTHERWISE = "guests may not reach their own forwards"

CALLS = tuple(f"/proc/sys/net/bridge/bridge-nf-call-{name}" for name in ("iptables", "ip6tables"))


class Facts(NamedTuple):
    """The ports of the guests before and after the change, and whether bridges call netfilter."""

    before: Items = NOTHING
    after: Items = NOTHING
    calls: bool = False


def observe(_state: Snapshot, change: Change) -> Facts:
    """Return the ports of the guests that change, none where no port is to be in hairpin mode."""
    if change.config.hairpin != "ports":
        return Facts()
    calls = any(switches.is_on(path) for path in CALLS)
    return Facts(frozenset(ports(change.before)), frozenset(ports(change.after)), calls)


def desired(change: Change, facts: Facts) -> Items:
    """Return the ports of running guests with forwards: recorded ones, but for the guests that change."""
    if change.config.hairpin != "ports":
        return NOTHING
    others = change.ours(NAME) - facts.before - facts.after
    return others | (facts.after if facts.calls else NOTHING)


def recognized(_facts: Facts) -> Items:
    """Return nothing: a flag does not tell who has set it."""
    return NOTHING


def present(item: Item, _facts: Facts | None = None) -> bool | None:
    """Tell whether a port is in hairpin mode, whoever did that; None without the port."""
    return switches.is_on(_flag(item))


def set_items(items: Items, _facts: Facts) -> Items:
    """Put ports into hairpin mode, and return those that are not."""
    return frozenset(item for item in items if not _turn(item, "1"))


def unset_items(items: Items, _facts: Facts) -> Items:
    """Take ports out of hairpin mode, and return those that still are in it."""
    return frozenset(item for item in items if not _turn(item, "0") and present(item))


def ports(guests: Iterable[Guest]) -> Iterator[Item]:
    """Yield the ports of running guests that have forwards.

    libvirt gives a tap device its guest's MAC address, but for the first byte, which is fe
    (or fa, where the guest's is fe): virNetDevTapCreateInBridgePort().
    """
    for guest in guests:
        if guest.phase == "running" and guest.forwards:
            for bridge, mac in {(endpoint.bridge, endpoint.mac) for endpoint in guest.endpoints}:
                first = "fa" if mac.startswith("fe") else "fe"
                yield from _ports_with(bridge, first + mac[2:])


def _ports_with(bridge: str, mac: str) -> Iterator[Item]:
    for name in list_directory(f"/sys/class/net/{bridge}/brif"):
        if switches.read(f"/sys/class/net/{name}/address") == mac:
            yield Item(NAME, name)


def _flag(item: Item) -> str:
    return f"/sys/class/net/{item.dev}/brport/hairpin_mode"


def _turn(item: Item, value: str) -> bool:
    return switches.turn(_flag(item), value, "the guest may not reach its own forwards")
