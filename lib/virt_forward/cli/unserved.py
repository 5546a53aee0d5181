"""The forwards of a guest that are not open, in words: what is kept out, and what waits for an address."""

from collections.abc import Iterable, Iterator

from virt_forward import text
from virt_forward.addresses import explain
from virt_forward.claims import vetoes
from virt_forward.model import Guest, Network
from virt_forward.portspec import host_part


def kept_out(guest: Guest) -> Iterator[str]:
    """Yield a line for each forward in conflict: why it is kept out, and the remedy."""
    for forward, reason in guest.conflicts:
        yield (
            f"{text.word(guest.name)}: {host_part(forward)} is kept out: {reason}; {vetoes.remedy(reason)}"
        )


def waiting(guest: Guest, networks: Iterable[Network]) -> Iterator[str]:
    """Yield a line for each forward that has no address of the guest: what it waits for."""
    for forward in guest.forwards:
        if not guest.endpoints_for(forward):
            why = explain.reason(guest, forward, networks)
            yield f"{text.word(guest.name)}: {host_part(forward)} waits: {why}"
