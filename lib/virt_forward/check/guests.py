"""The running guests with their addresses and origins, as ``virt-forward check`` shows them."""

from collections.abc import Iterable
from typing import Any

from virt_forward.model import Guest


def running(guests: Iterable[Guest], wanted: set[str] | None) -> list[Guest]:
    """Return the running guests sorted by name: all, or those with a name in ``wanted``."""
    found = (guest for guest in guests if guest.phase == "running")
    return sorted(guest for guest in found if wanted is None or guest.name in wanted)


def as_json(guest: Guest) -> dict[str, Any]:
    """Return a guest as the object that ``check --json`` prints (version 1)."""
    addresses = [endpoint._asdict() | {"ip": str(endpoint.ip)} for endpoint in guest.endpoints]
    return {"domain": guest.name, "uuid": guest.uuid, "addresses": addresses}
