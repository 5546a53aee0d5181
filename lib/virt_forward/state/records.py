"""Guests and networks as the JSON text of their records, and back. A record is input like any other."""

from __future__ import annotations

import json
from collections.abc import Callable

from virt_forward.errors import StateError
from virt_forward.metadata import values
from virt_forward.model import (
    ORIGINS,
    Address,
    Endpoint,
    Forward,
    Guest,
    HostAddress,
    Network,
    Nic,
    Reservation,
    Subnet,
)
from virt_forward.namedtuple import TYPE_CHECKING
from virt_forward.text import output

if TYPE_CHECKING:
    from typing import Any, TypeVar

    T = TypeVar("T")

VERSION = 1


def dump_guest(guest: Guest) -> str:
    """Return a guest's record."""
    conflicts = [{"forward": _dump_forward(forward), "reason": reason} for forward, reason in guest.conflicts]
    fields = guest._asdict() | {
        "version": VERSION,
        "forwards": [_dump_forward(forward) for forward in guest.forwards],
        "conflicts": conflicts,
        "nics": [nic._asdict() for nic in guest.nics],
        "hosts": [{"ip": str(host.ip), "mac": host.mac} for host in guest.hosts],
        "endpoints": [endpoint._asdict() | {"ip": str(endpoint.ip)} for endpoint in guest.endpoints],
        "contested": [endpoint._asdict() | {"ip": str(endpoint.ip)} for endpoint in guest.contested],
        "gateways": [str(address) for address in guest.gateways],
        "lans": [{"subnet": str(subnet), "bridge": bridge} for subnet, bridge in guest.lans],
    }
    return json.dumps(fields)


def load_guest(text: str, where: str) -> Guest:
    """Return the guest of a record; raises StateError naming ``where`` for anything else."""
    return _load(text, where, _guest)


def dump_network(network: Network) -> str:
    """Return a network's record."""
    fields = network._asdict() | {
        "version": VERSION,
        "subnets": [str(subnet) for subnet in network.subnets],
        "reservations": [lease._asdict() | {"ip": str(lease.ip)} for lease in network.reservations],
    }
    return json.dumps(fields)


def load_network(text: str, where: str) -> Network:
    """Return the network of a record; raises StateError naming ``where`` for anything else."""
    return _load(text, where, _network)


def _load(text: str, where: str, build: Callable[[dict[str, Any]], T]) -> T:
    try:
        document = json.loads(text)
        if document["version"] != VERSION:
            raise ValueError(f"version {document['version']} is not {VERSION}")
        return build(document)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        reason = output(str(error))
        raise StateError(f"{where}: is no record of ours: {type(error).__name__} {reason}") from None


def _dump_forward(forward: Forward) -> dict[str, Any]:
    fields = forward._asdict()
    limits = {name: None if fields[name] is None else str(fields[name]) for name in values.LIMITS}
    return fields | limits


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no string")
    value.encode()  # half of a surrogate pair could be read, but never be written again
    return value


def _optional(value: object, convert: Callable[[str], T]) -> T | None:
    return None if value is None else convert(_string(value))


def _port(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 65535:
        raise ValueError(f"{value!r} is no port")
    return value


# A record reaches nft as metadata does, and passes the same gate.


def _dev(value: object) -> str:
    return values.dev(_string(value))


def _ip(value: object) -> Address:
    return values.address(_string(value))


def _subnet(value: object) -> Subnet:
    return values.source(_string(value))


def _forward(fields: dict[str, Any]) -> Forward:
    forward = Forward(
        values.proto(_string(fields["proto"])),
        _port(fields["start"]),
        _port(fields["end"]),
        _port(fields["to"]),
        **{name: _optional(fields[name], parse) for name, parse in values.LIMITS.items()},
        mac=_optional(fields["mac"], values.mac),
    )
    _port(forward.to + forward.end - forward.start)
    if forward.end < forward.start:
        raise ValueError(f"{forward.start}-{forward.end} is no range of ports")
    return forward


def _endpoint(fields: dict[str, Any]) -> Endpoint:
    # A record of before origins were kept, whose word was "seats", is trusted the least.
    origin = fields.get("origin", "neighbour")
    if origin not in ORIGINS:
        raise ValueError(f"origin {origin!r} is unknown")
    return Endpoint(_ip(fields["ip"]), _dev(fields["bridge"]), _string(fields["mac"]), origin)


def _guest(fields: dict[str, Any]) -> Guest:
    if fields["phase"] not in ("restoring", "prepared", "running"):
        raise ValueError(f"phase {fields['phase']!r} is unknown")
    return Guest(
        uuid=values.uuid(_string(fields["uuid"])),
        name=_string(fields["name"]),
        phase=fields["phase"],
        isolate=bool(fields["isolate"]),
        forwards=tuple(map(_forward, fields["forwards"])),
        conflicts=tuple((_forward(item["forward"]), _string(item["reason"])) for item in fields["conflicts"]),
        nics=tuple(Nic(*(_string(nic[key]) for key in Nic._fields)) for nic in fields["nics"]),
        hosts=tuple(HostAddress(_ip(h["ip"]), _optional(h["mac"], values.mac)) for h in fields["hosts"]),
        endpoints=tuple(map(_endpoint, fields["seats"] if "seats" in fields else fields["endpoints"])),
        lans=tuple((_subnet(lan["subnet"]), _dev(lan["bridge"])) for lan in fields["lans"]),
        gateways=tuple(map(_ip, fields["gateways"])),
        contested=tuple(map(_endpoint, fields.get("contested", ()))),
    )


def _network(fields: dict[str, Any]) -> Network:
    return Network(
        _string(fields["name"]),
        values.uuid(_string(fields["uuid"])),
        _string(fields["bridge"]),
        _string(fields["mode"]),
        tuple(map(_subnet, fields["subnets"])),
        tuple(
            Reservation(_ip(lease["ip"]), _optional(lease["mac"], str), _optional(lease["name"], str))
            for lease in fields["reservations"]
        ),
    )
