"""Blocks that several guests have a part in, made from the index of claims alone.

A host port narrowed by device or source may belong to several guests at once. It leads to
a chain of its own that asks the more special claim first. A subnet on a guest bridge stays
known for as long as one guest with forwards is on it.
"""

from collections.abc import Iterable, Iterator
from ipaddress import ip_network

from virt_forward import claims, ports
from virt_forward.claims import Row
from virt_forward.model import Forward, Subnet
from virt_forward.ruleset import names
from virt_forward.ruleset.block import Block, Chain, Element
from virt_forward.ruleset.guest import level_of, modest, nat_chain

Slot = tuple[str, str, int]
"""Protocol, address (empty for every address), and port (0 for the chain of the wide ranges)."""


def blocks(index: Iterable[Row], touching: Iterable[Row]) -> dict[str, Block]:
    """Return the shared blocks that the rows ``touching`` have a part in, as ``index`` makes them."""
    index, touching = tuple(index), tuple(touching)
    found = [_slot_block(slot, members) for slot, members in _slots(index, touching).items()]
    found += _lan_blocks(index, touching)
    found += _gateway_blocks(index, touching)
    return {block.key: block for block in found}


def _narrowed_ports(rows: Iterable[Row]) -> Iterator[Row]:
    return (row for row in rows if row.kind == claims.PORT and (row.dev or row.source))


def _slots(index: tuple[Row, ...], touching: tuple[Row, ...]) -> dict[Slot, list[Row]]:
    """Return the claims on every slot that one of ``touching`` changes."""
    changed = [claims.forward_of(row) for row in _narrowed_ports(touching)]
    if not changed:
        return {}
    present = [(row, claims.forward_of(row)) for row in _narrowed_ports(index)]
    slots: dict[Slot, list[Row]] = {}
    for slot in {slot for forward in changed for slot in _touched(forward, present)}:
        members = [(row, forward) for row, forward in present if _covers(slot, forward)]
        if any(_makes(slot, forward) for _, forward in members):
            slots[slot] = [row for row, _ in sorted(members, key=lambda member: ports.specificity(member[1]))]
    return slots


def _touched(changed: Forward, present: list[tuple[Row, Forward]]) -> Iterator[Slot]:
    address = str(changed.address or "")
    for forward in (changed, *(other for _, other in present if _meet(changed, other))):
        if modest(forward):
            first, last = max(changed.start, forward.start), min(changed.end, forward.end)
            yield from ((changed.proto, address, port) for port in range(first, last + 1))
        else:
            yield (changed.proto, address, 0)


def _meet(one: Forward, other: Forward) -> bool:
    return (
        (one.proto, one.address) == (other.proto, other.address)
        and one.start <= other.end
        and other.start <= one.end
    )


def _covers(slot: Slot, forward: Forward) -> bool:
    proto, address, port = slot
    if (forward.proto, str(forward.address or "")) != (proto, address):
        return False
    return forward.start <= port <= forward.end if port else not modest(forward)


def _makes(slot: Slot, forward: Forward) -> bool:
    """Tell whether the slot exists for this claim's sake: wide ranges make no single ports."""
    return modest(forward) == bool(slot[2])


def _slot_block(slot: Slot, rows: list[Row]) -> Block:
    proto, address, port = slot
    level = level_of(claims.forward_of(rows[0]))
    name = f"from-{proto}-{port or 'range'}" + (f"-at-{address.replace(':', '_')}" if address else "")
    head = f"{address} . " if address else ""
    element = (
        Element(f"from{level}", f"{head}{proto} . {port}", f"jump {name}")
        if port
        else Element(f"from-range{level}", f"{head}{proto}", f"jump {name}")
    )
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
        own = Element("own", f"{names.interface(dev)} . {names.interface(dev)}")
        yield Block(f"bridge {dev}", elements=(own,), shared=True)
        for subnet in _outermost(subnets):
            place = Element(f"lan{subnet.version}", f"{subnet} . {names.interface(dev)}")
            yield Block(f"lan {subnet} {dev}", elements=(place,), shared=True)


def _gateway_blocks(index: tuple[Row, ...], touching: tuple[Row, ...]) -> Iterator[Block]:
    touched = {row.address for row in touching if row.kind == claims.GATEWAY}
    for address in sorted(touched & {row.address for row in index if row.kind == claims.GATEWAY}):
        element = Element(f"gateway{'6' if ':' in address else '4'}", address)
        yield Block(f"gateway {address}", elements=(element,), shared=True)


def _outermost(texts: Iterable[str]) -> list[Subnet]:
    """Return the subnets that are inside no other: an interval set takes no overlaps."""
    found: list[Subnet] = []
    for subnet in sorted(map(ip_network, texts), key=lambda net: (net.version, net.prefixlen, str(net))):
        if not any(ports.inside(subnet, other) for other in found):
            found.append(subnet)
    return found
