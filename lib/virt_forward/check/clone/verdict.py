"""What became of a probe: from the kernel's trace and the packets that came out of the clone (pure)."""

import re
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple

from virt_forward.check.clone import host_state
from virt_forward.check.clone.host_state import HostState
from virt_forward.check.clone.packets import Packet
from virt_forward.check.clone.plan import Wire
from virt_forward.check.clone.probes import Probe
from virt_forward.check.clone.tables import TRACE_TABLE
from virt_forward.check.clone.trace import Event
from virt_forward.check.rules import Chain, Table
from virt_forward.model import Endpoint

Kind = Literal["dropped", "translated", "local", "forwarding", "rp_filter", "unrouted", "misled", "unknown"]

Asked = tuple[Endpoint, int]
"""A TCP port of a guest."""
Tables = Mapping[tuple[str, str], Table]


class Seen(NamedTuple):
    """A packet that came out of the clone at the outside end of a wire."""

    outside: str
    packet: Packet


class Obstacle(NamedTuple):
    """What kept a probe, or the answer to it, from its way.

    ``chain`` decided; ``base`` is the base chain from which it was reached, at ``hook``. ``rule`` is
    empty where the chain's policy decided, ``handle`` that of the host's rule, 0 for rules of iptables.
    ``detail`` is for the kinds without a chain: an interface, an address, or words of the kernel. A probe
    is "misled" to the address that it was sent to, where that or the port is not the forward's.
    """

    kind: Kind
    answer: bool = False
    family: str = ""
    table: str = ""
    chain: str = ""
    base: str = ""
    hook: str = ""
    rule: str = ""
    handle: int = 0
    priority: str = ""
    detail: str = ""

    @property
    def base_key(self) -> tuple[str, str, str, str]:
        """The family, table, base chain and hook."""
        return self.family, self.table, self.base, self.hook


class Result(NamedTuple):
    """What became of a probe: what stopped it, one obstacle after the other was taken away in the clone.

    ``complete`` tells that nothing else stops it. ``path`` are the decisions on the way, for probes that
    are explained.
    """

    probe: Probe
    obstacles: tuple[Obstacle, ...] = ()
    complete: bool = True
    path: tuple[str, ...] = ()


class Report(NamedTuple):
    """The results, and what could not be copied: tables with the reason, and other things in words.

    ``chains`` are the names of the chains of each table of the host, by family and name. ``blocked`` are
    the TCP ports of guests to which the host itself cannot connect.
    """

    results: tuple[Result, ...] = ()
    missing_tables: tuple[tuple[str, str], ...] = ()
    not_copied: tuple[str, ...] = ()
    chains: Mapping[tuple[str, str], frozenset[str]] = MappingProxyType({})
    blocked: frozenset[Asked] = frozenset()


class Book(NamedTuple):
    """The rules by which events are read: the clone's tables, and the host's, whose handles are printed."""

    clone: Tables
    host: Tables
    state: HostState


def arrived(probe: Probe, wire: Wire, seen: Iterable[Seen]) -> bool:
    """Tell whether a probe came out where the guest is, and addressed to it."""
    return any(
        item.outside == wire.outside
        and item.packet.kind == "first"
        and (item.packet.dst, item.packet.dport) == (probe.endpoint.ip, probe.to)
        for item in seen
    )


def answered(probe: Probe, seen: Iterable[Seen]) -> bool:
    """Tell whether the answer came out outside, from the address that the client asked."""
    return any(
        item.packet.kind == "answer"
        and (item.packet.src, item.packet.sport, item.packet.dst) == (probe.address, probe.port, probe.client)
        for item in seen
    )


def hooks_reached(events: Iterable[Event]) -> set[str]:
    """Return the hooks that a probe reached, by the chains of the tracer."""
    return {event.chain for event in events if (event.family, event.table) == ("inet", TRACE_TABLE)}


def obstacle(
    probe: Probe, events: Sequence[Event], seen: Sequence[Seen], book: Book, *, answer: bool
) -> Obstacle | None:
    """Return what stopped a probe or its answer, or None where only the kernel's routing can have done it."""
    theirs = [event for event in events if event.table != TRACE_TABLE]
    elsewhere = [item.packet for item in seen if item.packet.kind == ("answer" if answer else "first")]
    translated = None if answer else _translation(theirs, elsewhere, book)
    if translated:
        return translated
    if "input" in hooks_reached(events):
        return Obstacle("local", answer, detail="it reaches the host itself")
    last = next((event for event in reversed(theirs) if event.verdict in _FINAL), None)
    if last and last.verdict == "drop":
        return _at(last, theirs, book, "dropped", answer=answer)
    if last and last.verdict in ("queue", "stolen"):
        return _at(last, theirs, book, "unknown", answer=answer)
    return _misled(probe, elsewhere, answer=answer) if elsewhere else None


_FINAL = ("drop", "accept", "queue", "stolen")
_TRANSLATING = re.compile(
    r"\b(?:dnat|redirect|tproxy|notrack|DNAT|REDIRECT|TPROXY|CT --notrack|NOTRACK|NETMAP|synproxy)\b"
)


