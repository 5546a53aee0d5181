"""One guest's block: the chain that translates, the chain that counts, and what leads there."""

from collections.abc import Iterator

from virt_forward import names, ports
from virt_forward.config import Config
from virt_forward.model import MAX_PORT, Endpoint, Forward, Guest, Listen, Span
from virt_forward.ruleset import maps
from virt_forward.ruleset.block import Block, Chain, Element

MODEST = 128
"""Ranges of up to this many ports become hash elements; wider ones an interval."""

MODEST_RESTRICTED = 8
"""The same for ports that guests may share, as each of these needs a slot chain."""


def modest(listen: Listen, span: Span) -> bool:
    """Tell whether a forward's ports are few enough to be single elements."""
    return span.end - span.start < (MODEST_RESTRICTED if listen.restricted else MODEST)


def key(uuid: str) -> str:
    """Return the key of a guest's block."""
    return f"guest {uuid}"


def block(guest: Guest, config: Config) -> Block | None:
    """Return the block of a running guest, or None where nothing of it belongs into the table."""
    forwards = sorted(guest.forwards, key=ports.specificity)
    served = [forward for forward in forwards if guest.endpoints_for(forward)]
    isolated = guest.isolate and guest.endpoints
    if guest.phase != "running" or not (served or isolated):
        return None
    elements = [element for forward in served for element in _port_elements(guest, forward)]
    elements += [element for endpoint in guest.endpoints for element in _endpoint_elements(guest, endpoint)]
    return Block(key(guest.uuid), (_nat(guest, served, config), _count(guest, forwards)), tuple(elements))


def nat_chain(suffix: str) -> str:
    """Return the name of the chain that translates."""
    return f"guest-{suffix}"


def count_chain(suffix: str) -> str:
    """Return the name of the chain that counts."""
    return f"forward-{suffix}"


def counter_comment(number: int) -> str:
    """Return the comment by which the counter of the guest's forward ``number`` is found again."""
    return f"forward {number}"


def _suffix(guest: Guest) -> str:
    return names.suffix(guest.name, guest.uuid)


def _nat(guest: Guest, served: list[Forward], config: Config) -> Chain:
    rules = [
        _dnat(forward, endpoint, config) for forward in served for endpoint in guest.endpoints_for(forward)
    ]
    return Chain(nat_chain(_suffix(guest)), names.guest_comment(guest.name, guest.uuid), tuple(rules))


def _count(guest: Guest, forwards: list[Forward]) -> Chain:
    numbers = {forward: number for number, forward in enumerate(guest.forwards)}
    rules = [
        f'{match} counter return comment "{counter_comment(numbers[forward])}"'
        for forward in forwards
        for match in _count_matches(forward)
    ]
    return Chain(count_chain(_suffix(guest)), names.guest_comment(guest.name, guest.uuid), tuple(rules))


def _port_elements(guest: Guest, forward: Forward) -> Iterator[Element]:
    listen, span = forward.listen, forward.span
    verdict = f"jump {nat_chain(_suffix(guest))}"
    if listen.restricted:
        return  # The slot of each port leads to the guest: shared.py.
    if modest(listen, span):
        for port in range(span.start, span.end + 1):
            yield maps.port_element(listen.proto, listen.address, port, verdict)
    else:
        yield maps.range_element(listen.proto, listen.address, span, verdict)


def _endpoint_elements(guest: Guest, endpoint: Endpoint) -> Iterator[Element]:
    version, verdict = endpoint.ip.version, f"goto {count_chain(_suffix(guest))}"
    yield maps.GUEST[version].element(endpoint.ip, endpoint.bridge, verdict=verdict)
    if guest.isolate:
        yield maps.ISOLATED[version].element(endpoint.ip, endpoint.bridge)


def _dnat(forward: Forward, endpoint: Endpoint, config: Config) -> str:
    family = "ip" if endpoint.ip.version == 4 else "ip6"
    no_hairpin = not config.hairpin and forward.dev is None
    words = [f"iifname != {names.interface(endpoint.bridge)}"] if no_hairpin else []
    words += restrictions(forward.listen)
    words += [f"{family} daddr {forward.address}"] if forward.address else []
    words.append(f"meta nfproto ipv{endpoint.ip.version}")
    words.append(_dport(forward))
    return (
        f"{' '.join(words)} ct label set {names.LABEL} counter dnat {family} to {_target(forward, endpoint)}"
    )


def restrictions(listen: Listen) -> list[str]:
    """Return the matches of what restricts a forward to a part of the packets to its ports."""
    words = [f"iifname {names.interface(listen.dev)}"] if listen.dev else []
    if listen.source:
        words.append(f"{'ip' if listen.source.version == 4 else 'ip6'} saddr {listen.source}")
    return words


def _dport(forward: Forward) -> str:
    if forward.span == (1, MAX_PORT):
        return f"meta l4proto {forward.proto}"
    return f"{forward.proto} dport {forward.span}"


def _target(forward: Forward, endpoint: Endpoint) -> str:
    shown = f"[{endpoint.ip}]" if endpoint.ip.version == 6 else str(endpoint.ip)
    if forward.start == forward.end:
        return f"{shown}:{forward.to}"
    if not forward.shifted:
        return str(endpoint.ip)
    # "to ADDRESS:A-B" would pick any port of the range; a map keeps the offset.
    pairs = ", ".join(f"{port} : {port + forward.offset}" for port in range(forward.start, forward.end + 1))
    return f"{shown}:{forward.proto} dport map {{ {pairs} }}"


def _count_matches(forward: Forward) -> Iterator[str]:
    words = [f"meta l4proto {forward.proto} ct original proto-dst {forward.span}"]
    for word, limit in (("saddr", forward.source), ("daddr", forward.address)):
        if limit:
            words.append(f"ct original {'ip' if limit.version == 4 else 'ip6'} {word} {limit}")
    match = " ".join(words)
    if forward.dev is None:
        yield match
    else:
        # A connection keeps no memory of the device it came by; each direction shows it once.
        yield f"ct direction original iifname {names.interface(forward.dev)} {match}"
        yield f"ct direction reply oifname {names.interface(forward.dev)} {match}"
