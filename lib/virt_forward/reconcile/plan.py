"""What a want makes of a guest, and which of its forwards it may have. No kernel and no files in here.

The host is seen through a HostView, which reads what is asked of it when it is asked.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from virt_forward.claims import index as claims
from virt_forward.model import Guest
from virt_forward.reconcile.wants import Lasting, Present, Replugged, Restoring

if TYPE_CHECKING:
    from virt_forward.reconcile.view import HostView


def wanted(want: Lasting, before: Guest | None, host: "HostView") -> Guest | None:
    """Return the guest that a want asks for, before other guests' claims are looked at.

    ``before`` is what is known of it. Raises VirtForwardError, with every reason, where the
    declaration cannot be served as it is.
    """
    if isinstance(want, Present):
        return _present(want, before, host)
    if isinstance(want, Restoring):
        return Guest(want.uuid, want.name, "restoring")
    if before is None or before.phase == "restoring":
        return before
    return located(before._replace(nics=want.nics) if isinstance(want, Replugged) else before, host)


def _present(want: Present, before: Guest | None, host: "HostView") -> Guest:
    from virt_forward.addresses import resolve

    domain = want.domain
    runs = want.phase == "running"
    hosts = domain.declaration.hosts if domain.declaration else ()
    held = before.forwards if before and runs else ()
    _, excluded = host.port_checks(domain.nics, hosts, held)
    facts = host.facts(domain.nics)
    guest = resolve.resolve(domain, facts, host.config, want.phase, excluded)
    # A libvirtd that restarts is no reason to forget an address that only the guest's traffic told.
    return resolve.locate_known(guest, before, facts) if runs else guest


def located(guest: Guest, host: "HostView") -> Guest:
    """Return a guest with its endpoints as the host has them now."""
    from virt_forward.addresses import resolve

    return resolve.locate(guest, host.facts(guest.nics))


def resolve_conflicts(
    others: Iterable[claims.Row], guest: Guest, before: Guest | None, veto: claims.Veto
) -> Guest:
    """Return ``guest`` with its forwards sorted into those that it may have and those kept out.

    ``others`` are the claims of other guests. What it has already the host does not veto any more.
    """
    had = frozenset(before.forwards) if before else frozenset()
    return claims.settle(others, guest, lambda forward: None if forward in had else veto(forward))


def resolve_all(
    wanted: Mapping[str, Guest],
    before: Mapping[str, Guest],
    others: claims.Index,
    vetoes: Mapping[str, claims.Veto],
) -> dict[str, Guest]:
    """Return guests with their conflicts resolved, among them and with the claims of ``others``.

    ``before`` is what is known of them. What a running guest has is not given to another one,
    and of two that have learned one address the stronger origin has it.
    """
    if len(wanted) == 1:
        ((uuid, guest),) = wanted.items()
        return {uuid: resolve_conflicts(others, guest, before.get(uuid), vetoes[uuid])}
    order = sorted(wanted, key=lambda uuid: _turn(uuid, before))
    guests = claims.reconciled(wanted[uuid] for uuid in order)
    held = claims.Held(others)
    for guest in guests:
        held.add(claims.rows(claims.incumbent(guest, before.get(guest.uuid))))
    resolved: dict[str, Guest] = {}
    for guest in guests:
        uuid = guest.uuid
        resolved[uuid] = resolve_conflicts(held.near(guest), guest, before.get(uuid), vetoes[uuid])
        held.add(claims.rows(resolved[uuid]))
    return resolved


def _turn(uuid: str, before: Mapping[str, Guest]) -> tuple[bool, bool, str]:
    """Return a sort key: who has all that it wants comes first, then who was kept out, then who is new."""
    return uuid not in before, uuid in before and bool(before[uuid].conflicts), uuid
