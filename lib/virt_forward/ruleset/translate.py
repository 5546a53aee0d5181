"""The rules of the chain that translates a guest's connections."""

from __future__ import annotations

from collections.abc import Iterator

from virt_forward import names, ports
from virt_forward.config import Config
from virt_forward.model import MAX_PORT, Endpoint, Forward, Listen, Proto, Span
from virt_forward.namedtuple import NamedTuple
from virt_forward.ruleset import maps
from virt_forward.ruleset.block import Element

Mapping = tuple[tuple[Span, int], ...]
"""Spans of host ports, each with the offset of the guest's ports."""

Served = dict[Forward, tuple[Endpoint, ...]]
"""Forwards of a guest, each with the endpoints that serve it."""

MAX_RULES = 8
"""Up to how many rules forwards that are alike have before an anonymous set takes their place.

The kernel validates all rules of a chain for each port that leads there, but its work for anonymous
sets is quadratic in those of all guests.
"""


class _Group(NamedTuple):
    """Forwards that are alike but for their ports, and go to one endpoint."""

    listen: Listen
    endpoint: Endpoint
    shifted: bool
    wide: bool


class Rule(NamedTuple):
    """The ports of a group that one rule is for, and the protocols: wide shifted ranges may share a rule."""

    group: _Group
    protos: list[Proto]
    mapping: Mapping


def rules(served: Served, config: Config) -> list[Rule]:
    """Return the rules for forwards of a guest that are in the order of their specificity."""
    found: dict[tuple[_Group, Mapping], list[Proto]] = {}
    for group, mapping in _groups(served, config).items():
        # The anonymous map of a wide range is large: tcp and udp share it.
        alike = _replace_proto(group) if group.shifted and group.wide else group
        found.setdefault((alike, mapping), []).append(group.listen.proto)
    return [
        Rule(group, protos, part)
        for (group, mapping), protos in found.items()
        for part in _of_each_rule(group, mapping)
    ]


def rule_text(rule: Rule, config: Config) -> str:
    """Return a rule as nft reads it."""
    return f"{_match(rule, config)} {_statement(rule)}"


def elements(rule: Rule) -> Iterator[Element]:
    """Yield the elements of the map that a rule leads to."""
    if _shared_map(rule):
        group = rule.group
        for span, offset in rule.mapping:
            for port in range(span.start, span.end + 1):
                yield maps.target_element(group.listen, port, group.endpoint.ip, port + offset)


def _groups(served: Served, config: Config) -> dict[_Group, Mapping]:
    groups: dict[_Group, list[tuple[Span, int]]] = {}
    for forward, endpoints in served.items():
        if _reachable(forward, config):
            for endpoint in endpoints:
                group = _Group(forward.listen, endpoint, forward.shifted, forward.span.wide)
                groups.setdefault(group, []).append((forward.span, forward.offset))
    return {group: tuple(pairs) for group, pairs in groups.items()}


def _replace_proto(group: _Group) -> _Group:
    return group._replace(listen=group.listen._replace(proto="tcp"))


def _of_each_rule(group: _Group, mapping: Mapping) -> list[Mapping]:
    """Return the part of a group's ports that each of its rules is for."""
    runs = ports.merge(span for span, _ in mapping)
    if group.shifted and not group.wide and not maps.targets(group.listen, group.endpoint.ip.version):
        runs = [Span(port, port) for run in runs for port in range(run.start, run.end + 1)]
    if len(runs) > MAX_RULES or (group.shifted and group.wide):
        return [mapping]
    return [tuple(_within(mapping, run)) for run in runs]


def _within(mapping: Mapping, run: Span) -> Iterator[tuple[Span, int]]:
    """Yield what a mapping has of a run of ports."""
    for span, offset in mapping:
        if span.overlaps(run):
            yield Span(max(span.start, run.start), min(span.end, run.end)), offset


def _shared_map(rule: Rule) -> maps.Map | None:
    """Return the map that has the targets of a rule, among those of other guests."""
    group = rule.group
    if not group.shifted or group.wide or _is_port(rule):
        return None
    return maps.targets(group.listen, group.endpoint.ip.version)


def _is_port(rule: Rule) -> bool:
    (first, _), *others = rule.mapping
    return not others and first.start == first.end


def restrictions(listen: Listen) -> list[str]:
    """Return the matches of what restricts a forward to a part of the packets to its ports."""
    words = [f"iifname {names.interface(listen.dev)}"] if listen.dev else []
    if listen.source:
        words.append(f"{names.family(listen.source.version)} saddr {listen.source}")
    return words


def _reachable(forward: Forward, config: Config) -> bool:
    """Tell whether a forward may have packets at all: 127.0.0.1 has none unless configured."""
    address = forward.address
    return address is None or not address.is_loopback or (config.localhost and address.version == 4)


def _match(rule: Rule, config: Config) -> str:
    listen, endpoint = rule.group.listen, rule.group.endpoint
    version = endpoint.ip.version
    family = names.family(version)
    no_hairpin = not config.hairpin and listen.dev is None
    words = [f"iifname != {names.interface(endpoint.bridge)}"] if no_hairpin else []
    words += [*restrictions(listen), f"meta nfproto ipv{version}", *_ports(rule)]
    words += [f"{family} daddr {listen.address}"] if listen.address else _not_kept(version, config)
    # Traffic that is only passing through is not ours.
    return " ".join([*words, "fib daddr type local"])


def _not_kept(version: int, config: Config) -> list[str]:
    """Return the matches that leave to the host what it keeps: loopback, link-local and gateway addresses."""
    gateway = maps.GATEWAY[version]
    not_gateway = f"{gateway.key[0].expression} != @{gateway.name}"
    if version == 6:
        return ["ip6 daddr != fe80::/10", "ip6 daddr != ::1", not_gateway]
    return [*([] if config.localhost else ["ip daddr != 127.0.0.0/8"]), not_gateway]


def _ports(rule: Rule) -> Iterator[str]:
    protos, spans = rule.protos, ports.merge(span for span, _ in rule.mapping)
    listed = str(spans[0]) if len(spans) == 1 else f"{{ {', '.join(map(str, spans))} }}"
    every = spans == [Span(1, MAX_PORT)]
    if len(protos) == 1 and not every:
        yield f"{protos[0]} dport {listed}"
        return
    yield f"meta l4proto {protos[0] if len(protos) == 1 else '{ ' + ', '.join(protos) + ' }'}"
    if not every:
        yield f"th dport {listed}"


def _statement(rule: Rule) -> str:
    """Return what translates the connections that match a rule."""
    if shared := _shared_map(rule):
        return f"counter goto {shared.name}"
    family = names.family(rule.group.endpoint.ip.version)
    return f"ct label set {names.LABEL} counter dnat {family} to {_target(rule)}"


def _target(rule: Rule) -> str:
    ip = rule.group.endpoint.ip
    shown = f"[{ip}]" if ip.version == 6 else str(ip)
    if _is_port(rule):
        ((span, offset),) = rule.mapping
        return f"{shown}:{span.start + offset}"
    if not rule.group.shifted:
        return str(ip)
    # "to ADDRESS:A-B" would pick any port of the range; a map keeps the offset.
    pairs = ", ".join(
        f"{port} : {port + offset}"
        for span, offset in rule.mapping
        for port in range(span.start, span.end + 1)
    )
    return f"{shown}:{rule.protos[0] if len(rule.protos) == 1 else 'th'} dport map {{ {pairs} }}"
