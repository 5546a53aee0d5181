"""Which bridges a chain of libvirt's is to admit connections to, and what that changes in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from virt_forward.effects.item import Change, Item, Items
from virt_forward.model import Network
from virt_forward.namedtuple import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Literal, Protocol

    Family = Literal["ip", "ip6"]
else:
    Family = str

NAME = "libvirt_accept"
COMMENT = "virt-forward"
"""The comment of our rules, by which they are known; words may follow it."""

FAMILIES: tuple[Family, ...] = ("ip", "ip6")
REJECTING = ("nat", "route")
"""The forward modes whose networks reject. Isolated networks do, too, and are meant to."""


class Side(NamedTuple):
    """A bridge in one address family."""

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
    """What to change in a chain: rules to delete by their handles, then bridges to insert our rule for."""

    remove: tuple[tuple[str, ...], ...] = ()
    insert: tuple[str, ...] = ()


class Chain(NamedTuple):
    """A chain of libvirt's as it was read; without rules where it was not found."""

    backend: str
    family: Family
    rules: tuple[Rule, ...] = ()

    @property
    def name(self) -> str:
        """The value of Item.chain for rules in it."""
        return f"{self.backend} {self.family}"


class Seen(NamedTuple):
    """Where our connections are to be admitted, and the chains that were looked into."""

    wanted: frozenset[Side] = frozenset()
    chains: tuple[Chain, ...] = ()


if TYPE_CHECKING:
    # A protocol takes long to make, and is nothing to a program that runs.
    class Backend(Protocol):
        """One of libvirt's two firewall backends."""

        NAME: str

        def rules(self, family: Family) -> list[Rule]:
            """Return the rules of libvirt's chain, none where it does not exist."""

        def change(self, family: Family, decision: Decision) -> None:
            """Carry out a decision; raises VirtForwardError where the chain does not take it."""


def chain_changed(monitor: bytes) -> bool:
    """Tell whether what ``nft monitor`` prints may be libvirt rebuilding its chain.

    A reload of libvirt's daemon or of firewalld does so without a hook being run.
    """
    return any(name in monitor for name in (b" LIBVIRT_FWI ", b" guest_input "))


def sides(change: Change) -> frozenset[Side]:
    """Return the bridges of running guests with forwards, each in the families of the guests' addresses."""
    return frozenset(Side("ip6" if side.version == 6 else "ip", side.bridge) for side in change.sides)


def wanted(sides: Iterable[Side], networks: Iterable[Network]) -> frozenset[Side]:
    """Return those that are behind the bridge of a network whose mode makes libvirt reject."""
    bridges = {network.bridge for network in networks if network.mode in REJECTING}
    return frozenset(side for side in sides if side.bridge in bridges)


def desired(change: Change, seen: Seen) -> Items:
    """Return a rule in each chain that rejects what is wanted; what was not looked into stays as recorded."""
    found: set[Item] = set()
    for family in FAMILIES:
        bridges = frozenset(side.bridge for side in seen.wanted if side.family == family)
        for chain in (chain for chain in seen.chains if chain.family == family):
            found |= {Item(NAME, bridge, chain.name) for bridge in bridges & rejected(chain.rules)}
            bridges -= rejected(chain.rules)
    read = {chain.name for chain in seen.chains}
    return frozenset(found) | {item for item in change.ours(NAME) if item.chain not in read}


def recognized(seen: Seen) -> Items:
    """Return our rules in the chains, known by their comment."""
    rules = ((chain, rule) for chain in seen.chains for rule in chain.rules if rule.ours)
    return frozenset(Item(NAME, rule.bridge, chain.name) for chain, rule in rules)


def present(item: Item, seen: Seen) -> bool | None:
    """Tell whether our rule is in its chain, once and above the one that rejects.

    None where nothing rejects; True for a chain that was not read, which is left as it is.
    """
    rules = next((chain.rules for chain in seen.chains if chain.name == item.chain), None)
    if rules is None:
        return True
    last = next((position for position, rule in enumerate(rules) if _rejects(rule, item.dev)), None)
    if last is None:
        return None
    # Of two rules in the same words, iptables deletes the first, which may be the only good one.
    return [position < last for position, rule in enumerate(rules) if _is_ours(rule, item.dev)] == [True]


def rejected(rules: Iterable[Rule]) -> frozenset[str]:
    """Return the bridges that a chain rejects connections to."""
    return frozenset(rule.bridge for rule in rules if rule.rejects)


def is_ours(comment: object) -> bool:
    """Tell whether a rule with a comment is ours."""
    return isinstance(comment, str) and comment.split(" ", 1)[0] == COMMENT


def placing(rules: Sequence[Rule], bridges: frozenset[str]) -> Decision:
    """Return what gives each of ``bridges`` one rule of ours, at the top; other rules stay where they are."""
    return removing(rules, bridges)._replace(insert=tuple(sorted(bridges)))


def removing(rules: Sequence[Rule], bridges: frozenset[str]) -> Decision:
    """Return what removes all rules of ours for ``bridges``."""
    return Decision(tuple(rule.handle for rule in rules if rule.ours and rule.bridge in bridges))


def _rejects(rule: Rule, bridge: str) -> bool:
    return rule.rejects and rule.bridge == bridge


def _is_ours(rule: Rule, bridge: str) -> bool:
    return rule.ours and rule.bridge == bridge
