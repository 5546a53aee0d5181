"""The rules of the chain that translates a guest's connections."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from virt_forward import names, ports
from virt_forward.config import Config
from virt_forward.model import MAX_PORT, Endpoint, Forward, Guest, Listen, Proto, Span
from virt_forward.namedtuple import NamedTuple
from virt_forward.ruleset import maps

Mapping = tuple[tuple[Span, int], ...]
"""Spans of host ports, each with the offset of the guest's ports."""


class _Group(NamedTuple):
    """Forwards that one rule translates: they listen alike but for their ports, and go to one endpoint."""

    listen: Listen
    endpoint: Endpoint
    shifted: bool


class _Rule(NamedTuple):
    """The same, where they do not differ in protocol either."""

    listen: Listen
    endpoint: Endpoint
    mapping: Mapping


def rules(guest: Guest, served: Iterable[Forward], config: Config) -> Iterator[str]:
    """Yield the rules for forwards that are in the order of their specificity."""
    groups: dict[_Group, list[tuple[Span, int]]] = {}
    for forward in served:
        if _reachable(forward, config):
            for endpoint in guest.endpoints_for(forward):
                group = _Group(forward.listen, endpoint, forward.shifted)
                groups.setdefault(group, []).append((forward.span, forward.offset))
    found: dict[_Rule, list[Proto]] = {}
    for group, pairs in groups.items():
        # As much as tcp and udp: a wide range that is shifted is large.
        rule = _Rule(group.listen._replace(proto="tcp"), group.endpoint, tuple(pairs))
        found.setdefault(rule, []).append(group.listen.proto)
    for rule, protos in found.items():
        yield _text(rule, protos, config)


def restrictions(listen: Listen) -> list[str]:
    """Return the matches of what restricts a forward to a part of the packets to its ports."""
    words = [f"iifname {names.interface(listen.dev)}"] if listen.dev else []
    if listen.source:
        words.append(f"{'ip' if listen.source.version == 4 else 'ip6'} saddr {listen.source}")
    return words


def _reachable(forward: Forward, config: Config) -> bool:
    """Tell whether a forward may have packets at all: 127.0.0.1 has none unless configured."""
    address = forward.address
    return address is None or not address.is_loopback or (config.localhost and address.version == 4)


def _text(rule: _Rule, protos: list[Proto], config: Config) -> str:
    listen, endpoint, mapping = rule
    version = endpoint.ip.version
    family = "ip" if version == 4 else "ip6"
    no_hairpin = not config.hairpin and listen.dev is None
    words = [f"iifname != {names.interface(endpoint.bridge)}"] if no_hairpin else []
    words += [*restrictions(listen), f"meta nfproto ipv{version}", *_ports(protos, mapping)]
    words += [f"{family} daddr {listen.address}"] if listen.address else _not_kept(version, config)
    # Traffic that is only passing through is not ours.
    words.append("fib daddr type local")
    return f"{' '.join(words)} ct label set {names.LABEL} counter dnat {family} to {_target(rule, protos)}"


def _not_kept(version: int, config: Config) -> list[str]:
    """Return the matches that leave to the host what it keeps: loopback, link-local and gateway addresses."""
    gateway = maps.GATEWAY[version]
    not_gateway = f"{gateway.key[0].expression} != @{gateway.name}"
    if version == 6:
        return ["ip6 daddr != fe80::/10", "ip6 daddr != ::1", not_gateway]
    return [*([] if config.localhost else ["ip daddr != 127.0.0.0/8"]), not_gateway]


def _ports(protos: list[Proto], mapping: Mapping) -> Iterator[str]:
    spans = ports.merge(span for span, _ in mapping)
    listed = str(spans[0]) if len(spans) == 1 else f"{{ {', '.join(map(str, spans))} }}"
    every = spans == [Span(1, MAX_PORT)]
    if len(protos) == 1 and not every:
        yield f"{protos[0]} dport {listed}"
        return
    yield f"meta l4proto {protos[0] if len(protos) == 1 else '{ ' + ', '.join(protos) + ' }'}"
    if not every:
        yield f"th dport {listed}"


def _target(rule: _Rule, protos: list[Proto]) -> str:
    _, endpoint, mapping = rule
    shown = f"[{endpoint.ip}]" if endpoint.ip.version == 6 else str(endpoint.ip)
    (first, offset), *others = mapping
    if not offset and (others or first.start != first.end):
        return str(endpoint.ip)
    if not others and first.start == first.end:
        return f"{shown}:{first.start + offset}"
    # "to ADDRESS:A-B" would pick any port of the range; a map keeps the offset.
    pairs = ", ".join(
        f"{port} : {port + offset}" for span, offset in mapping for port in range(span.start, span.end + 1)
    )
    return f"{shown}:{protos[0] if len(protos) == 1 else 'th'} dport map {{ {pairs} }}"
