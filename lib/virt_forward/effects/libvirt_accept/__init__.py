"""Letting our connections past libvirt's own reject on networks with forward mode nat or route.

plan              what a chain needs, as values (pure)
iptables          the chain LIBVIRT_FWI, of libvirt's iptables backend
nftables          the chain guest_input, of libvirt's nftables backend
networks          libvirt's networks that our hook has not seen start

libvirt inserts its rules at the top of its chain, and does so again whenever it makes them
anew: a restart or reload of the daemon, a reload of firewalld, net-update. A rule of ours
is then still there, but below the reject. So it is the place that counts, not the presence.
"""

from collections.abc import Iterable

from virt_forward.claims.index import Row
from virt_forward.config import Config
from virt_forward.effects.libvirt_accept import plan
from virt_forward.errors import VirtForwardError
from virt_forward.host import log
from virt_forward.state.store import Store

RECORD = "admitted"
"""The file in the run directory that names the rules of ours in libvirt's chains."""


def follow(store: Store, config: Config, index: Iterable[Row], *, afresh: bool = False) -> None:
    """Make libvirt's chains admit the guests in the index that need it, and no others.

    Wants the store's lock held. ``afresh`` looks into the chains even where, by our record,
    nothing of ours is in them. Raises nothing: a guest must not fail for a chain of libvirt's.
    """
    spots = plan.spots(index) if config.admit else frozenset()
    try:
        _follow(store, spots, afresh)
    except (VirtForwardError, ValueError, KeyError, TypeError) as error:
        log.error(f"{error}; guests on libvirt networks with forward mode nat or route may be out of reach")


def _follow(store: Store, spots: frozenset[plan.Spot], afresh: bool) -> None:
    had = plan.parse_record(store.read(RECORD) or "")
    if not (spots or had or afresh):
        return
    from virt_forward.effects.libvirt_accept import networks

    known = networks.known(store, {spot.bridge for spot in spots})
    wanted = plan.wanted(spots, known)
    # Without networks that reject, libvirt has no chains; and iptables, asked for one, may make a table.
    suspected = afresh and any(network.mode in plan.REJECTING for network in known)
    for family in plan.FAMILIES:
        bridges = frozenset(spot.bridge for spot in wanted if spot.family == family)
        mine = frozenset(entry for entry in had if entry.family == family)
        if bridges or mine or suspected:
            had = had - mine | _keep(store, family, bridges, mine, suspected)


def _keep(
    store: Store, family: plan.Family, bridges: frozenset[str], had: frozenset[plan.Entry], suspected: bool
) -> frozenset[plan.Entry]:
    """Keep the rules of one family, and return those that are there then."""
    from virt_forward.effects.libvirt_accept import iptables, nftables

    backends: tuple[plan.Backend, ...] = (nftables, iptables)
    now: frozenset[plan.Entry] = frozenset()
    for backend in backends:
        if not (bridges or suspected or any(entry.backend == backend.NAME for entry in had)):
            continue
        decision = plan.decide(backend.rules(family), bridges)
        there = frozenset(plan.Entry(backend.NAME, family, bridge) for bridge in decision.there)
        # Written before it is done: a rule put there by who was cut off is found and removed.
        _record(store, had | there, frozenset())
        if decision.remove or decision.insert:
            backend.change(family, decision)
        now |= there
        # A bridge that one backend's chain rejects is not in the other's, or only in what was left behind.
        bridges -= decision.there
    _record(store, now, had - now)
    return now


def _record(store: Store, come: frozenset[plan.Entry], gone: frozenset[plan.Entry]) -> None:
    before = plan.parse_record(store.read(RECORD) or "")
    after = before - gone | come
    if after != before:
        store.write(RECORD, plan.render_record(after))
