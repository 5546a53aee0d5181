"""Who owns a chain that drops packets, and the line that makes it accept those of our forwards (pure)."""

import re
import shlex
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from virt_forward import names, text
from virt_forward.check.clone.probes import Probe
from virt_forward.check.clone.verdict import Obstacle
from virt_forward.config import DEFAULT_PATH
from virt_forward.metadata.forwards import NAMESPACE

Owner = Literal[
    "nftables", "iptables", "docker", "ufw", "firewalld", "libvirt", "libvirt filter", "virt-forward"
]

SYNC = "virt-forward sync"
DNAT_PRIORITY = -95
"""That of our chain prerouting: before it, a packet has neither its label nor the guest's address."""

_PRIORITIES = {
    **{"raw": -300, "mangle": -150, "dstnat": -100, "filter": 0, "security": 50, "srcnat": 100, "out": 100},
}


class Place(NamedTuple):
    """Where an obstacle is: the names of all chains of its table.

    ``path`` is the file that the host loads its ruleset from, ``mode`` the forward mode of the libvirt
    network on the guest's bridge, None if it is not libvirt's.
    """

    chains: frozenset[str] = frozenset()
    path: str = "/etc/nftables.conf"
    mode: str | None = None
    admit: bool = True


def edit_live(name: str, uuid: str) -> str:
    """Return how to correct the metadata of a guest that runs: virsh edit changes only its next start."""
    domain = text.domain_argument(name, uuid)
    return f"correct it with: virsh metadata {domain} --uri {NAMESPACE} --key vf --edit --live"


def owner(obstacle: Obstacle, chains: Iterable[str]) -> Owner:
    """Return who has made the chain of an obstacle, by the names of the table and its chains."""
    place = f"{obstacle.table} {obstacle.chain}"
    named = next((name for pattern, name in _OWNERS if re.match(pattern, place)), None)
    return named or _of_base(obstacle, frozenset(chains))


_OWNERS: tuple[tuple[str, Owner], ...] = (
    ("virt-forward ", "virt-forward"),
    (r"libvirt_network |\S+ LIBVIRT_", "libvirt"),
    # nwfilter_ebiptables_driver.c: chains of ebtables, and those of iptables for a port.
    (r"\S+ (?:libvirt-[IOJP]-|[IOJP]-\S+-|[FH][IOJP]-)", "libvirt filter"),
    ("firewalld ", "firewalld"),
    (r"\S+ ufw6?-", "ufw"),
    (r"docker-|\S+ DOCKER", "docker"),
)
"""Owners by a pattern of the table and the chain."""


def _of_base(obstacle: Obstacle, chains: frozenset[str]) -> Owner:
    """Return who has set the policy, or a rule of its own, of a base chain that several may use."""
    if not obstacle.family.startswith("legacy") and obstacle.base != obstacle.hook.upper():
        return "nftables"
    if obstacle.hook == "forward" and "DOCKER-USER" in chains:
        return "docker"
    if any(re.match("ufw6?-", name) for name in chains):
        return "ufw"
    return "iptables"


def where(obstacle: Obstacle) -> str:
    """Return the chain and the rule of an obstacle in words."""
    why = f"rule {text.plain(obstacle.rule, 200)}" if obstacle.rule else "its policy"
    family = obstacle.family.removeprefix("legacy ")
    legacy = " of legacy iptables" if obstacle.family.startswith("legacy") else ""
    return f"chain {text.word(obstacle.chain)} of table {family} {text.word(obstacle.table)}{legacy} ({why})"


def dropped(obstacle: Obstacle, probes: Sequence[Probe], place: Place) -> str:
    """Return how to make a chain accept some packets that it drops."""
    kind = owner(obstacle, place.chains)
    if kind in _WORDS:
        return _WORDS[kind]
    if kind == "libvirt":
        return _libvirt(place)
    if kind == "ufw" and obstacle.hook == "forward":
        return _ufw(obstacle, probes)
    if kind == "docker" and obstacle.family in ("ip", "ip6") and "DOCKER-USER" in place.chains:
        return f"{_iptables_program(obstacle)} -I DOCKER-USER -m conntrack --ctstate DNAT -j ACCEPT"
    if kind in ("nftables", "docker"):
        return _nftables(obstacle, probes, place)
    return _iptables(obstacle, probes)


_WORDS: dict[Owner, str] = {
    "virt-forward": SYNC,
    "libvirt filter": "allow it in the network filter of the guest (<filterref> in virsh edit)",
    "firewalld": (
        "set StrictForwardPorts=no in /etc/firewalld/firewalld.conf, and run firewall-cmd --reload: "
        "without that setting, firewalld accepts forwards by itself"
    ),
}


def _libvirt(place: Place) -> str:
    if place.mode == "":
        return "the network is isolated on purpose: give it a <forward mode='nat'/> with virsh net-edit"
    if not place.admit:
        return f"set admit = true in section [libvirt] of {DEFAULT_PATH}, and run {SYNC}"
    return SYNC


def _ufw(obstacle: Obstacle, probes: Sequence[Probe]) -> str:
    lines = dict.fromkeys(_ufw_line(probe) for probe in probes if probe.forward.proto != "sctp")
    if not lines:
        # ufw has no word for SCTP.
        match = "-p sctp -m conntrack --ctstate DNAT -j ACCEPT"
        six = "6" if obstacle.family.endswith("ip6") else ""
        command = f"{_iptables_program(obstacle)} -I ufw{six}-before-forward {match}"
        return f"{command}; to keep it, add the rule to /etc/ufw/before{six}.rules"
    return "; ".join(lines)


