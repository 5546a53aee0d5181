"""The static part of the table: maps, sets and base chains, and the order of lookups.

Forwards with an address are looked up before those without; of each, slots (ports of restricted
forwards) before the ports of others, and single ports before wide ranges. README.md has the theory.
"""

from virt_forward.config import Config
from virt_forward.names import LABEL, TABLE, TABLE_COMMENT, interface
from virt_forward.ruleset import maps

VERSIONS = (4, 6)


def containers() -> dict[str, str]:
    """Return the declaration of every map and set by its name."""
    return {each.name: each.declaration() for each in maps.ALL}


def dispatch() -> tuple[str, ...]:
    """Return the rules that find a guest's chain, the most specific first."""
    return (
        # Traffic that is only passing through, and what the kernel will not route, is not ours.
        "fib daddr type != local return",
        "ip6 daddr fe80::/10 return",
        *(each.lookup() for version in VERSIONS for each in maps.AT[version]),
        # A guest network's gateway address stays the host's unless it is asked for: DNS and DHCP live there.
        *(f"{maps.GATEWAY[version].lookup()} return" for version in VERSIONS),
        *(each.lookup() for each in maps.ANY),
    )


def base_chains(config: Config) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return hook declaration and rules of every chain that is not a guest's, by name."""
    chains = {
        "dispatch": ("", dispatch()),
        # + 5 and - 95: a person's own DNAT at the usual priority wins.
        "prerouting": ("type nat hook prerouting priority dstnat + 5; policy accept;", _prerouting(config)),
        "output": ("type nat hook output priority -95; policy accept;", _output(config)),
        # A packet that is in an old table's chain as a reload replaces that table finds its maps
        # empty; the new table's later chain is still before it, and finds what the old one missed.
        "prerouting-later": (
            "type nat hook prerouting priority dstnat + 6; policy accept;",
            _prerouting(config),
        ),
        "output-later": ("type nat hook output priority -94; policy accept;", _output(config)),
        "postrouting": (
            "type nat hook postrouting priority srcnat - 5; policy accept;",
            _postrouting(config),
        ),
        "forward": ("type filter hook forward priority filter - 5; policy accept;", _forward()),
    }
    if config.localhost:
        guard = ('iifname != "lo" ip daddr 127.0.0.0/8 drop',)
        chains["guard"] = ("type filter hook prerouting priority raw; policy accept;", guard)
    return chains


def _prerouting(config: Config) -> tuple[str, ...]:
    elsewhere = f"iifname != @{maps.UPLINKS.name} iifname . iifname != @{maps.SAME_BRIDGE.name} return"
    uplinks = (elsewhere,) if config.uplinks else ()
    return (
        *uplinks,
        "ip daddr 127.0.0.0/8 return",
        "jump dispatch",
    )


def _output(config: Config) -> tuple[str, ...]:
    loopback = () if config.localhost else ("ip daddr 127.0.0.0/8 return",)
    return (*loopback, "ip6 daddr ::1 return", "jump dispatch")


def _postrouting(config: Config) -> tuple[str, ...]:
    loopback = (f"ct label {LABEL} ip saddr 127.0.0.0/8 masquerade",) if config.localhost else ()
    return (
        *loopback,
        *(f"ct label {LABEL} {maps.LAN[version].lookup()} masquerade" for version in VERSIONS),
    )


def _forward() -> tuple[str, ...]:
    return (
        *(rule for version in VERSIONS for rule in _count(maps.GUEST[version])),
        "ct state established,related accept",
        f"{maps.SAME_BRIDGE.lookup()} accept",
        *(f"{maps.ISOLATED[version].lookup()} counter drop" for version in VERSIONS),
    )


def _count(guests: maps.Map) -> tuple[str, str]:
    ours = f"ct label {LABEL} ct direction"
    return f"{ours} original {guests.lookup()}", f"{ours} reply {guests.reply_lookup()}"


def render(config: Config) -> str:
    """Return the table block that declares the static part, without the rules of base chains."""
    lines = [f"table {TABLE} {{", f'\tcomment "{TABLE_COMMENT}"']
    lines += [f"\t{declaration}" for declaration in containers().values()]
    lines += [f"\tchain {name} {{ {hook} }}" for name, (hook, _) in base_chains(config).items()]
    return "\n".join([*lines, "}"])


def render_rules(config: Config) -> str:
    """Return the rules of the base chains and the elements that come from the configuration."""
    lines = [f"table {TABLE} {{"]
    for name, (_, rules) in base_chains(config).items():
        lines += [f"\tchain {name} {{", *(f"\t\t{rule}" for rule in rules), "\t}"]
    lines.append("}")
    if config.uplinks:
        listed = ", ".join(map(interface, config.uplinks))
        lines.append(f"add element {TABLE} {maps.UPLINKS.name} {{ {listed} }}")
    return "\n".join(lines)
