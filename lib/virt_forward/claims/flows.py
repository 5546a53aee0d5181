"""Connections that conntrack knows: which of them a change of the table leaves behind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from ipaddress import ip_address

from virt_forward import ports
from virt_forward.model import MAX_PORT, ORIGINS, Address, Endpoint, Forward, Guest, Span
from virt_forward.namedtuple import NamedTuple

Pair = tuple[Forward, Endpoint]


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
    """Yield the flows in the output of ``conntrack -L``; lines without ports are skipped.

    With ``wanted``, so are lines that have none of these words: conntrack may have 100,000 entries.
    """
    for line in text.splitlines():
        words = line.split()
        if wanted and wanted.isdisjoint(words):
            continue
        fields = [
            word.partition("=")[2] for word in words if word.startswith(("src=", "dst=", "sport=", "dport="))
        ]
        # A line that was cut off is skipped, too.
        if len(fields) == 8:
            with suppress(ValueError):
                yield _flow(words[0], fields)


def _flow(proto: str, fields: list[str]) -> Flow:
    src, dst, sport, dport, reply_src, _, reply_sport, _ = fields
    return Flow(
        proto,
        ip_address(src),
        ip_address(dst),
        _port(sport),
        _port(dport),
        ip_address(reply_src),
        _port(reply_sport),
    )


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= MAX_PORT:
        raise ValueError(f"{port} is no port")
    return port


def pairs(guest: Guest | None) -> set[Pair]:
    """Return every forward of a running guest with each endpoint that serves it."""
    if guest is None or guest.phase != "running":
        return set()
    # How an address was learned is nothing to a connection.
    return {
        (forward, endpoint._replace(origin=ORIGINS[-1]))
        for forward in guest.forwards
        for endpoint in guest.endpoints_for(forward)
    }


def stale(flows: Iterable[Flow], before: Iterable[Pair], after: Iterable[Pair]) -> Iterator[Flow]:
    """Yield the flows that went through a pair of ``before`` and that ``after`` would send elsewhere.

    Judged flow by flow: a range that is split or made longer is another forward, and its flows stay.
    """
    was, now = _Pairs(before), _Pairs(after)
    for flow in flows:
        if any(_goes_to(flow, *pair) for pair in was.entered(flow)) and not _stays(flow, now):
            yield flow


def _stays(flow: Flow, pairs: _Pairs) -> bool:
    """Tell whether the first pair that ``flow`` meets, the most specific first, sends it where it goes."""
    met = sorted(pairs.entered(flow), key=lambda pair: ports.specificity(pair[0]))
    for forward, endpoint in met:
        if _is_from(flow, forward):
            if _goes_to(flow, forward, endpoint):
                return True
            if forward.dev is None:
                return False
            # conntrack does not know by which device a flow came: the next pair may be the flow's.
    return False


def _is_from(flow: Flow, forward: Forward) -> bool:
    return forward.source is None or flow.source in forward.source


def _goes_to(flow: Flow, forward: Forward, endpoint: Endpoint) -> bool:
    port = flow.destination_port + forward.offset
    return flow.answering == endpoint.ip and flow.answering_port == port and flow.destination != endpoint.ip


class _Pairs:
    """Pairs by what they listen on: each flow looks at those of its port alone."""

    def __init__(self, pairs: Iterable[Pair]) -> None:
        groups: dict[tuple[object, ...], dict[Forward, list[Pair]]] = {}
        for forward, endpoint in pairs:
            key = (forward.proto, endpoint.ip.version, forward.address)
            groups.setdefault(key, {}).setdefault(forward, []).append((forward, endpoint))
        self._groups = {key: (ports.Spans(group), group) for key, group in groups.items()}

    def entered(self, flow: Flow) -> Iterator[Pair]:
        """Yield the pairs that may have let a flow in, or may let it in now."""
        for address in (flow.destination, None):
            spans, pairs = self._groups.get((flow.proto, flow.answering.version, address), (None, {}))
            for forward in (
                spans.overlapping(Span(flow.destination_port, flow.destination_port)) if spans else ()
            ):
                yield from pairs[forward]


def predating(flows: Iterable[Flow], added: Iterable[Pair], local: frozenset[Address]) -> Iterator[Flow]:
    """Yield the UDP flows to the host itself that match a pair of ``added``, and so are older than it.

    As long as conntrack knows such a flow, its packets do not reach the new forward. ``local`` are
    the host's addresses.
    """
    wanted = _Pairs(pair for pair in added if pair[0].proto == "udp")
    for flow in flows:
        unchanged = flow.answering == flow.destination and flow.destination in local
        if unchanged and any(wanted.entered(flow)):
            yield flow
