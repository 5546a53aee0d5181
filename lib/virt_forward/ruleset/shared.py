"""Blocks that several guests have a part in, made from the index of claims alone.

A host port narrowed by device or source may belong to several guests at once. It leads to
a chain of its own that asks the more special claim first. A subnet on a guest bridge stays
known for as long as one guest with forwards is on it.
"""

from collections.abc import Iterable, Iterator
from ipaddress import ip_address, ip_network
from typing import NamedTuple

from virt_forward import names, ports
from virt_forward.claims import index as claims
from virt_forward.claims.index import Row
from virt_forward.model import Forward, Span, Subnet
from virt_forward.ruleset import maps
from virt_forward.ruleset.block import Block, Chain
from virt_forward.ruleset.guest import modest, nat_chain

Slot = tuple[str, str, int]
"""Protocol, address (empty for every address), and port (0 for the chain of the wide ranges)."""


class Claim(NamedTuple):
    """A narrowed claim; ``number`` is its place in the index, which decides between equally special ones."""

    number: int
    row: Row
    forward: Forward


def blocks(index: Iterable[Row], touching: Iterable[Row]) -> dict[str, Block]:
    """Return the shared blocks that the rows ``touching`` have a part in, as ``index`` makes them."""
    index, touching = tuple(index), tuple(touching)
    found = [_slot_block(slot, members) for slot, members in _slots(index, touching).items()]
    found += _lan_blocks(index, touching)
    found += _gateway_blocks(index, touching)
    return {block.key: block for block in found}


def _narrowed_ports(rows: Iterable[Row]) -> Iterator[Row]:
    return (row for row in rows if row.kind == claims.PORT and (row.dev or row.source))


class _Claims(NamedTuple):
    """The narrowed claims on the ports of one protocol and address that a change touches.

    ``single`` are the modest ones by port, ``wide`` the others.
    """

    single: dict[int, list[Claim]]
    wide: list[Claim]


def _slots(index: tuple[Row, ...], touching: tuple[Row, ...]) -> dict[Slot, list[Row]]:
    """Return the claims on every slot that one of ``touching`` changes."""
    touched: dict[tuple[str, str], list[Forward]] = {}
    for row in _narrowed_ports(touching):
        touched.setdefault((row.proto, row.address), []).append(claims.forward_of(row))
    spans = {place: ports.merge(forward.span for forward in changed) for place, changed in touched.items()}
    present: dict[tuple[str, str], _Claims] = {place: _Claims({}, []) for place in touched}
    for number, row in enumerate(_narrowed_ports(index) if touched else ()):
        place = (row.proto, row.address)
        if place in touched:
            _sort_in(present[place], Claim(number, row, claims.forward_of(row)), spans[place])
    slots: dict[Slot, list[Row]] = {}
    for place, known in present.items():
        wide = any(not modest(forward) for forward in touched[place])
        slots |= {(*place, port): _ranked(members) for port, members in _members(known)}
        if wide and known.wide:
            slots[(*place, 0)] = _ranked(known.wide)
    return slots


def _sort_in(known: _Claims, claim: Claim, spans: list[Span]) -> None:
    """Add a claim to those that are known, as far as it is on the ports ``spans``."""
    if not modest(claim.forward):
        known.wide.append(claim)
        return
    for port in range(claim.forward.start, claim.forward.end + 1):
        if ports.overlapping(spans, port, port):
            known.single.setdefault(port, []).append(claim)


def _members(known: _Claims) -> Iterator[tuple[int, list[Claim]]]:
    """Yield every single port with the claims on it, the wide ones among them: one pass in order of ports."""
    coming = sorted(known.wide, key=lambda claim: claim.forward.start, reverse=True)
    open_: list[Claim] = []
    for port in sorted(known.single):
        while coming and coming[-1].forward.start <= port:
            open_.append(coming.pop())
        open_ = [claim for claim in open_ if port <= claim.forward.end]
        yield port, known.single[port] + open_


def _ranked(members: list[Claim]) -> list[Row]:
    ranked = sorted(members, key=lambda claim: (ports.specificity(claim.forward), claim.number))
    return [claim.row for claim in ranked]


def _slot_block(slot: Slot, rows: list[Row]) -> Block:
    _, address, port = slot
    listen = claims.forward_of(rows[0])
    name = f"from-{listen.proto}-{port or 'range'}" + (f"-at-{address.replace(':', '_')}" if address else "")
    element = maps.slot_element(listen.proto, listen.address, port, f"jump {name}")
    rules = tuple(_rule(row, wide=not port) for row in rows)
    comment = names.quoted("the more special claim is asked first")
    return Block(f"port {name}", (Chain(name, comment, rules),), (element,), shared=True)


def _rule(row: Row, *, wide: bool) -> str:
    forward = claims.forward_of(row)
    words = [f"iifname {names.interface(forward.dev)}"] if forward.dev else []
    if forward.source:
        words.append(f"{'ip' if forward.source.version == 4 else 'ip6'} saddr {forward.source}")
    if wide:
        words.append(f"th dport {forward.start}-{forward.end}")
    return f"{' '.join(words)} jump {nat_chain(row.chain)}"


def _lan_blocks(index: tuple[Row, ...], touching: tuple[Row, ...]) -> Iterator[Block]:
    touched = {row.dev for row in touching if row.kind == claims.LAN}
    lans: dict[str, set[str]] = {}
    for row in index:
        if row.kind == claims.LAN and row.dev in touched:
            lans.setdefault(row.dev, set()).add(row.source)
    for dev, subnets in sorted(lans.items()):
        same_bridge = maps.SAME_BRIDGE.element(dev, dev)
        yield Block(f"bridge {dev}", elements=(same_bridge,), shared=True)
        for subnet in _outermost(subnets):
            lan = maps.LAN[subnet.version].element(subnet, dev)
            yield Block(f"lan {subnet} {dev}", elements=(lan,), shared=True)


def _gateway_blocks(index: tuple[Row, ...], touching: tuple[Row, ...]) -> Iterator[Block]:
    touched = {row.address for row in touching if row.kind == claims.GATEWAY}
    for address in sorted(touched & {row.address for row in index if row.kind == claims.GATEWAY}):
        ip = ip_address(address)
        element = maps.GATEWAY[ip.version].element(ip)
        yield Block(f"gateway {address}", elements=(element,), shared=True)


def _outermost(texts: Iterable[str]) -> list[Subnet]:
    """Return the subnets that are inside no other: an interval set takes no overlaps."""
    found: list[Subnet] = []
    for subnet in sorted(map(ip_network, texts), key=lambda net: (net.version, net.prefixlen, str(net))):
        if not any(ports.inside(subnet, other) for other in found):
            found.append(subnet)
    return found
