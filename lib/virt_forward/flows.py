"""Connections that conntrack knows: which of them a change of the table leaves behind."""

from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from typing import NamedTuple

from virt_forward import ports
from virt_forward.model import ORIGINS, Address, Forward, Guest, Seat

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
    # How an address was learned is nothing to a connection.
    return {
        (forward, seat._replace(origin=ORIGINS[-1]))
        for forward in guest.forwards
        for seat in guest.seats_for(forward)
    }


def stale(flows: Iterable[Flow], before: Iterable[Pair], after: Iterable[Pair]) -> Iterator[Flow]:
    """Yield the flows that went through a pair of ``before`` and that ``after`` would send elsewhere.

    Judged flow by flow: a range that is split or made longer is another forward, and its flows stay.
    """
    before = tuple(before)
    after = sorted(after, key=lambda pair: ports.specificity(pair[0]))
    for flow in flows:
        if any(_goes_to(flow, forward, seat) for forward, seat in before) and not _stays(flow, after):
            yield flow


def _stays(flow: Flow, pairs: Iterable[Pair]) -> bool:
    """Tell whether the first pair that ``flow`` meets, the most special first, sends it where it goes."""
    for forward, seat in pairs:
        if seat.ip.version == flow.answering.version and _entered(flow, forward) and _is_from(flow, forward):
            if _goes_to(flow, forward, seat):
                return True
            if forward.dev is None:
                return False
            # conntrack does not know by which device a flow came: the next pair may be the flow's.
    return False


def _is_from(flow: Flow, forward: Forward) -> bool:
    return forward.source is None or flow.source in forward.source


def _goes_to(flow: Flow, forward: Forward, seat: Seat) -> bool:
    port = forward.to + flow.destination_port - forward.start
    return (
        _entered(flow, forward)
        and flow.answering == seat.ip
        and flow.answering_port == port
        and flow.destination != seat.ip
    )


def _entered(flow: Flow, forward: Forward) -> bool:
    return (
        flow.proto == forward.proto
        and forward.start <= flow.destination_port <= forward.end
        and forward.address in (None, flow.destination)
    )


def knocked(flows: Iterable[Flow], come: Iterable[Pair], own: frozenset[Address]) -> Iterator[Flow]:
    """Yield UDP flows to the host's own port that were there before its forward was."""
    wanted = [(forward, seat) for forward, seat in come if forward.proto == "udp"]
    for flow in flows:
        unchanged = flow.answering == flow.destination and flow.destination in own
        if unchanged and any(
            _entered(flow, forward) and seat.ip.version == flow.destination.version
            for forward, seat in wanted
        ):
            yield flow
