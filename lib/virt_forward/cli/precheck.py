"""What speaks against forwards that are to be declared: all that would refuse the guest's start, and more."""

from collections.abc import Collection, Iterable, Iterator
from difflib import get_close_matches
from typing import Any

from virt_forward import ports, text
from virt_forward.claims import index as claims
from virt_forward.claims import vetoes
from virt_forward.config import Config
from virt_forward.errors import VirtForwardError
from virt_forward.host import interfaces
from virt_forward.libvirtd import metadata
from virt_forward.libvirtd.metadata import Target
from virt_forward.metadata.domain import foreign_macs, parse_domain
from virt_forward.metadata.edit import Document
from virt_forward.metadata.forwards import NAMESPACE
from virt_forward.model import Domain, Forward, Guest
from virt_forward.reconcile.planning import Context, context, make_plan
from virt_forward.reconcile.wants import Present
from virt_forward.state.store import Store


def check(
    added: Collection[Forward], documents: Iterable[Document], opened: Any, target: Target, config: Config
) -> None:
    """Raise VirtForwardError if forwards of a domain cannot be served as they are to be declared.

    ``documents`` are the definitions of the domain with the forwards in them.
    """
    _check_devices(added)
    declared = claims.conflicts(_declared_claims(opened, target.uuid), added)
    # A guest that does not run has taken nothing yet. Its name comes last.
    _refuse(reason.replace(" is taken by ", " is declared by ", 1) for reason in declared.values())
    store = Store()
    with store.open(create=False) as state:
        # The state and the host are the same for each definition.
        work = context(store, state, config)
        for document in documents:
            _check_start(added, document.domain(), target, work)


def _check_start(added: Collection[Forward], domain: Domain, target: Target, work: Context) -> None:
    """Raise VirtForwardError for what would refuse the start of a domain for one of the forwards."""
    wrong = foreign_macs(domain) if any(forward.mac for forward in added) else None
    if wrong:
        shown = f"virsh domiflist {text.word(target.name)} shows its NICs"
        raise VirtForwardError(wrong.messages, shown)
    planned = make_plan(work, [Present(domain, "running" if target.active else "prepared")])
    for error in planned.errors.values():
        raise error
    guest = planned.after[domain.uuid]
    conflicts = dict(guest.conflicts) if guest else {}
    _refuse(conflicts[forward] for forward in ports.colliding(conflicts, added))


def _refuse(reasons: Iterable[str]) -> None:
    found = [*dict.fromkeys(reasons)]
    if found:
        raise VirtForwardError(found, "; ".join([*dict.fromkeys(map(vetoes.remedy, found))][:3]))


def _declared_claims(opened: Any, besides: str) -> Iterator[claims.Row]:
    """Yield the claims of all other domains, whether they run or not; one that is wrong claims nothing."""
    for xml in metadata.declarations(opened, besides):
        if NAMESPACE.encode() not in xml:
            continue
        try:
            domain = parse_domain(xml)
        except VirtForwardError:
            continue
        if domain.declaration:
            forwards = ports.expand(domain.declaration)
            yield from claims.rows(Guest(domain.uuid, domain.name, "prepared", forwards=forwards))


def _check_devices(added: Iterable[Forward]) -> None:
    devices = interfaces.device_names()
    for dev in dict.fromkeys(forward.dev for forward in added):
        if dev and dev not in devices:
            near = get_close_matches(dev, devices, 1)
            hint = f"did you mean {text.word(near[0])}?" if near else "ip link shows the interfaces"
            raise VirtForwardError(f"this host has no interface {dev}", hint)
