"""Which bridges a chain of libvirt's is to admit connections to, and what that changes in it."""

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, Protocol

from virt_forward.claims import index as claims
from virt_forward.claims.index import Row
from virt_forward.metadata import values
from virt_forward.model import Network

COMMENT = "virt-forward"
"""The comment of our rules, by which they are known."""

Family = Literal["ip", "ip6"]
FAMILIES: tuple[Family, ...] = ("ip", "ip6")
REJECTING = ("nat", "route")
"""The forward modes whose networks reject. Isolated networks do, too, and are meant to."""


class Spot(NamedTuple):
    """A bridge, and the family of an address behind it."""

    family: Family
    bridge: str


class Entry(NamedTuple):
    """A rule of ours in a chain of libvirt's."""

    backend: str
    family: Family
    bridge: str


class Rule(NamedTuple):
    """A rule in the chain, as far as it matters: the bridge it is about, and what it does.

    ``handle`` is what its backend deletes it by; ``rejects`` is for libvirt's own last word,
    which turns away all that is for a bridge.
    """

    handle: tuple[str, ...]
    bridge: str
    ours: bool = False
    rejects: bool = False


class Decision(NamedTuple):
    """What to change in a chain, and the bridges that have a rule of ours in it then."""

    remove: tuple[tuple[str, ...], ...] = ()
    insert: tuple[str, ...] = ()
    there: frozenset[str] = frozenset()


class Backend(Protocol):
    """One of libvirt's two firewall backends."""

    NAME: str

    def rules(self, family: Family) -> list[Rule]:
        """Return the rules of libvirt's chain, none where there is no chain."""

    def change(self, family: Family, decision: Decision) -> None:
        """Carry out a decision; raises VirtForwardError where the chain does not take it."""


def chain_changed(monitor: bytes) -> bool:
    """Tell whether what ``nft monitor`` prints may be libvirt making its chain anew.

    A reload of libvirt's daemon or of firewalld does so without a hook being run.
    """
    return any(name in monitor for name in (b" LIBVIRT_FWI ", b" guest_input "))


def spots(index: Iterable[Row]) -> frozenset[Spot]:
    """Return where the running guests are that have forwards and an address."""
    index = tuple(index)
    open_for = {row.uuid for row in index if isinstance(row, claims.PortRow) and row.state == "open"}
    endpoints = (row for row in index if isinstance(row, claims.EndpointRow) and row.uuid in open_for)
    return frozenset(Spot("ip6" if row.ip.version == 6 else "ip", row.bridge) for row in endpoints)


def wanted(places: Iterable[Spot], networks: Iterable[Network]) -> frozenset[Spot]:
    """Return those that are behind the bridge of a network whose mode makes libvirt reject."""
    bridges = {network.bridge for network in networks if network.mode in REJECTING}
    return frozenset(spot for spot in places if spot.bridge in bridges)


def decide(rules: Sequence[Rule], bridges: frozenset[str]) -> Decision:
    """Return what makes a chain admit connections to ``bridges`` alone, each by one rule.

    The rule must be above the one that rejects; a bridge that the chain does not reject
    needs none. What a person has put above ours stays there.
    """
    last = {rule.bridge: place for place, rule in reversed(list(enumerate(rules))) if rule.rejects}
    there = bridges & frozenset(last)
    mine = [(rule.bridge, place) for place, rule in enumerate(rules) if rule.ours]
    # Of two rules in the same words, iptables deletes the first, which may be the only good one.
    good = {bridge for bridge in there if [p < last[b] for b, p in mine if b == bridge] == [True]}
    remove = tuple(rules[place].handle for bridge, place in mine if bridge not in good)
    return Decision(remove, tuple(sorted(there - good)), there)


def parse_record(text: str) -> frozenset[Entry]:
    """Return the entries of a record; damaged lines count as absent."""
    found = set()
    for backend, family, bridge in (line.split() for line in text.splitlines() if len(line.split()) == 3):
        for known in FAMILIES:
            if family == known and values.is_dev(bridge):
                found.add(Entry(backend, known, bridge))
    return frozenset(found)


def render_record(entries: Iterable[Entry]) -> str:
    """Return the text of a record."""
    return "".join(f"{' '.join(entry)}\n" for entry in sorted(entries))
