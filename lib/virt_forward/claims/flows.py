"""Connections that the kernel tracks: which of them a change of the table leaves behind."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from ipaddress import ip_address
from struct import Struct
from struct import error as StructError  # noqa: N812

from virt_forward import ports
from virt_forward.model import ORIGINS, Address, Endpoint, Forward, Guest, Span
from virt_forward.namedtuple import NamedTuple

Pair = tuple[Forward, Endpoint]


class Flow(NamedTuple):
    """What connections have in common that were opened to one port of the host and are answered by one guest.

    ``source`` is who opened them, None where that is of no interest.
    """

    proto: str
    source: Address | None
    destination: Address
    destination_port: int
    answering: Address
    answering_port: int


CTA_TUPLE_ORIG, CTA_TUPLE_REPLY = 0x8001, 0x8002
"""linux/netfilter/nfnetlink_conntrack.h, with NLA_F_NESTED."""

_PROTOS = {6: "tcp", 17: "udp", 132: "sctp"}
_NFGENMSG_SIZE = 4
_READ_TUPLE = {
    2: Struct("=HH8x4s4x4s8xB7x2s6x2s2x").unpack_from,
    10: Struct("=HH8x16s4x16s8xB7x2s6x2s2x").unpack_from,
}
"""What reads a tuple, by AF_INET and AF_INET6: length, type, source, destination, protocol and the two ports,
as ctnetlink_dump_tuples() in the kernel's nf_conntrack_netlink.c writes them."""


def parse(
    messages: Iterable[bytes], answering: Collection[Address], sources: bool = True
) -> dict[Flow, list[bytes]]:
    """Return the flows that one of some addresses answers, with the messages of their connections.

    ``messages`` are payloads of IPCTNL_MSG_CT_NEW: struct nfgenmsg and attributes. Others, and those of
    connections without ports, are skipped. Without ``sources``, flows are not told apart by who opened them.
    """
    wanted = {address.packed for address in answering}
    found: dict[tuple[int, bytes, bytes, bytes, bytes, bytes], list[bytes]] = {}
    for message in messages:
        try:
            read = _READ_TUPLE[message[0]]
            length, original, src, dst, proto, _, dport = read(message, _NFGENMSG_SIZE)
            _, reply, answer, _, _, port, _ = read(message, _NFGENMSG_SIZE + length)
        except (IndexError, KeyError, StructError):
            continue
        # A request to delete a connection without its original tuple would delete all there are.
        if answer in wanted and proto in _PROTOS and (original, reply) == (CTA_TUPLE_ORIG, CTA_TUPLE_REPLY):
            way = (proto, src if sources else b"", dst, dport, answer, port)
            found.setdefault(way, []).append(message)
    return {
        Flow(
            _PROTOS[proto],
            ip_address(src) if src else None,
            ip_address(dst),
            int.from_bytes(dport),
            ip_address(answer),
            int.from_bytes(port),
        ): each
        for (proto, src, dst, dport, answer, port), each in found.items()
    }


def pairs(guest: Guest | None) -> set[Pair]:
    """Return every forward of a running guest with each endpoint that serves it."""
    if guest is None or guest.phase != "running":
        return set()
    # How an address was learned is nothing to a connection.
    alike = tuple(endpoint._replace(origin=ORIGINS[-1]) for endpoint in guest.endpoints)
    served = guest._replace(endpoints=alike).served()
    return {(forward, endpoint) for forward, endpoints in served for endpoint in endpoints}


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
    return forward.source is None or (flow.source is not None and flow.source in forward.source)


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
