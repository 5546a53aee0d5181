"""What is declared and what is true, a row a forward, from domains, records and nft's listing."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

from virt_forward import names, ports, portspec, text
from virt_forward.addresses import attachments, explain, resolve
from virt_forward.claims import absent
from virt_forward.model import Domain, Forward, Guest, Network
from virt_forward.ruleset import guest as guest_block

State = Literal["active", "waiting", "conflict", "inactive", "missing"]
Counters = Mapping[tuple[str, str], tuple[int, int]]
"""(chain, comment) to (packets, bytes)."""

SHOWN = 3
"""Of the gaps in the ports of a forward, so many are named."""


class Line(NamedTuple):
    """One forward of one domain: what ``virt-forward list`` shows."""

    domain: str
    uuid: str
    forward: Forward
    guest: tuple[str, ...]
    origins: tuple[str, ...]
    state: State
    reason: str | None = None
    packets: int = 0
    bytes: int = 0


def counters(items: Iterable[Mapping[str, Any]] | None) -> Counters:
    """Return the counters of all commented rules in nft's JSON listing of the table."""
    found: dict[tuple[str, str], tuple[int, int]] = {}
    for rule in (item["rule"] for item in items or () if "rule" in item):
        for counter in (word["counter"] for word in rule.get("expr", ()) if "counter" in word):
            key = (rule["chain"], rule.get("comment", ""))
            packets, size = found.get(key, (0, 0))
            found[key] = (packets + counter["packets"], size + counter["bytes"])
    return found


class Seen(NamedTuple):
    """What lines are judged by; ``host`` is what forwards can listen on, None where that is not known."""

    kernel: Counters
    networks: tuple[Network, ...] = ()
    host: absent.Host | None = None


def lines(domain: Domain, active: bool, record: Guest | None, seen: Seen) -> list[Line]:
    """Return the lines of one domain: every declared forward, and every other one that is still there."""
    declared = ports.expand(domain.declaration) if domain.declaration else ()
    if not active:
        hosts = tuple(str(host.ip) for host in domain.declaration.hosts) if domain.declaration else ()
        origins = ("declared",) * len(hosts)
        return [Line(domain.name, domain.uuid, forward, hosts, origins, "inactive") for forward in declared]
    guest = record or Guest(domain.uuid, domain.name)
    known = [*guest.forwards, *(forward for forward, _ in guest.conflicts)]
    found = [_line(domain, guest, forward, seen) for forward in known]
    stated, parts = _Parts(declared), _Parts(known)
    found = _less(declared, parts, [_undeclared(line) if _gone(line, stated) else line for line in found])
    why = _unopened(domain, record, seen.networks)
    rest = [forward for forward in declared if not parts.within(forward)]
    return found + [Line(domain.name, domain.uuid, forward, (), (), "missing", why) for forward in rest]


class _Parts:
    """Forwards by everything but their ports, in the order of those."""

    def __init__(self, forwards: Iterable[Forward]) -> None:
        self._groups: dict[Forward, list[Forward]] = {}
        for forward in sorted(forwards, key=_start):
            self._groups.setdefault(_bare(forward), []).append(forward)

    def within(self, forward: Forward) -> list[Forward]:
        """Return those that are ``forward``, whole or less the ports the host keeps."""
        group = self._groups.get(_bare(forward), [])
        first = bisect_left(group, forward.start, key=_start)
        last = bisect_right(group, forward.end, key=_start)
        return [part for part in group[first:last] if part.end <= forward.end]

    def holds(self, port: int, forward: Forward) -> bool:
        """Tell whether one that is like ``forward`` has a port."""
        group = self._groups.get(_bare(forward), [])
        last = bisect_right(group, port, key=_start)
        return last > 0 and port <= group[last - 1].end


def _start(forward: Forward) -> int:
    return forward.start


def _bare(forward: Forward) -> Forward:
    return forward._replace(start=0, end=0, to=forward.to - forward.start)


def _less(declared: Iterable[Forward], parts: _Parts, lines: list[Line]) -> list[Line]:
    """Return the lines; the first open one of each declared forward tells which of its ports are not open."""
    found = {line.forward: line for line in lines}
    for forward in declared:
        held = parts.within(forward)
        first = next(
            (part for part in held if found[part].state == "active" and not found[part].reason), None
        )
        left = ports.subtract((forward.start, forward.end), ports.merge((p.start, p.end) for p in held))
        if first and left:
            found[first] = found[first]._replace(reason=_without(left))
    return list(found.values())


def _without(spans: list[ports.Span]) -> str:
    listed = ", ".join(portspec.span(*span) for span in spans[:SHOWN])
    more = f" and {len(spans) - SHOWN} more" if len(spans) > SHOWN else ""
    return f"without {listed}{more}: used by the host, or declared since; virt-forward sync looks again"


def _unopened(domain: Domain, record: Guest | None, networks: tuple[Network, ...]) -> str:
    """Return why declared forwards of a running guest are not open."""
    unserved = [] if record else resolve.unserved(domain, attachments.HostFacts(networks))
    return "; ".join(unserved) or "declared since the guest started; virt-forward sync opens it"


def _line(domain: Domain, guest: Guest, forward: Forward, seen: Seen) -> Line:
    endpoints = guest.endpoints_for(forward)
    addresses, origins = (
        tuple(str(endpoint.ip) for endpoint in endpoints),
        tuple(endpoint.origin for endpoint in endpoints),
    )
    line = Line(domain.name, domain.uuid, forward, addresses, origins, "active")
    conflicts = dict(guest.conflicts)
    if forward in conflicts:
        return line._replace(state="conflict", reason=conflicts[forward])
    if not endpoints:
        return line._replace(state="waiting", reason=explain.reason(guest, forward, seen.networks))
    chain = guest_block.count_chain(names.suffix(guest.name, guest.uuid))
    counted = seen.kernel.get((chain, guest_block.counter_comment(guest.forwards.index(forward))))
    if counted is None:
        return line._replace(state="missing", reason="not in the kernel; virt-forward sync restores it")
    why = absent.reason(forward, seen.host) if seen.host else None
    return line._replace(reason=why, packets=counted[0], bytes=counted[1])


def _gone(line: Line, declared: _Parts) -> bool:
    return line.state == "active" and not declared.holds(line.forward.start, line.forward)


def _undeclared(line: Line) -> Line:
    return line._replace(reason="no longer declared; virt-forward sync closes it")


def as_json(line: Line) -> dict[str, Any]:
    """Return a line as the object that ``list --json`` prints (version 1)."""
    forward = line.forward
    return {
        "domain": line.domain,
        "uuid": line.uuid,
        "proto": forward.proto,
        "address": str(forward.address) if forward.address else None,
        "dev": forward.dev,
        "source": str(forward.source) if forward.source else None,
        "start": forward.start,
        "end": forward.end,
        "to": forward.to,
        "guest": list(line.guest),
        "origins": list(line.origins),
        "state": line.state,
        "reason": text.line(line.reason) if line.reason else None,
        "packets": line.packets,
        "bytes": line.bytes,
    }