def _ufw_line(probe: Probe) -> str:
    ports = str(probe.forward.guest_span).replace("-", ":")
    return f"ufw route allow proto {probe.forward.proto} to {probe.endpoint.ip} port {ports}"


def _nftables(obstacle: Obstacle, probes: Sequence[Probe], place: Place) -> str:
    matches = _nft_matches(obstacle, probes)
    chain = f"{obstacle.family} {shlex.quote(obstacle.table)} {shlex.quote(obstacle.chain)}"
    position = f"handle {obstacle.handle} " if obstacle.handle else ""
    # insert with a handle puts the rule before that one.
    command = f"nft insert rule {chain} {position}"
    before = "before that rule" if obstacle.rule else "anywhere"
    commands = "; ".join(f"{command}{match} accept" for match in matches)
    lines = ", ".join(f"{match} accept" for match in matches)
    return f"{commands}; to keep it, add {lines} to that chain in {place.path}, {before}"


def _nft_matches(obstacle: Obstacle, probes: Sequence[Probe]) -> list[str]:
    if _has_label(obstacle):
        return [f"ct label {names.LABEL}"]
    if obstacle.family in ("bridge", "netdev"):
        return list(dict.fromkeys(_bare_match(probe, obstacle) for probe in probes))
    return list(dict.fromkeys(_entry_match(probe) for probe in probes))


def _has_label(obstacle: Obstacle) -> bool:
    """Tell whether the packet already belongs to a connection of ours in that chain."""
    if obstacle.family in ("bridge", "netdev"):
        return False
    if obstacle.hook != "prerouting":
        return True
    # Connections are known after conntrack's own priority, -200; new ones are ours once translated.
    return priority(obstacle.priority) > (-200 if obstacle.answer else DNAT_PRIORITY)


def priority(words: str) -> int:
    """Return the number of a priority such as ``raw - 10``, ``filter`` or ``-95`` (nft(8))."""
    found = re.fullmatch(r"(-?\d+|\w+)(?: ([+-]) (\d+))?", words.strip())
    if not found:
        return 0
    base = int(found[1]) if found[1].lstrip("-").isdigit() else _PRIORITIES.get(found[1], 0)
    return base + int(f"{found[2]}{found[3]}") if found[2] else base


def _entry_match(probe: Probe) -> str:
    return f"iifname {probe.device} {probe.forward.proto} dport {probe.forward.span}"


def _bare_match(probe: Probe, obstacle: Obstacle) -> str:
    family = names.family(probe.endpoint.ip.version)
    if obstacle.answer:
        return f"{family} saddr {probe.endpoint.ip} {probe.forward.proto} sport {probe.forward.guest_span}"
    if obstacle.family == "netdev":
        return f"{probe.forward.proto} dport {probe.forward.span}"
    return f"{family} daddr {probe.endpoint.ip} {probe.forward.proto} dport {probe.forward.guest_span}"


def _iptables(obstacle: Obstacle, probes: Sequence[Probe]) -> str:
    program = _iptables_program(obstacle)
    table = "" if obstacle.table == "filter" else f" -t {obstacle.table}"
    if obstacle.family == "bridge":
        return (
            f"ebtables{table} -I {shlex.quote(obstacle.chain)} -j ACCEPT, or a narrower rule before that one"
        )
    if _has_label(obstacle):
        matches = ["-m conntrack --ctstate DNAT"]
    else:
        matches = list(dict.fromkeys(_iptables_match(probe) for probe in probes))
    lines = (f"{program}{table} -I {shlex.quote(obstacle.chain)} {match} -j ACCEPT" for match in matches)
    return f"{'; '.join(lines)}; to keep it, save the rules as the others are (netfilter-persistent save)"


def _iptables_match(probe: Probe) -> str:
    ports = str(probe.forward.span).replace("-", ":")
    return f"-i {probe.device} -p {probe.forward.proto} --dport {ports}"


def _iptables_program(obstacle: Obstacle) -> str:
    legacy = "-legacy" if obstacle.family.startswith("legacy") else ""
    return ("ip6tables" if obstacle.family.endswith("ip6") else "iptables") + legacy


def shadowed(obstacle: Obstacle, probes: Sequence[Probe], place: Place) -> str:
    """Return how to get a packet that somebody else's rule takes."""
    other = "or choose another host port for the forward"
    if owner(obstacle, place.chains) == "docker" or obstacle.chain.startswith("DOCKER"):
        port = probes[0].port
        return f"stop the container that publishes the port (docker ps --filter publish={port}), {other}"
    if obstacle.rule.startswith("-A "):
        table = "" if obstacle.table == "filter" else f" -t {obstacle.table}"
        return f"{_iptables_program(obstacle)}{table} -D {obstacle.rule[3:]}, {other}"
    chain = f"{obstacle.family} {shlex.quote(obstacle.table)} {shlex.quote(obstacle.chain)}"
    if not obstacle.handle:
        return f"delete that rule, {other}"
    return (
        f"nft delete rule {chain} handle {obstacle.handle}; delete its line in {place.path} as well, {other}"
    )
