"""What a want makes of a guest by the facts of the host: where it is, and which forwards the host rules out.

Pure. Functions that are given HostFacts raise UnreadError where one that they need was not read.
"""

from virt_forward.addresses import resolve
from virt_forward.addresses.attachments import HostFacts, find_attachments
from virt_forward.addresses.portchecks import PortChecks
from virt_forward.config import Config
from virt_forward.errors import VirtForwardError
from virt_forward.model import Forward, Guest, Nic
from virt_forward.reconcile.plan import Located
from virt_forward.reconcile.wants import Lasting, Present, Replugged, Restoring


def nics(want: Lasting, before: Guest | None) -> tuple[Nic, ...] | None:
    """Return the NICs that the host's facts are needed for; None where nothing of the host is."""
    if isinstance(want, Present):
        return want.domain.nics
    if isinstance(want, Restoring) or before is None or before.phase == "restoring":
        return None
    return want.nics if isinstance(want, Replugged) else before.nics


def without_host(want: Lasting, before: Guest | None) -> Located:
    """Return the guest of a want that needs nothing of the host."""
    return Located(
        before, Guest(want.uuid, want.name, "restoring") if isinstance(want, Restoring) else before
    )


def locate(want: Lasting, before: Guest | None, facts: HostFacts, config: Config) -> Located:
    """Return the guest that a want asks for; ``before`` is what is known of it."""
    if isinstance(want, Present):
        try:
            guest = _present(want, before, facts, config)
        except VirtForwardError as error:
            if want.phase != "running" or not before:
                return Located(before, error=error)
            kept = resolve.locate(before._replace(nics=want.domain.nics), facts)
            return Located(before, kept, _vetoed(kept, before, facts, config), error)
    elif before is None:
        return Located(None)
    else:
        moved = before._replace(nics=want.nics) if isinstance(want, Replugged) else before
        guest = resolve.locate(moved, facts)
    return Located(before, guest, _vetoed(guest, before, facts, config))


def _present(want: Present, before: Guest | None, facts: HostFacts, config: Config) -> Guest:
    """Return the guest of a domain; raises VirtForwardError, with every reason, where it cannot be served."""
    domain = want.domain
    hosts = domain.declaration.hosts if domain.declaration else ()
    known = before if want.phase == "running" else None
    held = known.forwards if known else ()
    checks = PortChecks(config, find_attachments(domain.nics, facts), facts, hosts=hosts, held=held)
    # A libvirtd that restarts is no reason to forget an address that only the guest's traffic told.
    return resolve.resolve(
        domain, facts, config, want.phase, checks.excluded, known=known.endpoints if known else ()
    )


def _vetoed(guest: Guest, before: Guest | None, facts: HostFacts, config: Config) -> dict[Forward, str]:
    """Return what the host has against forwards of a guest, but for the ports that it has already."""
    # A guest that is to start is vetoed in full: what an earlier start was given is no longer its own.
    held = before.forwards if before and guest.phase == "running" else ()
    had = frozenset(held)
    wanted = [forward for forward in (*guest.forwards, *dict(guest.conflicts)) if forward not in had]
    if not wanted:
        return {}
    checks = PortChecks(config, find_attachments(guest.nics, facts), facts, hosts=guest.hosts, held=held)
    found = ((forward, checks.veto(forward)) for forward in wanted)
    return {forward: reason for forward, reason in found if reason}
