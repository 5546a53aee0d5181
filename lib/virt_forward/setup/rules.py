"""The lines of the person's nftables ruleset that guests on the bridge need, fitted to its chains."""

from collections.abc import Callable, Iterable, Iterator

from virt_forward.names import LABEL, interface
from virt_forward.setup.facts import Chain, SetupFacts
from virt_forward.setup.routed import Bridge

INCLUDE = 'include "/run/virt-forward/*.nft"'
FAMILIES = ("inet", "ip", "ip6")


def lines(bridge: Bridge, uplinks: Iterable[str], facts: SetupFacts) -> str:
    """Return text that can be appended to the ruleset: nft adds rules to chains that exist."""
    chains = facts.chains or ()
    uplinks = tuple(uplinks)
    blocks = [
        *_chain_blocks(_nat_chains(chains, bridge), lambda chain: _masquerade(chain, bridge, uplinks)),
        *_chain_blocks(_closed(chains, "forward"), lambda chain: _forward(chain, bridge, uplinks)),
        *_chain_blocks(_closed(chains, "input"), lambda chain: _input(chain, bridge)),
    ]
    return "\n".join([*blocks, *([] if facts.includes else [INCLUDE])]) + "\n"


def _nat_chains(chains: Iterable[Chain], bridge: Bridge) -> list[Chain]:
    """Return the chains for the masquerade: one for all families, or one each; new ones if need be."""
    found = [chain for chain in _own(chains) if (chain.type, chain.hook) == ("nat", "postrouting")]
    inet = [chain for chain in found if chain.family == "inet"][:1]
    if inet:
        return inet
    wanted = ["ip", *(["ip6"] if bridge.prefix else [])]
    have = {chain.family: chain for chain in reversed(found)}
    if not have:
        return [Chain("inet", "nat", "postrouting", "nat", "postrouting", policy="")]
    return [
        have.get(each) or Chain(each, "nat", "postrouting", "nat", "postrouting", policy="")
        for each in wanted
    ]


def _own(chains: Iterable[Chain]) -> list[Chain]:
    return [chain for chain in chains if not chain.owner and chain.family in FAMILIES]


def _closed(chains: Iterable[Chain], hook: str) -> list[Chain]:
    wanted = [chain for chain in _own(chains) if (chain.type, chain.hook) == ("filter", hook)]
    return [chain for chain in wanted if chain.policy == "drop" or chain.drops]


def _chain_blocks(chains: Iterable[Chain], rules: Callable[[Chain], Iterable[str]]) -> Iterator[str]:
    for chain in chains:
        inside = [*rules(chain)]
        if not inside:
            continue
        # An empty policy stands for a chain that does not exist yet.
        head = (
            [] if chain.policy else [f"type {chain.type} hook {chain.hook} priority srcnat; policy accept;"]
        )
        if chain.ends:
            head.append("# before the last rule of this chain, which drops or rejects what reaches it")
        body = "\n".join(f"    {line}" for line in [*head, *inside])
        yield f"table {chain.family} {chain.table} {{\n  chain {chain.name} {{\n{body}\n  }}\n}}"


def _devices(names: tuple[str, ...]) -> str:
    quoted = [interface(name) for name in names]
    return quoted[0] if len(quoted) == 1 else f"{{ {', '.join(quoted)} }}"


def _sources(chain: Chain, bridge: Bridge) -> list[str]:
    found = [f"ip saddr {bridge.address.network}"] if chain.family in ("inet", "ip") else []
    return found + (
        [f"ip6 saddr {bridge.prefix}"] if bridge.prefix and chain.family in ("inet", "ip6") else []
    )


def _masquerade(chain: Chain, bridge: Bridge, uplinks: tuple[str, ...]) -> Iterator[str]:
    for source in _sources(chain, bridge):
        yield f"iifname {interface(bridge.name)} {source} oifname {_devices(uplinks)} masquerade"


def _forward(chain: Chain, bridge: Bridge, uplinks: tuple[str, ...]) -> Iterator[str]:
    missing = [state for state in ("established", "related") if state not in chain.accepts]
    if missing:
        yield f"ct state {','.join(missing)} accept"
    for source in _sources(chain, bridge):
        yield f"iifname {interface(bridge.name)} {source} oifname {_devices(uplinks)} accept"
    if not chain.admits:
        yield f'ct label {LABEL} accept comment "forwarded by virt-forward"'


def _input(chain: Chain, bridge: Bridge) -> Iterator[str]:
    name = interface(bridge.name)
    if chain.family in ("inet", "ip"):
        yield f"iifname {name} udp dport 67 accept"
        yield f"iifname {name} icmp type echo-request accept"
    if bridge.prefix and chain.family in ("inet", "ip6"):
        kinds = "nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert, echo-request"
        yield f"iifname {name} icmpv6 type {{ {kinds} }} accept"
    own = {str(bridge.address.ip), bridge.gateway6}
    if own & {str(server) for server in bridge.dns}:
        yield f"iifname {name} meta l4proto {{ tcp, udp }} th dport 53 accept"


def foreign(facts: SetupFacts, bridge: Bridge) -> Iterator[str]:
    """Yield what other firewalls on this host need, as in docs/firewalls.md."""
    chains = facts.chains or ()
    droppers = {chain.owner for chain in chains if chain.policy == "drop" and chain.hook == "forward"}
    if "Docker" in droppers:
        docker = "iptables -I DOCKER-USER"
        yield f"Docker drops the guests' own connections: {docker} -i {bridge.name} -j ACCEPT"
        replies = f"-o {bridge.name} -m conntrack --ctstate RELATED,ESTABLISHED"
        yield f"and the replies: {docker} {replies} -j ACCEPT"
        yield f"and forwards: {docker} -m connlabel --label {LABEL} -j ACCEPT"
    if "ufw" in droppers:
        yield f"ufw drops DHCP requests: ufw allow in on {bridge.name} to any port 67 proto udp"
        yield f"and the guests' own connections: ufw route allow in on {bridge.name}"
        yield "and forwards: virt-forward check prints the line for each"
    if any(chain.owner == "firewalld" for chain in chains):
        zone = f"firewall-cmd --permanent --zone=libvirt --add-interface={bridge.name}"
        yield f"firewalld drops DHCP requests and the guests' own connections: {zone}; firewall-cmd --reload"
