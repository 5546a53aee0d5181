"""Which chain a host port leads to, made from the index of claims alone.

A port that one guest has leads straight to that guest's chain. One that several guests have, as
those with an address, a device or a source may, leads to a chain of its own: it has a rule for each
claim, the most specific first. So does one at an address, where the guest has the port at every
address, too, but shares it there. Wide ranges that are narrowed to a device or a source have one
such chain for each protocol and address.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

from virt_forward import names, ports
from virt_forward.claims.rows import PortRow, Row
from virt_forward.model import Address, Listen, Proto, Span
from virt_forward.namedtuple import NamedTuple
from virt_forward.ruleset import maps
from virt_forward.ruleset.block import Block, Chain, Element
from virt_forward.ruleset.guest import nat_chain
from virt_forward.ruleset.translate import restrictions

WIDE = 0
"""Stands for the port in the slot of wide ranges."""

AT_ADDRESS = "at"
"""The chain that finds forwards with an address."""

Place = tuple[Proto, Address | None]
"""A protocol and an address (None for every address)."""


class Slot(NamedTuple):
    """What a port (or WIDE) of one protocol leads to, at one address or at every one."""

    proto: Proto
    address: Address | None
    port: int


def blocks(index: Iterable[Row], touching: Iterable[Row]) -> Iterator[Block]:
    """Yield the blocks of the ports that the rows ``touching`` have, as ``index`` makes them.

    Of other guests, ``index`` needs the claims that overlap ``touching`` in any port of the same protocol,
    whatever they are limited to, and the narrowed wide ranges of the same protocol and address.
    """
    found = slots(index, touching)
    for slot, rows in found.items():
        straight = _leads_straight(slot, rows, found.get(slot._replace(address=None), ()))
        yield _block(slot, rows, straight=straight)


def slots(index: Iterable[Row], touching: Iterable[Row]) -> dict[Slot, list[PortRow]]:
    """Return the claims on every slot that one of ``touching`` changes, the most specific first."""
    touched = list(_open(touching))
    by_proto: dict[Proto, list[Span]] = {}
    for row in touched:
        by_proto.setdefault(row.listen.proto, []).append(row.span)
    spans = {proto: ports.merge(found) for proto, found in by_proto.items()}
    single: dict[Place, dict[int, list[PortRow]]] = {}
    wide: dict[Place, list[PortRow]] = {}
    for row in _open(index) if spans else ():
        if row.span.wide:
            wide.setdefault(_place(row.listen), []).append(row)
        elif row.listen.proto in spans:
            _sort_in(single, row, spans[row.listen.proto])
    found = {
        Slot(*place, port): ranked(rows)
        for place, by_port in single.items()
        for port, rows in _with_wide(by_port, wide.get(place, []))
    }
    for place in {_place(row.listen) for row in touched if row.span.wide and row.listen.restricted}:
        if narrowed := [row for row in wide.get(place, []) if row.listen.restricted]:
            found[Slot(*place, WIDE)] = ranked(narrowed)
    return found


def _open(rows: Iterable[Row]) -> Iterator[PortRow]:
    return (row for row in rows if isinstance(row, PortRow) and row.state == "open")


def _place(listen: Listen) -> Place:
    return listen.proto, listen.address


def _sort_in(single: dict[Place, dict[int, list[PortRow]]], row: PortRow, spans: list[Span]) -> None:
    """Add a claim to those on each of its ports that is in ``spans``, at its address and at every one."""
    proto, address = _place(row.listen)
    for place in ((proto, None), (proto, address)) if address else ((proto, None),):
        known = single.setdefault(place, {})
        for span in ports.overlapping(spans, row.span):
            for port in range(max(span.start, row.span.start), min(span.end, row.span.end) + 1):
                known.setdefault(port, []).append(row)


def _with_wide(single: dict[int, list[PortRow]], wide: list[PortRow]) -> Iterator[tuple[int, list[PortRow]]]:
    """Yield every single port with the claims on it, the wide ones among them: one pass in order of ports."""
    ahead = sorted(wide, key=lambda row: row.span.start, reverse=True)
    reached: list[PortRow] = []
    for port in sorted(single) if wide else single:
        while ahead and ahead[-1].span.start <= port:
            reached.append(ahead.pop())
        reached = [row for row in reached if port <= row.span.end]
        yield port, single[port] + reached


def ranked(rows: list[PortRow]) -> list[PortRow]:
    """Return claims in the order in which they are asked; that of equals is fixed, too."""

    def order(row: PortRow) -> tuple[object, ...]:
        return (*row.listen.specificity(), row.span, row.listen.dev or "", str(row.listen.source), row.uuid)

    return sorted(rows, key=order) if len(rows) > 1 else rows


def _leads_straight(slot: Slot, rows: Sequence[PortRow], everywhere: Sequence[PortRow]) -> bool:
    """Tell whether a slot leads to the chain of its guest, whatever its claims are limited to.

    ``everywhere`` are the claims on the same port of the slot without an address. The guest's chain has
    its claims without an address, too, which must not be asked before another guest's narrower ones.
    """
    if len({row.uuid for row in rows}) > 1:
        return False
    if slot.address is None or not all(row.listen.restricted for row in rows):
        return True
    if slot.port == WIDE:
        return False
    unaddressed = {row.uuid for row in everywhere if row.listen.address is None}
    return rows[0].uuid not in unaddressed or len(unaddressed) == 1


def _block(slot: Slot, rows: list[PortRow], *, straight: bool) -> Block:
    address = f"-at-{str(slot.address).replace(':', '_')}" if slot.address else ""
    name = f"port-{slot.proto}-{slot.port or 'range'}{address}"
    if straight:
        return Block(name.replace("-", " ", 1), (), (_element(slot, _chain_of(rows[0])),))
    chain = Chain(name, names.quoted("the most specific claim comes first"), tuple(_rules(slot, rows)))
    return Block(name.replace("-", " ", 1), (chain,), (_element(slot, name),))


def _element(slot: Slot, chain: str) -> Element:
    proto, address, port = slot
    if port == WIDE:
        return maps.narrowed_element(proto, address, f"jump {chain}")
    return maps.port_element(proto, address, port, f"jump {chain}")


def _rules(slot: Slot, rows: list[PortRow]) -> Iterator[str]:
    if any(row.listen.address != slot.address for row in rows):
        yield f"jump {AT_ADDRESS}"
    for row in rows:
        if row.listen.address == slot.address:
            words = restrictions(row.listen)
            words += [f"th dport {row.span}"] if slot.port == WIDE else []
            yield " ".join([*words, f"jump {_chain_of(row)}"])


def _chain_of(row: PortRow) -> str:
    return _guest_chain(row.name, row.uuid)


@lru_cache(maxsize=1000)
def _guest_chain(name: str, uuid: str) -> str:
    return nat_chain(names.suffix(name, uuid))
