"""The declared forwards and their state, from domains, records and nft's listing."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from virt_forward import names, ports, text
from virt_forward.addresses import explain, resolve
from virt_forward.claims import absent
from virt_forward.model import Domain, Forward, Guest, Network, Span
from virt_forward.ruleset import guest as guest_block

State = Literal["active", "waiting", "conflict", "inactive", "missing"]
Counters = Mapping[tuple[str, str], tuple[int, int]]
"""(chain, comment) to (packets, bytes)."""

MAX_GAPS = 3
"""The most gaps in the ports of a forward that are listed."""


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


def reached_chains(items: Iterable[Mapping[str, Any]] | None) -> frozenset[str]:
    """Return the chains with rules that packets can come to, from nft's JSON listing of the table."""
    with_rules: set[str] = set()
    targets: set[str] = set()
    for item in items or ():
        if "rule" in item:
            with_rules.add(item["rule"]["chain"])
            targets.update(_targets(item["rule"].get("expr")))
        elif "map" in item:
            targets.update(_targets(item["map"].get("elem")))
    return frozenset(with_rules & targets) if "prerouting" in with_rules else frozenset()


def _targets(value: Any) -> Iterator[str]:
    """Yield where the verdicts in a part of a listing lead to (libnftables-json(5))."""
    if isinstance(value, list):
        for each in value:
            yield from _targets(each)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key in ("jump", "goto"):
                yield inner["target"]
            else:
                yield from _targets(inner)


class HostState(NamedTuple):
    """The state of the host that lines depend on.

    ``targets`` is what forwards can listen on, None if that is not known; ``reached`` are the chains of
    our table that packets come to.
    """

    counters: Counters
    networks: tuple[Network, ...] = ()
    targets: absent.Host | None = None
    reached: frozenset[str] = frozenset()


def lines(
    domain: Domain, active: bool, record: Guest | None, host: HostState, refusal: str = ""
) -> list[Line]:
    """Return the lines of one domain: its declared forwards, and open ones no longer declared.

    ``refusal`` is why sync refuses its metadata, if that is known.
    """
    declared = ports.expand(domain.declaration) if domain.declaration else ()
    if not active:
        hosts = tuple(str(host.ip) for host in domain.declaration.hosts) if domain.declaration else ()
        origins = ("declared",) * len(hosts)
        return [Line(domain.name, domain.uuid, forward, hosts, origins, "inactive") for forward in declared]
    guest = record or Guest(domain.uuid, domain.name)
    known = [*guest.forwards, *(forward for forward, _ in guest.conflicts)]
    declared_parts, parts = _Parts(declared), _Parts(known)
    found = [_line(domain, guest, forward, host) for forward in known]
    found = [
        _with_undeclared_reason(line, refusal) if _is_undeclared(line, declared_parts) else line
        for line in found
    ]
    found = _with_gaps(declared, parts, found, refusal)
    why = refusal or _missing_reason(domain, record, host.networks)
    rest = [forward for forward in declared if not parts.within(forward)]
    return found + [Line(domain.name, domain.uuid, forward, (), (), "missing", why) for forward in rest]


class _Parts:
    """Forwards grouped by everything but their ports, each group in the order of the ports."""

    def __init__(self, forwards: Iterable[Forward]) -> None:
        self._groups: dict[ports.Kind, list[Forward]] = {}
        for forward in sorted(forwards, key=_start):
            self._groups.setdefault(ports.kind(forward), []).append(forward)

    def within(self, forward: Forward) -> list[Forward]:
        """Return the pieces of ``forward``: one, or several around the excluded ports."""
        group = self._groups.get(ports.kind(forward), [])
        first = bisect_left(group, forward.start, key=_start)
        last = bisect_right(group, forward.end, key=_start)
        return [part for part in group[first:last] if part.end <= forward.end]

    def holds(self, port: int, forward: Forward) -> bool:
        """Tell whether a piece of ``forward`` contains ``port``."""
        group = self._groups.get(ports.kind(forward), [])
        last = bisect_right(group, port, key=_start)
        return last > 0 and port <= group[last - 1].end


def _start(forward: Forward) -> int:
    return forward.start


def _with_gaps(declared: Iterable[Forward], parts: _Parts, lines: list[Line], refusal: str) -> list[Line]:
    """Return the lines; the first active one of each declared forward has its gaps as the reason."""
    found = {line.forward: line for line in lines}
    for forward in declared:
        held = parts.within(forward)
        first = next(
            (part for part in held if found[part].state == "active" and not found[part].reason), None
        )
        left = ports.subtract(forward.span, ports.merge(part.span for part in held))
        if first and left:
            found[first] = found[first]._replace(reason=_gap_reason(left, refusal))
    return list(found.values())


def _gap_reason(spans: list[Span], refusal: str) -> str:
    listed = ", ".join(str(span) for span in spans[:MAX_GAPS])
    more = f" and {len(spans) - MAX_GAPS} more" if len(spans) > MAX_GAPS else ""
    why = "used by the host, or declared since the guest started; run virt-forward sync to check again"
    return f"without {listed}{more}: {refusal or why}"


def _missing_reason(domain: Domain, record: Guest | None, networks: tuple[Network, ...]) -> str:
    """Return why a declared forward of a running guest is not open."""
    if record:
        return "declared since the guest started; run virt-forward sync to open it"
    unserved = resolve.unserved(domain, networks)
    return "; ".join(unserved) or (
        "declared since the guest started, or the state was lost; run virt-forward sync to open it"
    )


def _line(domain: Domain, guest: Guest, forward: Forward, host: HostState) -> Line:
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
        return line._replace(state="waiting", reason=explain.reason(guest, forward, host.networks))
    suffix = names.suffix(guest.name, guest.uuid)
    chain, comment = (
        guest_block.count_chain(suffix),
        guest_block.counter_comment(guest.forwards.index(forward)),
    )
    counted = host.counters.get((chain, comment))
    if counted is None or guest_block.nat_chain(suffix) not in host.reached:
        return line._replace(state="missing", reason="not in the kernel; run virt-forward sync to restore it")
    why = absent.reason(forward, endpoints, host.targets) if host.targets else None
    return line._replace(reason=why, packets=counted[0], bytes=counted[1])


def _is_undeclared(line: Line, declared: _Parts) -> bool:
    return line.state == "active" and not declared.holds(line.forward.start, line.forward)


def _with_undeclared_reason(line: Line, refusal: str) -> Line:
    remains = f"open as before: {refusal}" if refusal else "run virt-forward sync to close it"
    return line._replace(reason=f"no longer declared; {remains}")


def as_json(line: Line) -> dict[str, Any]:
    """Return a line as the object that ``list --json`` prints (version 1)."""
    forward = line.forward
    return {
        "domain": line.domain,
        "uuid": line.uuid,
        **{name: None if value is None else str(value) for name, value in forward.listen._asdict().items()},
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
