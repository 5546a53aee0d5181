"""Whether a running guest has what its live metadata declares (pure)."""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from virt_forward import ports
from virt_forward.model import Domain, Forward, Guest, Span


class Difference(NamedTuple):
    """What is not in force of a guest's live metadata.

    ``closed`` is declared and not open, though nothing is against it; ``kept_out`` is declared, and something
    is against it that the record does not have yet. ``undeclared`` is open and not declared. ``settings`` are
    the names of what else differs.
    """

    name: str
    uuid: str
    closed: tuple[Forward, ...] = ()
    undeclared: tuple[Forward, ...] = ()
    kept_out: tuple[tuple[Forward, str], ...] = ()
    settings: tuple[str, ...] = ()


def in_force(domain: Domain, record: Guest | None) -> bool:
    """Tell whether the record of a running guest is what its domain declares, without a look at the host.

    A guest that is only being started or restored is left to its hooks.
    """
    if record is None:
        return not (domain.declaration and domain.declaration.port_forwards)
    if record.phase != "running":
        return True
    return {*_declared(domain)} == {*_known(record)} and not [*_settings(domain, record)]


def difference(domain: Domain, record: Guest, planned: Guest) -> Difference | None:
    """Return how a record differs from its domain's metadata; ``planned`` is what sync would make of it."""
    known, declared = _spans(_known(record)), _spans(_declared(domain))
    closed = [part for forward in planned.forwards for part in _closed(forward, known)]
    undeclared = [part for forward in record.forwards for part in _without(forward, declared)]
    kept_out = [item for item in planned.conflicts if _without(item[0], known)]
    found = Difference(
        domain.name,
        domain.uuid,
        tuple(closed),
        tuple(undeclared),
        tuple(kept_out),
        tuple(_settings(domain, record)) if domain.declaration else (),
    )
    return found if any(found[2:]) else None


def _declared(domain: Domain) -> tuple[Forward, ...]:
    return ports.expand(domain.declaration) if domain.declaration else ()


def _known(record: Guest) -> Iterator[Forward]:
    yield from record.forwards
    yield from (forward for forward, _ in record.conflicts)


def _settings(domain: Domain, record: Guest) -> Iterator[str]:
    hosts, isolate = (
        (domain.declaration.hosts, domain.declaration.isolate) if domain.declaration else ((), False)
    )
    if hosts != record.hosts:
        yield "<host>"
    if isolate != record.isolate:
        yield "isolate"


def _spans(forwards: Iterable[Forward]) -> Mapping[ports.Kind, list[Span]]:
    groups: dict[ports.Kind, list[Span]] = {}
    for forward in forwards:
        groups.setdefault(ports.kind(forward), []).append(forward.span)
    return {key: ports.merge(spans) for key, spans in groups.items()}


def _without(forward: Forward, spans: Mapping[ports.Kind, list[Span]]) -> list[Forward]:
    """Return the parts of a forward that ``spans`` do not have."""
    left = ports.subtract(forward.span, spans.get(ports.kind(forward), []))
    return [Forward.of(forward.listen, span, forward.offset, forward.mac) for span in left]


def _closed(forward: Forward, known: Mapping[ports.Kind, list[Span]]) -> list[Forward]:
    """Return the parts of a forward that are not open.

    A single port with open ones on both sides was used by the host when these were opened; list shows that.
    """
    return [
        part
        for part in _without(forward, known)
        if not (forward.start < part.start == part.end < forward.end)
    ]
