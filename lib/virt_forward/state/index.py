"""The rows of claims/rows.py in the database: written with the record of their guest, and searched by index.

What one guest's event needs of others is found without reading theirs. A row reaches nft as metadata
does, and passes the same gate when it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from functools import lru_cache
from ipaddress import ip_address

from virt_forward import ports, text
from virt_forward.claims.rows import (
    LOOKUPS,
    MAX_NAME,
    STATES,
    EndpointRow,
    GatewayRow,
    Index,
    IsolatedRow,
    LookupRow,
    PortRow,
    Row,
    SubnetRow,
    rows,
)
from virt_forward.metadata import values
from virt_forward.model import MAX_PORT, ORIGINS, Guest, Listen, Span
from virt_forward.namedtuple import TYPE_CHECKING, NamedTuple
from virt_forward.state import database
from virt_forward.state.database import Connection

if TYPE_CHECKING:
    from typing import Any

    Ask = Callable[..., list[Any]]
    """Runs a statement with its parameters, and returns the rows that it selects."""

TABLES = ("claim", "endpoint", "part")


class Side(NamedTuple):
    """A bridge with an open forward to an address of one IP version."""

    version: int
    bridge: str


class Part(NamedTuple):
    """Something in the table that is there as long as any guest needs it: a row of the table ``part``."""

    kind: str
    place: str
    value: str


def near(ask: Ask, touching: Index, without: Collection[str]) -> Index:
    """Return the rows of guests but those in ``without`` that may matter to ``touching``; see Snapshot.near.

    Raises ValueError or TypeError where a row is damaged.
    """
    found: set[Row] = set()
    for row in _near_claims(ask, [row for row in touching if isinstance(row, PortRow)]):
        found.add(row)
    for at in {(str(row.ip), row.bridge) for row in touching if isinstance(row, EndpointRow)}:
        found.update(map(_endpoint_row, ask(_ENDPOINTS, *at)))
    others: list[Row] = [row for row in found if row.uuid not in without]
    owners = _owners(ask, [*_near_parts(ask, touching)], without)
    others += [_part_row((uuid, name), part) for part, uuid, name in owners]
    return tuple(sorted(others, key=_order))


def _near_parts(ask: Ask, touching: Index) -> Iterator[Part]:
    """Yield what is in the table because of any guest: subnets, gateways, isolated addresses, lookups."""
    parts = {part for row in touching if (part := _part(row))}
    for bridge in {part.place for part in parts if part.kind == "subnet"}:
        yield from (Part("subnet", bridge, value) for (value,) in ask(_VALUES, "subnet", bridge))
    yield from (part for part in parts if part.kind in ("gateway", "isolated"))
    yield from (Part("lookup", "", value) for value in sorted(LOOKUPS))


def _near_claims(ask: Ask, touching: list[PortRow]) -> Iterator[PortRow]:
    spans: dict[str, list[Span]] = {}
    for row in touching:
        spans.setdefault(row.listen.proto, []).append(row.span)
    for proto, found in spans.items():
        for first, last in ports.merge(found):
            yield from map(_port_row, ask(_CLAIMS, proto, last, first, first))
    for proto, address in {(row.listen.proto, row.listen.address) for row in touching if _is_wide(row)}:
        yield from map(_port_row, ask(_WIDE_CLAIMS, proto, _text(address)))


def is_any_in_table(ask: Ask) -> bool:
    """Tell whether any guest has a part in the table."""
    return bool(_owners(ask, [Part("lookup", "", "ports")], ()))


def _owners(ask: Ask, parts: list[Part], without: Collection[str]) -> list[tuple[Part, str, str]]:
    """Return each part that a guest but those in ``without`` has, with UUID and name of one such guest."""
    listed, left_out = ", ".join(["(?, ?, ?)"] * len(parts)), ", ".join("?" * len(without))
    statement = f"""
WITH asked (kind, place, value) AS (VALUES {listed}), found AS (
  SELECT *, (SELECT uuid FROM part
    WHERE part.kind = asked.kind AND part.place = asked.place AND part.value = asked.value
    AND uuid NOT IN ({left_out}) LIMIT 1) AS uuid FROM asked)
SELECT kind, place, value, uuid, name FROM found CROSS JOIN guest USING (uuid)"""
    rows_ = ask(statement, *(field for part in parts for field in part), *sorted(without))
    return [(Part(*part), values.uuid(uuid), plain_name(name)) for *part, uuid, name in rows_]


def sides(ask: Ask) -> frozenset[Side]:
    """Return the bridges with open forwards, by the IP version of the guests' addresses."""
    return frozenset(Side(version, values.dev(bridge)) for version, bridge in ask(_SIDES))


def bridges(ask: Ask) -> frozenset[str]:
    """Return the bridges on which running guests have forwards."""
    return frozenset(values.dev(bridge) for (bridge,) in ask(_PLACES_OF, "subnet"))


