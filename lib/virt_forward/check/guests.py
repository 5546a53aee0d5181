"""The addresses of the running guests and where each was learned, as ``virt-forward check`` shows them."""

from collections.abc import Iterable
from typing import Any

from virt_forward import text
from virt_forward.model import Guest


def running(guests: Iterable[Guest], wanted: set[str] | None) -> list[Guest]:
    """Return the running guests by name: all, or those of the ``wanted`` names."""
    found = (guest for guest in guests if guest.phase == "running")
    return sorted(guest for guest in found if wanted is None or guest.name in wanted)


def line(guest: Guest) -> str:
    """Return ``web: 10.10.0.200 on virbr0 (reserved)``, all addresses of the guest in one line."""
    shown = (f"{endpoint.ip} on {endpoint.bridge} ({endpoint.origin})" for endpoint in guest.endpoints)
    return f"{text.word(guest.name)}: {', '.join(shown) or 'no address is known'}"


def as_json(guest: Guest) -> dict[str, Any]:
    """Return a guest as the object that ``check --json`` prints (version 1)."""
    addresses = [endpoint._asdict() | {"ip": str(endpoint.ip)} for endpoint in guest.endpoints]
    return {"domain": guest.name, "uuid": guest.uuid, "addresses": addresses}
