"""The static part of the table: maps, sets and base chains, and the order in which they are asked.

An address comes before any address; at each of the two, forwards narrowed by device or
source come before the plain ones, and single ports before wide ranges (which cannot
overlap them unless narrowed differently).
"""

from virt_forward.config import Config
from virt_forward.names import LABEL, TABLE, TABLE_COMMENT, interface

_LEVELS = (
    # (containers' suffix, the address part of the key, the type of that part)
    ("4", "ip daddr", "ipv4_addr"),
    ("6", "ip6 daddr", "ipv6_addr"),
    ("", "", ""),
)


def containers() -> dict[str, str]:
    """Return the declaration of every map and set by its name."""
    found: dict[str, str] = {}
    for suffix, _, kind in _LEVELS:
        head = f"{kind} . " if kind else ""
        tail = f" . {kind}" if kind else ""
        plain = f"at{suffix}" if suffix else "any"
        found[f"from{suffix}"] = f"map from{suffix} {{ type {head}inet_proto . inet_service : verdict; }}"
        found[f"from-range{suffix}"] = f"map from-range{suffix} {{ type {head}inet_proto : verdict; }}"
        found[plain] = f"map {plain} {{ type {head}inet_proto . inet_service : verdict; }}"
        found[f"range{suffix}"] = (
            f"map range{suffix} {{ type inet_service . inet_proto{tail} : verdict; flags interval; }}"
        )
        if suffix:
            found[f"guest{suffix}"] = f"map guest{suffix} {{ type {kind} . ifname : verdict; }}"
            found[f"lan{suffix}"] = f"set lan{suffix} {{ type {kind} . ifname; flags interval; }}"
            found[f"gateway{suffix}"] = f"set gateway{suffix} {{ type {kind}; }}"
            found[f"isolated{suffix}"] = f"set isolated{suffix} {{ type {kind} . ifname; }}"
    found["own"] = "set own { type ifname . ifname; }"
    found["uplinks"] = "set uplinks { type ifname; }"
    found["revision"] = "set revision { type mark; }"
    return found


def dispatch() -> tuple[str, ...]:
    """Return the rules that find a guest's chain, the most special first."""
    rules = [
        # Traffic that is only passing through, and what the kernel will not route, is not ours.
        "fib daddr type != local return",
        "ip6 daddr fe80::/10 return",
    ]
    for suffix, daddr, _ in (_LEVELS[0], _LEVELS[1]):
        rules += _level(suffix, f"at{suffix}", f"{daddr} . ", f" . {daddr}")
    # A guest network's gateway address stays the host's unless it is asked for: DNS and DHCP live there.
    rules += [f"{daddr} @gateway{suffix} return" for suffix, daddr, _ in _LEVELS if suffix]
    return tuple(rules + _level("", "any", "", ""))


def _level(suffix: str, plain: str, head: str, tail: str) -> list[str]:
    return [
        f"{head}meta l4proto . th dport vmap @from{suffix}",
        f"{head}meta l4proto vmap @from-range{suffix}",
        f"{head}meta l4proto . th dport vmap @{plain}",
        f"th dport . meta l4proto{tail} vmap @range{suffix}",
    ]


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
    uplinks = ("iifname != @uplinks iifname . iifname != @own return",) if config.uplinks else ()
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
        f"ct label {LABEL} ip saddr . oifname @lan4 masquerade",
        f"ct label {LABEL} ip6 saddr . oifname @lan6 masquerade",
    )


def _forward() -> tuple[str, ...]:
    return (
        f"ct label {LABEL} ct direction original ip daddr . oifname vmap @guest4",
        f"ct label {LABEL} ct direction reply ip saddr . iifname vmap @guest4",
        f"ct label {LABEL} ct direction original ip6 daddr . oifname vmap @guest6",
        f"ct label {LABEL} ct direction reply ip6 saddr . iifname vmap @guest6",
        "ct state established,related accept",
        "iifname . oifname @own accept",
        "ip daddr . oifname @isolated4 counter drop",
        "ip6 daddr . oifname @isolated6 counter drop",
    )


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
        lines.append(f"add element {TABLE} uplinks {{ {listed} }}")
    return "\n".join(lines)
