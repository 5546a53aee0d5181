"""Blocks that several guests have a part in, made from the index of claims alone.

A host port that is restricted to a device or a source may belong to several guests at once. It leads to
a slot chain, with a rule for every claim on it, the most specific first. A subnet on a guest bridge
stays in the table for as long as one guest with forwards is on it.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from virt_forward import names, ports
from virt_forward.claims.rows import GatewayRow, PortRow, Row, SubnetRow
from virt_forward.model import Address, Listen, Proto, Span, Subnet
from virt_forward.ruleset import maps
from virt_forward.ruleset.block import Block, Chain
from virt_forward.ruleset.guest import modest, nat_chain, restrictions

WIDE = 0
"""Stands for the port in the slot of wide ranges."""

Place = tuple[Proto, Address | None]
"""A protocol and an address (None for every address)."""


class Slot(NamedTuple):
    """What one slot chain is for: a port (or WIDE) of one protocol and address."""

    proto: Proto
    address: Address | None
    port: int


class Claim(NamedTuple):
    """A restricted claim; ``number`` is its position in the index, which decides between equals."""

    number: int
    row: PortRow


def blocks(index: Iterable[Row], touching: Iterable[Row]) -> dict[str, Block]:
    """Return the shared blocks that the rows ``touching`` have a part in, as ``index`` makes them."""
    index, touching = tuple(index), tuple(touching)
    found = [_slot_block(slot, members) for slot, members in _slots(index, touching).items()]
    found += _lan_blocks(index, touching)
    found += _gateway_blocks(index, touching)
    return {block.key: block for block in found}


def _restricted(rows: Iterable[Row]) -> Iterator[PortRow]:
    for row in rows:
        if isinstance(row, PortRow) and row.state == "open" and row.listen.restricted:
            yield row


class _Claims(NamedTuple):
    """The restricted claims on the ports of one place that a change touches.

    ``single`` are the modest ones by port, ``wide`` the others.
    """

    single: dict[int, list[Claim]]
    wide: list[Claim]


def _place(listen: Listen) -> Place:
    return listen.proto, listen.address


def _slots(index: tuple[Row, ...], touching: tuple[Row, ...]) -> dict[Slot, list[PortRow]]:
    """Return the claims on every slot that one of ``touching`` changes, the most specific first."""
    touched: dict[Place, list[PortRow]] = {}
    for row in _restricted(touching):
        touched.setdefault(_place(row.listen), []).append(row)
    spans = {place: ports.merge(row.span for row in changed) for place, changed in touched.items()}
    present: dict[Place, _Claims] = {place: _Claims({}, []) for place in touched}
    for number, row in enumerate(_restricted(index) if touched else ()):
        place = _place(row.listen)
        if place in touched:
            _sort_in(present[place], Claim(number, row), spans[place])
    slots: dict[Slot, list[PortRow]] = {}
    for place, known in present.items():
        slots |= {Slot(*place, port): _ranked(members) for port, members in _members(known)}
        if known.wide and any(not modest(row.listen, row.span) for row in touched[place]):
            slots[Slot(*place, WIDE)] = _ranked(known.wide)
    return slots


def _sort_in(known: _Claims, claim: Claim, spans: list[Span]) -> None:
    """Add a claim to those that are known, as far as it is on the ports ``spans``."""
    span = claim.row.span
    if not modest(claim.row.listen, span):
        known.wide.append(claim)
        return
    for port in range(span.start, span.end + 1):
        if ports.overlapping(spans, port, port):
            known.single.setdefault(port, []).append(claim)


def _members(known: _Claims) -> Iterator[tuple[int, list[Claim]]]:
    """Yield every single port with the claims on it, the wide ones among them: one pass in order of ports."""
    ahead = sorted(known.wide, key=lambda claim: claim.row.span.start, reverse=True)
    reached: list[Claim] = []
    for port in sorted(known.single):
        while ahead and ahead[-1].row.span.start <= port:
            reached.append(ahead.pop())
        reached = [claim for claim in reached if port <= claim.row.span.end]
        yield port, known.single[port] + reached


def _ranked(members: list[Claim]) -> list[PortRow]:
    def order(claim: Claim) -> tuple[object, ...]:
        return (*claim.row.listen.specificity(), claim.row.span.start, claim.number)

    return [claim.row for claim in sorted(members, key=order)]


def _slot_block(slot: Slot, rows: list[PortRow]) -> Block:
    address = f"-at-{str(slot.address).replace(':', '_')}" if slot.address else ""
    name = f"from-{slot.proto}-{slot.port or 'range'}{address}"
    element = maps.slot_element(slot.proto, slot.address, slot.port, f"jump {name}")
    rules = tuple(_rule(row, wide=slot.port == WIDE) for row in rows)
    comment = names.quoted("the most specific claim comes first")
    return Block(f"port {name}", (Chain(name, comment, rules),), (element,), shared=True)


def _rule(row: PortRow, *, wide: bool) -> str:
    words = restrictions(row.listen)
    if wide:
        words.append(f"th dport {row.span}")
    return f"{' '.join(words)} jump {nat_chain(names.suffix(row.name, row.uuid))}"


def _lan_blocks(index: tuple[Row, ...], touching: tuple[Row, ...]) -> Iterator[Block]:
    touched = {row.bridge for row in touching if isinstance(row, SubnetRow)}
    lans: dict[str, set[Subnet]] = {}
    for row in index if touched else ():
        if isinstance(row, SubnetRow) and row.bridge in touched:
            lans.setdefault(row.bridge, set()).add(row.subnet)
    for bridge, subnets in sorted(lans.items()):
        same_bridge = maps.SAME_BRIDGE.element(bridge, bridge)
        yield Block(f"bridge {bridge}", elements=(same_bridge,), shared=True)
        for subnet in _outermost(subnets):
            lan = maps.LAN[subnet.version].element(subnet, bridge)
            yield Block(f"lan {subnet} {bridge}", elements=(lan,), shared=True)


def _gateway_blocks(index: tuple[Row, ...], touching: tuple[Row, ...]) -> Iterator[Block]:
    touched = {row.ip for row in touching if isinstance(row, GatewayRow)}
    present = {row.ip for row in index if isinstance(row, GatewayRow)} if touched else set()
    for ip in sorted(touched & present, key=str):
        element = maps.GATEWAY[ip.version].element(ip)
        yield Block(f"gateway {ip}", elements=(element,), shared=True)


def _outermost(subnets: Iterable[Subnet]) -> list[Subnet]:
    """Return the subnets that are inside no other: an interval set takes no overlaps."""
    found: list[Subnet] = []
    for subnet in sorted(subnets, key=lambda net: (net.version, net.prefixlen, str(net))):
        if not any(ports.inside(subnet, other) for other in found):
            found.append(subnet)
    return found