def _translation(events: Sequence[Event], packets: Sequence[Packet], book: Book) -> Obstacle | None:
    """Return the rule of somebody else that translated a probe, or that kept it from being translated."""
    found = (_at(event, events, book, "translated", answer=False) for event in events if event.step == "rule")
    theirs = (item for item in found if item.table != "virt-forward" and item.hook in ("prerouting", ""))
    rule = next((item for item in theirs if _TRANSLATING.search(item.rule)), None)
    return rule and rule._replace(detail=", ".join(f"{item.dst} port {item.dport}" for item in packets[:1]))


def _misled(probe: Probe, packets: Sequence[Packet], *, answer: bool) -> Obstacle:
    """Return why a packet came out elsewhere, or addressed to somebody else."""
    if answer:
        sources = ", ".join(f"{packet.src} port {packet.sport}" for packet in packets)
        return Obstacle("unknown", answer, detail=f"the answer comes from {sources}")
    if any((packet.dst, packet.dport) == (probe.endpoint.ip, probe.to) for packet in packets):
        return Obstacle("unrouted", detail=f"it does not leave by {probe.endpoint.bridge}")
    return Obstacle("misled", detail=str(packets[0].dst))


def _at(event: Event, events: Sequence[Event], book: Book, kind: Kind, *, answer: bool) -> Obstacle:
    base = _base(event, events, book)
    rule, handle = _rule(event, book)
    return Obstacle(
        kind,
        answer,
        event.family,
        event.table,
        event.chain,
        base.name,
        base.hook,
        rule,
        handle,
        base.priority,
    )


def _base(event: Event, events: Sequence[Event], book: Book) -> Chain:
    """Return the base chain in which the packet was: the last one of that table before the event."""
    table = book.clone.get((event.family, event.table))
    for other in reversed(events[: events.index(event) + 1]):
        chain = table.chains.get(other.chain) if table else None
        if chain and chain.hook and (other.family, other.table) == (event.family, event.table):
            return chain
    return Chain(event.chain)


def _rule(event: Event, book: Book) -> tuple[str, int]:
    """Return the text of an event's rule as the host's administrator knows it, and its handle there."""
    key = event.family, event.table
    table = book.clone.get(key)
    chain = table.chains.get(event.chain) if table else None
    position = next(
        (number for number, rule in enumerate(chain.rules if chain else ()) if rule.handle == event.handle),
        None,
    )
    if position is None or event.step != "rule" or chain is None:
        return "", 0
    saved = next((item for item in book.state.xtables if (item.family, item.name) == key), None)
    if saved and key in book.state.managed:
        lines = host_state.saved_rules(saved, event.chain)
        return (lines[position] if position < len(lines) else chain.rules[position].text), 0
    theirs = book.host[key].chains.get(event.chain, Chain("")).rules if key in book.host else ()
    handle = theirs[position].handle if len(theirs) == len(chain.rules) else 0
    return chain.rules[position].text, handle


def path(events: Sequence[Event], book: Book) -> list[str]:
    """Return the decisions about a probe in words, in their order: rules that end a chain, and policies."""
    found = []
    for event in events:
        if event.table == TRACE_TABLE or event.verdict not in ("accept", "drop"):
            continue
        rule, _ = _rule(event, book)
        why = f"by {rule}" if rule else "by its policy"
        found.append(f"{event.family} {event.table} {event.chain}: {event.verdict} {why}")
    return found


_SAVED = re.compile(r"^\[(\d+):\d+\] (-A (\S+) .*)$|^:(\S+) (\S+) \[(\d+):\d+\]$", re.MULTILINE)


def legacy_drop(family: str, before: str, after: str) -> Obstacle | None:
    """Return the rule or policy of legacy iptables that dropped the one packet between two ``-save -c``."""
    counted = _counts(before)
    for table, (line, count, chain, target) in _grown(after, counted):
        if count and target in ("DROP", "REJECT"):
            rule = line if line.startswith("-A ") else ""
            return Obstacle("dropped", False, f"legacy {family}", table, chain, chain, chain.lower(), rule)
    return None


def _counts(text: str) -> dict[tuple[str, int], int]:
    return {(table, number): count for table, number, (_, count, _, _) in _lines(text)}


def _grown(text: str, before: Mapping[tuple[str, int], int]) -> list[tuple[str, tuple[str, int, str, str]]]:
    return [
        (table, (line, count - before.get((table, number), 0), chain, target))
        for table, number, (line, count, chain, target) in _lines(text)
    ]


def _lines(text: str) -> list[tuple[str, int, tuple[str, int, str, str]]]:
    found = []
    for part in re.split(r"^\*", text, flags=re.MULTILINE)[1:]:
        table = part.split("\n", 1)[0].strip()
        for number, match in enumerate(_SAVED.finditer(part)):
            if match[2]:
                target = re.search(r" -[jg] (\S+)", match[2])
                found.append(
                    (table, number, (match[2], int(match[1]), match[3], target[1] if target else ""))
                )
            else:
                found.append((table, number, (f":{match[4]}", int(match[6]), match[4], match[5])))
    return found
