"""Running guests whose live metadata is not in force: what ``virt-forward sync`` would change, or refuse."""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from virt_forward.addresses import resolve
from virt_forward.check import live_metadata
from virt_forward.check.live_metadata import Difference
from virt_forward.config import Config
from virt_forward.errors import VirtForwardError
from virt_forward.libvirtd import api
from virt_forward.libvirtd.api import DomainState
from virt_forward.metadata.domain import MetadataError, parse_domain
from virt_forward.model import Domain, Guest
from virt_forward.reconcile.planning import context, make_plan
from virt_forward.reconcile.wants import Present
from virt_forward.state.store import Store

PAUSES = (0.5, 0.5)
"""How long to wait, in seconds, before another look: a change that libvirt has may be about to be applied."""


class Pending(NamedTuple):
    """What is not in force of running guests, and what is wrong where sync cannot make it so."""

    differences: tuple[Difference, ...] = ()
    refused: tuple[MetadataError, ...] = ()


def find(states: Sequence[DomainState], records: Mapping[str, Guest], config: Config) -> Pending:
    """Return what is not in force; ``records`` are those of all guests. Raises VirtForwardError.

    What the service or a command is just applying is waited for.
    """
    domains = [
        domain
        for domain in (*_running(states), *_stopped(states, records))
        if not live_metadata.in_force(domain, records.get(domain.uuid))
    ]
    found = _planned(domains, config) if domains else Pending()
    for pause in PAUSES:
        about = {*(item.uuid for item in found.differences), *(error.domain.uuid for error in found.refused)}
        if not about:
            break
        time.sleep(pause)
        with api.connection(config.uri) as opened:
            states = api.domains(opened, about)
        again = {uuid: record for uuid, record in records.items() if uuid in about}
        found = _planned([*_running(states), *_stopped(states, again)], config)
    return found


def refusal(domain: Domain, config: Config) -> str:
    """Return why sync refuses the metadata of a running guest, empty if it does not."""
    return "; ".join(message for error in _planned([domain], config).refused for message in error.reasons)


def _stopped(states: Iterable[DomainState], records: Mapping[str, Guest]) -> list[Domain]:
    """Return the domains of guests that have a record and do not run: they declare nothing now."""
    active = {state.uuid for state in states if state.active}
    return [Domain(record.name, uuid) for uuid, record in records.items() if uuid not in active]


def _running(states: Iterable[DomainState]) -> list[Domain]:
    """Return the running domains whose XML is right; what is wrong is told by others."""
    found = []
    for state in states:
        if state.active:
            try:
                found.append(parse_domain(state.xml))
            except VirtForwardError:
                continue
    return found


def _planned(domains: Iterable[Domain], config: Config) -> Pending:
    """Return what a plan for some running domains, as sync makes it, would change and refuse."""
    store = Store()
    with store.open(create=False) as state:
        records = {domain.uuid: state.guest(domain.uuid) for domain in domains}
        networks = tuple(state.networks())
        meant = [domain for domain in domains if not live_metadata.in_force(domain, records[domain.uuid])]
        wants = [Present(domain, "running") for domain in meant if domain.declaration]
        # With the lock held, no guest is asked for its address, which does not matter here.
        planned = make_plan(context(store, state, config, answers={}), wants)
    differences, refused = [], []
    for domain in meant:
        record, error = records[domain.uuid], planned.errors.get(domain.uuid)
        if record is None and resolve.unserved(domain, networks):
            continue  # findings.table_missing tells it
        if error:
            refused.append(MetadataError(domain, error.messages))
        elif record:
            after = planned.after.get(domain.uuid) if domain.declaration else None
            found = live_metadata.difference(domain, record, after or Guest(domain.uuid, domain.name))
            differences += [found] if found else []
    return Pending(tuple(differences), tuple(refused))
