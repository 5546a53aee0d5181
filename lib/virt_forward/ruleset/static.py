"""The static part of the table: maps, sets and base chains, and the order of lookups.

Only maps that have elements are asked: what lookups() returns is a block of the table, which changes
as the first guest needs a lookup, or the last one that did is gone. README.md has the theory.
"""

from collections.abc import Container

from virt_forward.config import Config
from virt_forward.names import LABEL, TABLE, TABLE_COMMENT, family, interface
from virt_forward.ruleset import maps

VERSIONS = (4, 6)

OURS = f"ct status dnat ct label {LABEL}"
"""The match of our connections; most others differ in status, which is cheaper to test than the label."""


def containers() -> dict[str, str]:
    """Return the declaration of every map and set by its name."""
    return {each.name: each.declaration() for each in maps.ALL}


def settings(config: Config) -> str:
    """Return what of the configuration the table is rendered from, guests' blocks included, as text."""
    return repr((config.uplinks, config.localhost, bool(config.hairpin)))


def rules(config: Config) -> dict[str, tuple[str, ...]]:
    """Return the rules that always are the same, by chain."""
    localhost = (f"{OURS} ip saddr 127.0.0.0/8 masquerade",) if config.localhost else ()
    found = {
        "ours": tuple(rule for version in VERSIONS for rule in _count(maps.GUEST[version])),
        "postrouting": (*localhost, f"{OURS} {maps.LAN.lookup()}"),
    }
    found |= {each.name: (_translate(version, each),) for (version, *_), each in maps.TARGETS.items()}
    return found | ({"guard": ('iifname != "lo" ip daddr 127.0.0.0/8 drop',)} if config.localhost else {})


def lookups(config: Config, used: Container[str]) -> dict[str, tuple[str, ...]]:
    """Return the rules, by chain, of the lookups that are ``used`` (claims.rows.LookupRow)."""
    dispatch = _dispatch(used)
    uplinks = f"iifname != @{maps.UPLINKS.name} iifname . iifname != @{maps.SAME_BRIDGE.name} return"
    arriving = ((uplinks,) if config.uplinks else ()) + dispatch
    return {
        "at": tuple(each.lookup() for each in _at_address(used)),
        "prerouting": arriving,
        "output": dispatch,
        "prerouting-later": arriving,
        "output-later": dispatch,
        "forward": (f"{OURS} goto ours", *(_others() if maps.ISOLATED_MACS.name in used else ())),
    }


def _at_address(used: Container[str]) -> list[maps.Map]:
    return [each for version in VERSIONS for each in maps.AT[version] if each.name in used]


def _dispatch(used: Container[str]) -> tuple[str, ...]:
    # A port that several guests have asks for forwards with an address itself; a wide range does not.
    wide = any(each in _at_address(used) for version in VERSIONS for each in maps.AT[version][1:])
    return (
        *(("jump at",) if wide else ()),
        maps.ANY.ports.lookup(),
        *(each.lookup() for each in maps.ANY[1:] if each.name in used),
    )


def base_chains(config: Config) -> dict[str, str]:
    """Return the hook declaration of every chain that is not a guest's, by name; empty for a regular one."""
    chains = {
        "at": "",
        "ours": "",
        **{each.name: "" for each in maps.TARGETS.values()},
        # + 5 and - 95: a person's own DNAT at the usual priority wins.
        "prerouting": "type nat hook prerouting priority dstnat + 5; policy accept;",
        "output": "type nat hook output priority -95; policy accept;",
        # A packet that is in an old table's chain as a reload replaces that table finds its maps
        # empty; the new table's later chain is still before it, and finds what the old one missed.
        "prerouting-later": "type nat hook prerouting priority dstnat + 6; policy accept;",
        "output-later": "type nat hook output priority -94; policy accept;",
        "postrouting": "type nat hook postrouting priority srcnat - 5; policy accept;",
        "forward": "type filter hook forward priority filter - 5; policy accept;",
    }
    if config.localhost:
        chains["guard"] = "type filter hook prerouting priority raw; policy accept;"
    return chains


def _others() -> tuple[str, ...]:
    """Return the rules for what came by no forward, which isolated guests do without."""
    return (
        f"{maps.SAME_BRIDGE.lookup()} accept",
        # Without an answer no connection is made, whatever address of the guest it is for.
        f"ct direction reply {maps.ISOLATED_MACS.lookup()} counter drop",
        "ct state established,related accept",
        *(f"{maps.ISOLATED[version].lookup()} counter drop" for version in VERSIONS),
    )


def _translate(version: int, targets: maps.Map) -> str:
    return f"ct label set {LABEL} dnat {family(version)} to {targets.lookup()}"


def _count(guests: maps.Map) -> tuple[str, str]:
    return f"ct direction original {guests.lookup()}", f"ct direction reply {guests.reply_lookup()}"


def render(config: Config) -> str:
    """Return the table block that declares the static part, without the rules of base chains."""
    lines = [f"table {TABLE} {{", f'\tcomment "{TABLE_COMMENT}"']
    lines += [f"\t{declaration}" for declaration in containers().values()]
    lines += [f"\tchain {name} {{ {hook} }}" for name, hook in base_chains(config).items()]
    return "\n".join([*lines, "}"])


def render_rules(config: Config) -> str:
    """Return the rules that always are the same, and the elements that come from the configuration."""
    lines = [f"table {TABLE} {{"]
    for name, found in rules(config).items():
        lines += [f"\tchain {name} {{", *(f"\t\t{rule}" for rule in found), "\t}"]
    lines.append("}")
    if config.uplinks:
        listed = ", ".join(map(interface, config.uplinks))
        lines.append(f"add element {TABLE} {maps.UPLINKS.name} {{ {listed} }}")
    return "\n".join(lines)
