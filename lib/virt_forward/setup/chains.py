"""The base chains in nft's JSON listing of the whole ruleset (libnftables-json(5)), and whose they are."""

from collections.abc import Iterator
from typing import Any

from virt_forward.names import LABEL
from virt_forward.setup.facts import Chain

Items = list[dict[str, Any]]
_Table = tuple[str, str]

DROPS = ("drop", "reject")
HARMLESS = ("counter", "log", "comment")
"""Statements that do not limit which packets a rule is for."""

MARKS = {
    "DOCKER": "Docker",
    "DOCKER-USER": "Docker",
    "ufw-before-forward": "ufw",
    "ufw6-before-forward": "ufw",
}
"""Chains by which a program's table is known."""

TABLES = {"firewalld": "firewalld", "virt-forward": "virt-forward", "netavark": "Podman"}


def base_chains(items: Items) -> tuple[Chain, ...]:
    """Return the base chains of a listing."""
    rules: dict[tuple[str, str, str], list[Items]] = {}
    for rule in (item["rule"] for item in items if "rule" in item):
        rules.setdefault((rule["family"], rule["table"], rule["chain"]), []).append(rule.get("expr", []))
    chains = [item["chain"] for item in items if "chain" in item]
    owners = _owners(chains, rules)
    return tuple(_chain(chain, rules, owners) for chain in chains if "hook" in chain)


def _owners(chains: Items, rules: dict[tuple[str, str, str], list[Items]]) -> dict[_Table, str]:
    found: dict[_Table, str] = {}
    for (family, table, _), expressions in rules.items():
        if any("xt" in statement for rule in expressions for statement in rule):
            found[family, table] = "iptables"
    for chain in chains:
        family, table, name = chain["family"], chain["table"], chain["name"]
        owner = TABLES.get(table) or MARKS.get(name) or ("libvirt" if table.startswith("libvirt_") else "")
        # iptables names its chains in capitals; who has added to them is known by a chain of its own.
        capitals = family in ("ip", "ip6") and "hook" in chain and name.isupper()
        if owner:
            found[family, table] = owner
        elif capitals:
            found.setdefault((family, table), "iptables")
    return found


def _chain(
    chain: dict[str, Any], rules: dict[tuple[str, str, str], list[Items]], owners: dict[_Table, str]
) -> Chain:
    where = (chain["family"], chain["table"])
    own = rules.get((*where, chain["name"]), [])
    reached = [
        rule for name in _reached(chain["name"], where, rules) for rule in rules.get((*where, name), [])
    ]
    return Chain(
        *where,
        chain["name"],
        chain["type"],
        chain["hook"],
        chain.get("policy", "accept"),
        frozenset(str(state) for rule in own for state in _accepted(rule, "state")),
        any(word in statement for rule in reached for statement in rule for word in DROPS),
        bool(own) and _drops_all(own[-1]),
        owners.get(where, ""),
        any(LABEL in _accepted(rule, "label") or "dnat" in _accepted(rule, "status") for rule in own),
    )


def _reached(name: str, where: _Table, rules: dict[tuple[str, str, str], list[Items]]) -> set[str]:
    found: set[str] = set()
    todo = {name}
    while todo:
        current = todo.pop()
        found.add(current)
        statements = [statement for rule in rules.get((*where, current), []) for statement in rule]
        jumps = (statement.get("jump") or statement.get("goto") for statement in statements)
        todo |= {jump["target"] for jump in jumps if jump} - found
    return found


def _drops_all(rule: Items) -> bool:
    words = [word for statement in rule for word in statement if word not in HARMLESS]
    return len(words) == 1 and words[0] in DROPS


def _accepted(rule: Items, key: str) -> Iterator[str | int]:
    """Yield the values of a conntrack key, as ``state``, that a rule accepts whatever else a packet has."""
    ct = {"ct": {"key": key}}
    rest = [statement for statement in rule if not any(word in HARMLESS for word in statement)]
    if len(rest) == 1 and "vmap" in rest[0]:
        vmap = rest[0]["vmap"]
        if vmap.get("key") == ct and isinstance(vmap.get("data"), dict):
            yield from (value for value, verdict in vmap["data"].get("set", []) if "accept" in verdict)
    elif len(rest) == 2 and "match" in rest[0] and "accept" in rest[1]:
        match = rest[0]["match"]
        if match["left"] == ct and match["op"] in ("in", "=="):
            yield from _values(match["right"])


def _values(right: object) -> Iterator[str | int]:
    if isinstance(right, dict):
        right = right.get("set", [])
    yield from (
        each for each in (right if isinstance(right, list) else [right]) if isinstance(each, str | int)
    )
