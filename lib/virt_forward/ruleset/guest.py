"""One guest's block: the chain that translates, the chain that counts, and what leads there."""

from collections.abc import Iterator

from virt_forward import names, ports
from virt_forward.claims.rows import lookups
from virt_forward.config import Config
from virt_forward.model import Endpoint, Forward, Guest
from virt_forward.ruleset import maps, translate
from virt_forward.ruleset.block import Block, Chain, Element

KEY = "guest "
"""What the key of a guest's block begins with, and no other."""


def block(guest: Guest, config: Config) -> Block | None:
    """Return the block of a running guest, or None where nothing of it belongs into the table."""
    if not lookups(guest):
        return None
    forwards = sorted(guest.forwards, key=ports.specificity)
    endpoints = dict(guest.served())
    served = {forward: endpoints[forward] for forward in forwards if forward in endpoints}
    elements = [element for forward in served for element in _range_elements(guest, forward)]
    rules = translate.rules(served, config)
    elements += [element for rule in rules for element in translate.elements(rule)]
    elements += [element for endpoint in guest.endpoints for element in _endpoint_elements(guest, endpoint)]
    return Block(KEY + guest.uuid, (_nat(guest, rules, config), _count(guest, forwards)), tuple(elements))


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


def _nat(guest: Guest, rules: list[translate.Rule], config: Config) -> Chain:
    texts = tuple(translate.rule_text(rule, config) for rule in rules)
    return Chain(nat_chain(_suffix(guest)), names.guest_comment(guest.name, guest.uuid), texts)


def _count(guest: Guest, forwards: list[Forward]) -> Chain:
    numbers = {forward: number for number, forward in enumerate(guest.forwards)}
    rules = [
        f'{match} counter return comment "{counter_comment(numbers[forward])}"'
        for forward in forwards
        for match in _count_matches(forward)
    ]
    return Chain(count_chain(_suffix(guest)), names.guest_comment(guest.name, guest.uuid), tuple(rules))


def _range_elements(guest: Guest, forward: Forward) -> Iterator[Element]:
    """Yield what leads to a wide range that no other guest can have; slots.py leads to all other ports."""
    if forward.span.wide and not forward.listen.restricted:
        verdict = f"jump {nat_chain(_suffix(guest))}"
        yield maps.range_element(forward.proto, forward.address, forward.span, verdict)


def _endpoint_elements(guest: Guest, endpoint: Endpoint) -> Iterator[Element]:
    version, verdict = endpoint.ip.version, f"goto {count_chain(_suffix(guest))}"
    yield maps.GUEST[version].element(endpoint.ip, endpoint.bridge, data=verdict)
    if guest.isolate:
        yield maps.ISOLATED[version].element(endpoint.ip, endpoint.bridge)


def _count_matches(forward: Forward) -> Iterator[str]:
    words = [f"meta l4proto {forward.proto} ct original proto-dst {forward.span}"]
    for word, limit in (("saddr", forward.source), ("daddr", forward.address)):
        if limit:
            words.append(f"ct original {names.family(limit.version)} {word} {limit}")
    match = " ".join(words)
    if forward.dev is None:
        yield match
    else:
        # A connection keeps no memory of the device it came by; each direction shows it once.
        yield f"ct direction original iifname {names.interface(forward.dev)} {match}"
        yield f"ct direction reply oifname {names.interface(forward.dev)} {match}"
