"""Connections that conntrack knows: which of them a change of the table leaves behind."""

from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from typing import NamedTuple

from virt_forward import ports
from virt_forward.model import Address, Forward, Guest, Seat

Pair = tuple[Forward, Seat]


class Flow(NamedTuple):
    """One connection as conntrack(8) prints it: the original tuple, and who answers."""

    proto: str
    source: Address
    destination: Address
    source_port: int
    destination_port: int
    answering: Address
    answering_port: int


def parse(text: str, wanted: frozenset[str] = frozenset()) -> Iterator[Flow]:
    """Yield the flows in the output of ``conntrack -L``; lines without ports are passed over.

    With ``wanted``, so are lines that have none of these words: there may be 100,000 of them.
    """
    for line in text.splitlines():
        words = line.split()
        if wanted and wanted.isdisjoint(words):
            continue
        fields = [
            word.partition("=")[2] for word in words if word.startswith(("src=", "dst=", "sport=", "dport="))
        ]
        if len(fields) == 8:
            src, dst, sport, dport, reply_src, _, reply_sport, _ = fields
            yield Flow(
                words[0],
                ip_address(src),
                ip_address(dst),
                int(sport),
                int(dport),
                ip_address(reply_src),
                int(reply_sport),
            )


def pairs(guest: Guest | None) -> set[Pair]:
    """Return every forward of a running guest with each seat that serves it."""
    if guest is None or guest.phase != "running":
        return set()
    return {(forward, seat) for forward in guest.forwards for seat in guest.seats_for(forward)}


def stale(flows: Iterable[Flow], gone: Iterable[Pair]) -> Iterator[Flow]:
    """Yield the flows that went through one of the pairs that are no more."""
    groups = _grouped(((forward.proto, seat.ip, forward.address), forward) for forward, seat in gone)
    for flow in flows:
        places = ((flow.proto, flow.answering, address) for address in (None, flow.destination))
        found = (forward for place in places for forward in _on_port(groups, place, flow))
        if flow.destination != flow.answering and any(_leads(flow, forward) for forward in found):
            yield flow


def _leads(flow: Flow, forward: Forward) -> bool:
    return flow.answering_port == forward.to + flow.destination_port - forward.start


Place = tuple[object, ...]


def _grouped(forwards: Iterable[tuple[Place, Forward]]) -> dict[Place, ports.Spans]:
    groups: dict[Place, list[Forward]] = {}
    for place, forward in forwards:
        groups.setdefault(place, []).append(forward)
    return {place: ports.Spans(group) for place, group in groups.items()}


def _on_port(groups: dict[Place, ports.Spans], place: Place, flow: Flow) -> list[Forward]:
    group = groups.get(place)
    return group.overlapping(flow.destination_port, flow.destination_port) if group else []


def knocked(flows: Iterable[Flow], come: Iterable[Pair], own: frozenset[Address]) -> Iterator[Flow]:
    """Yield UDP flows to the host's own port that were there before its forward was."""
    groups = _grouped(
        ((forward.proto, seat.ip.version, forward.address), forward)
        for forward, seat in come
        if forward.proto == "udp"
    )
    for flow in flows:
        if flow.answering == flow.destination and flow.destination in own:
            version = flow.destination.version
            places = ((flow.proto, version, address) for address in (None, flow.destination))
            if any(_on_port(groups, place, flow) for place in places):
                yield flow
