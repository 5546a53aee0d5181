"""Letting our connections past libvirt's own reject on networks with forward mode nat or route.

plan              what is desired, and what that changes in a chain, as values (pure)
iptables          the chain LIBVIRT_FWI, of libvirt's iptables backend
nftables          the chain guest_input, of libvirt's nftables backend
networks          libvirt's networks that our hook has not seen start

libvirt inserts its rules at the top of its chain, and does so again whenever it rebuilds
them: a restart or reload of the daemon, a reload of firewalld, net-update. A rule of ours
is still in the chain then, but below the reject. So it is the position that counts, not the
presence, and the chain is looked into with every change.
"""

from collections.abc import Iterable, Iterator

from virt_forward.effects.item import Change, Item, Items
from virt_forward.effects.libvirt_accept import plan
from virt_forward.effects.libvirt_accept.plan import (
    NAME,
    Chain,
    Family,
    Seen,
    desired,
    present,
    recognized,
)
from virt_forward.errors import VirtForwardError
from virt_forward.host import log
from virt_forward.state.snapshot import Snapshot

__all__ = [
    "CHAINS",
    "GUARDED",
    "NAME",
    "OTHERWISE",
    "desired",
    "observe",
    "present",
    "recognized",
    "set_items",
    "unset_items",
]

CHAINS: tuple[str, ...] = tuple(
    f"{backend} {family}" for backend in ("nftables", "iptables") for family in plan.FAMILIES
)
GUARDED = False
OTHERWISE = "guests on libvirt networks with forward mode nat or route may be out of reach"


def observe(state: Snapshot, change: Change) -> Seen:
    """Return libvirt's chains, as far as anything of ours is or should be in them.

    A chain that cannot be read is left out with a message, and what is recorded of it stays.
    """
    sides = plan.sides(change) if change.config.admit else frozenset()
    if not (sides or change.ours(NAME) or change.search != "recorded"):
        return Seen()
    from virt_forward.effects.libvirt_accept import networks

    known = networks.known(state, {side.bridge for side in sides})
    wanted = plan.wanted(sides, known)
    # Without networks that reject, libvirt has no chains; and iptables, asked for one, may make a table.
    suspected = change.search == "known" and any(network.mode in plan.REJECTING for network in known)
    suspected = suspected or (change.search == "all" and networks.may_exist())
    if not (wanted or suspected or change.ours(NAME)):
        # Hence neither is the module of either backend imported.
        return Seen(wanted)
    chains: list[Chain] = []
    for family in plan.FAMILIES:
        bridges = frozenset(side.bridge for side in wanted if side.family == family)
        try:
            chains += _look(family, bridges, change.ours(NAME), suspected)
        except (VirtForwardError, ValueError, KeyError, TypeError) as error:
            log.error(f"{error}; {OTHERWISE}")
    return Seen(wanted, tuple(chains))


def _look(family: Family, bridges: frozenset[str], ours: Items, suspected: bool) -> Iterator[Chain]:
    recorded = {item.chain for item in ours}
    for name, backend in _backends().items():
        if bridges or suspected or f"{name} {family}" in recorded:
            chain = Chain(name, family, tuple(backend.rules(family)))
            # What one backend's chain rejects is not in the other's, or only in what was left behind.
            bridges -= plan.rejected(chain.rules)
            yield chain


def _backends() -> dict[str, "plan.Backend"]:
    from virt_forward.effects.libvirt_accept import iptables, nftables

    found: tuple[plan.Backend, ...] = (nftables, iptables)
    return {backend.NAME: backend for backend in found}


def set_items(items: Items, facts: Seen) -> Items:
    """Put our rule above libvirt's; raises VirtForwardError where a chain does not take it."""
    for chain, bridges in _by_chain(items, facts):
        _backends()[chain.backend].change(chain.family, plan.placing(chain.rules, bridges))
    return frozenset()


def unset_items(items: Items, facts: Seen) -> Items:
    """Delete our rules, and return those whose chain was not read; raises VirtForwardError likewise."""
    for chain, bridges in _by_chain(items, facts):
        decision = plan.removing(chain.rules, bridges)
        if decision.remove:
            _backends()[chain.backend].change(chain.family, decision)
    read = {chain.name for chain in facts.chains}
    return frozenset(item for item in items if item.chain not in read)


def _by_chain(items: Iterable[Item], facts: Seen) -> Iterator[tuple[Chain, frozenset[str]]]:
    for chain in facts.chains:
        bridges = frozenset(item.dev for item in items if item.chain == chain.name)
        if bridges:
            yield chain, bridges
