"""What a forward needs and the host does not have now. The forward works as soon as the host has it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from ipaddress import ip_network

from virt_forward import text
from virt_forward.model import Address, Endpoint, Forward, Subnet
from virt_forward.namedtuple import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Any


class Host(NamedTuple):
    """What the host has: the addresses of its interfaces, the subnets whose every address is its own
    (127.0.0.0/8, and routes of type local), and its interfaces.
    """  # noqa: D205 - one sentence

    addresses: frozenset[Address] = frozenset()
    subnets: tuple[Subnet, ...] = ()
    devices: frozenset[str] = frozenset()


def address(forward: Forward, host: Host) -> str | None:
    """Return in words that the host does not have the address of a forward, or None where it does."""
    listen = forward.address
    if listen is None or listen in host.addresses or any(listen in subnet for subnet in host.subnets):
        return None
    return f"no interface of this host has {listen} now"


def device(forward: Forward, host: Host) -> str | None:
    """Return in words that the interface of a forward does not exist, or None where it does."""
    return (
        f"interface {forward.dev} does not exist now"
        if forward.dev and forward.dev not in host.devices
        else None
    )


def bridge(endpoints: Iterable[Endpoint], host: Host) -> str | None:
    """Return in words that the bridge of a guest's address does not exist, or None where all do."""
    lost = dict.fromkeys(one.bridge for one in endpoints if one.bridge not in host.devices)
    return "; ".join(f"the guest's bridge {text.word(name)} does not exist now" for name in lost) or None


def reason(forward: Forward, endpoints: Iterable[Endpoint], host: Host) -> str | None:
    """Return why no packet can pass a forward to these endpoints now, or None."""
    found = address(forward, host), device(forward, host), bridge(endpoints, host)
    return "; ".join(filter(None, found)) or None


def parse_local_routes(listing: str) -> tuple[Subnet, ...]:
    """Return the destinations in what ``ip -j route show table local type local`` printed (ip-route(8))."""
    try:
        routes: list[dict[str, Any]] = json.loads(listing or "[]", strict=False)
    except ValueError:  # without a table of that family, ip breaks off after the first bracket
        return ()
    return tuple(ip_network(route["dst"]) for route in routes if route.get("dst", "default") != "default")
