"""Parsers for DHCP leases and the neighbour table.

Each function takes the text of a source, which may be damaged or incomplete, and returns leases,
the newest first. Invalid entries are ignored, and nothing is raised.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from virt_forward.metadata import values
from virt_forward.model import Address, Reservation
from virt_forward.namedtuple import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Any

UNUSABLE = {"FAILED", "INCOMPLETE", "NONE"}
"""States in which an entry has no valid MAC address (ip-neighbour(8))."""

ETHERNET = 1


def networkd(text: str, now: float) -> tuple[Reservation, ...]:
    """Return the leases of systemd-networkd's DHCP server.

    ``text`` is /var/lib/systemd/network/dhcp-server-lease/BRIDGE, which systemd 257 and
    later write (sd-dhcp-server-lease.c); ``now`` is in seconds since the epoch.
    """
    document = _json(text)
    items = document.get("Leases") if isinstance(document, dict) else None
    return _newest(_networkd_lease(item, now) for item in _dicts(items))


def _networkd_lease(item: dict[str, Any], now: float) -> tuple[float, Reservation] | None:
    expires = _number(item.get("ExpirationRealtimeUSec")) / 1_000_000
    kind = (item.get("HardwareAddressType"), item.get("HardwareAddressLength"))
    if (expires and expires < now) or kind != (ETHERNET, 6):
        return None
    # The address is padded to the 16 bytes of chaddr (RFC 2131).
    mac = _octets(item.get("HardwareAddress"))[:6]
    ip = _octets(item.get("Address"))
    return _lease(expires, ".".join(map(str, ip)), ":".join(f"{octet:02x}" for octet in mac))


def dnsmasq(text: str, now: float) -> tuple[Reservation, ...]:
    """Return the leases of libvirt's dnsmasq.

    ``text`` is /var/lib/libvirt/dnsmasq/BRIDGE.status, which libvirt's lease helper writes
    (src/network/leaseshelper.c); ``now`` is in seconds since the epoch.
    """
    return _newest(_dnsmasq_lease(item, now) for item in _dicts(_json(text)))


def _dnsmasq_lease(item: dict[str, Any], now: float) -> tuple[float, Reservation] | None:
    expires = _number(item.get("expiry-time"))
    if expires and expires < now:
        return None
    return _lease(expires, str(item.get("ip-address", "")), str(item.get("mac-address", "")))


class Neighbours(NamedTuple):
    """The neighbour table of a bridge, by state.

    ``confirmed`` are reachable entries, ``others`` stale ones and the like. ``failed`` are addresses
    that did not answer the kernel; ``permanent`` entries were added by the administrator.
    """

    confirmed: tuple[Reservation, ...] = ()
    others: tuple[Reservation, ...] = ()
    failed: tuple[Address, ...] = ()
    permanent: tuple[Reservation, ...] = ()


def neighbours(text: str) -> Neighbours:
    """Return the neighbour table from the output of ``ip -j neighbour show dev BRIDGE`` (ip-neighbour(8))."""
    confirmed: list[Reservation] = []
    others: list[Reservation] = []
    permanent: list[Reservation] = []
    failed: list[Address] = []
    for item in _dicts(_json(text)):
        state = item.get("state")
        words = {str(word) for word in state} if isinstance(state, list) else set()
        if "FAILED" in words:
            failed += _address(str(item.get("dst", "")))
        lease = _lease(0, str(item.get("dst", "")), str(item.get("lladdr", "")))
        if lease and words and not words & UNUSABLE:
            known = confirmed if "REACHABLE" in words else permanent if "PERMANENT" in words else others
            known.append(lease[1])
    return Neighbours(tuple(confirmed), tuple(others), tuple(failed), tuple(permanent))


def _address(text: str) -> list[Address]:
    try:
        return [values.address(text)]
    except ValueError:
        return []


def _lease(expires: float, ip: str, mac: str) -> tuple[float, Reservation] | None:
    try:
        return expires, Reservation(_usable(values.address(ip)), values.mac(mac))
    except ValueError:
        return None


def _usable(ip: Address) -> Address:
    if ip.is_link_local:
        raise ValueError("link-local")
    return ip


def _newest(found: Iterator[tuple[float, Reservation] | None]) -> tuple[Reservation, ...]:
    leases = [item for item in found if item]
    # A lease that does not expire counts as the newest.
    leases.sort(key=lambda item: item[0] or float("inf"), reverse=True)
    return tuple(lease for _, lease in leases)


def _json(text: str) -> object:
    try:
        return json.loads(text or "null")
    except (ValueError, RecursionError):
        return None


def _dicts(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _number(value: object) -> float:
    # Any valid time is smaller; a much larger number could not be converted to float.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e18:
        return 0.0
    return float(value)


def _octets(value: object) -> list[int]:
    octets = value if isinstance(value, list) else []
    return [octet for octet in octets if isinstance(octet, int) and 0 <= octet <= 255]