_CLASSES = " UNION ALL ".join(f"SELECT {size} AS width" for size in database.SIZES)
_COLUMNS = "uuid, name, state, proto, address, dev, source, first, last"
_CLAIMS = f"""
SELECT {_COLUMNS} FROM ({_CLASSES})
CROSS JOIN claim ON proto = ? AND size = width AND first <= ? AND first > ? - width AND last >= ?
CROSS JOIN guest USING (uuid)"""
_WIDE_CLAIMS = f"""
SELECT {_COLUMNS} FROM claim INDEXED BY claim_wide CROSS JOIN guest USING (uuid)
WHERE proto = ? AND address = ? AND size > {database.SIZES[0]} AND (dev <> '' OR source <> '')"""
_ENDPOINTS = """
SELECT uuid, name, ip, bridge, origin, holds FROM endpoint CROSS JOIN guest USING (uuid)
WHERE ip = ? AND bridge = ?"""

# Each value once, from one entry of the index to the next that differs: guests share bridges and subnets.
_VALUES = """
WITH RECURSIVE found (value) AS (
  SELECT min(value) FROM part WHERE kind = ?1 AND place = ?2
  UNION ALL
  SELECT (SELECT min(value) FROM part WHERE kind = ?1 AND place = ?2 AND value > found.value)
  FROM found WHERE value IS NOT NULL)
SELECT value FROM found WHERE value IS NOT NULL"""
_PLACES_OF = """
WITH RECURSIVE found (place) AS (
  SELECT min(place) FROM part WHERE kind = ?1
  UNION ALL
  SELECT (SELECT min(place) FROM part WHERE kind = ?1 AND place > found.place)
  FROM found WHERE place IS NOT NULL)
SELECT place FROM found WHERE place IS NOT NULL"""
_SIDES = """
WITH RECURSIVE found (bridge) AS (
  SELECT min(bridge) FROM endpoint WHERE open
  UNION ALL
  SELECT (SELECT min(bridge) FROM endpoint WHERE open AND bridge > found.bridge)
  FROM found WHERE bridge IS NOT NULL)
SELECT version, bridge FROM found CROSS JOIN (SELECT 4 AS version UNION ALL SELECT 6) AS versions
WHERE EXISTS (SELECT 1 FROM endpoint
  WHERE open AND endpoint.bridge = found.bridge AND endpoint.version = versions.version)"""


def insert(connection: Connection, guest: Guest) -> None:
    """Write the rows of a guest, of which there are none."""
    found = rows(guest)
    claims = [row for row in found if isinstance(row, PortRow)]
    is_open = any(row.state == "open" for row in claims)
    for table, values_ in (
        ("claim", (_claim(number, row) for number, row in enumerate(claims))),
        ("endpoint", (_endpoint(row, is_open) for row in found if isinstance(row, EndpointRow))),
        ("part", ((row.uuid, *part) for row in found if (part := _part(row)))),
    ):
        connection.executemany(database.insertion(table), values_)


def _claim(number: int, row: PortRow) -> tuple[object, ...]:
    length = row.span.end - row.span.start + 1
    size = next(size for size in database.SIZES if length <= size)
    return (row.uuid, number, row.state, *map(_text, row.listen), size, *row.span)


def _endpoint(row: EndpointRow, is_open: bool) -> tuple[object, ...]:
    ip, bridge, origin, holds = row[2:]
    return row.uuid, str(ip), bridge, origin, holds, ip.version, is_open and holds


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _is_wide(row: PortRow) -> bool:
    return row.listen.restricted and row.span.end > row.span.start


def _order(row: Row) -> tuple[str, str, str]:
    return row.uuid, type(row).__name__, str(row[2:])


def _part(row: Row) -> Part | None:
    """Return the part of the table that a row is about; None for a claim or an endpoint."""
    if isinstance(row, SubnetRow):
        return Part("subnet", row.bridge, str(row.subnet))
    if isinstance(row, GatewayRow):
        return Part("gateway", "", str(row.ip))
    if isinstance(row, LookupRow):
        return Part("lookup", "", row.lookup)
    return Part("isolated", "", row.mac) if isinstance(row, IsolatedRow) else None


def _part_row(owner: tuple[str, str], part: Part) -> Row:
    if part.kind == "subnet":
        return SubnetRow(*owner, values.source(part.value), values.dev(part.place))
    if part.kind == "gateway":
        return GatewayRow(*owner, values.address(part.value))
    return LookupRow(*owner, part.value) if part.kind == "lookup" else IsolatedRow(*owner, part.value)


def _port_row(found: tuple[Any, ...]) -> PortRow:
    uuid, name, state, *listen, first, last = found
    if state not in STATES or not 1 <= first <= last <= MAX_PORT:
        raise ValueError(f"{state} {first}-{last}")
    return PortRow(values.uuid(uuid), plain_name(name), state, _listen(*listen), Span(first, last))


@lru_cache(maxsize=10_000)
def _listen(proto: str, *limits: str) -> Listen:
    parsed = zip(limits, values.LIMITS.values(), strict=True)
    return Listen(values.proto(proto), *(parse(limit) if limit else None for limit, parse in parsed))


def _endpoint_row(found: tuple[Any, ...]) -> EndpointRow:
    uuid, name, ip, bridge, origin, holds = found
    if origin not in ORIGINS:
        raise ValueError(origin)
    return EndpointRow(
        values.uuid(uuid), plain_name(name), ip_address(ip), values.dev(bridge), origin, bool(holds)
    )


def plain_name(name: str) -> str:
    """Return as much of a guest's name as rows have."""
    return text.plain(str(name), MAX_NAME)
