"""Making the table match the running guests: libvirt is asked, then records and kernel follow."""

from collections.abc import Mapping
from typing import NamedTuple

from virt_forward import claims, hostfacts, libvirt_api
from virt_forward.addresses import resolve
from virt_forward.config import Config
from virt_forward.engine import Engine, judged
from virt_forward.errors import VirtForwardError
from virt_forward.libvirt_api import DomainState
from virt_forward.metadata.domain import parse_domain
from virt_forward.model import Domain, Guest
from virt_forward.settings import load_config
from virt_forward.store import Store


class Outcome(NamedTuple):
    """The guests that have forwards now, and what was wrong with those that could have none."""

    guests: tuple[Guest, ...]
    errors: tuple[VirtForwardError, ...]


class Running(NamedTuple):
    """A running guest as its XML has it, and how the host's side judges its forwards."""

    guest: Guest
    judge: claims.Judge


def sync() -> Outcome:
    """Make records and table anew from libvirt's running guests.

    libvirt is asked before the lock is taken: a hook that waits for the lock keeps libvirt
    waiting. A guest whose record a hook has changed meanwhile is left as the hook has it.
    """
    config, store = load_config(), Store()
    seen = _records(store)
    with libvirt_api.connection(config.uri) as opened:
        domains = libvirt_api.domains(opened)
    errors: list[VirtForwardError] = []
    running = _running(domains, store, config, errors)
    with store.lock():
        now = _records(store)
        moved = {uuid for uuid in {*seen, *now} if seen.get(uuid) != now.get(uuid)}
        settled = _settle(running, now, moved)
        gone = {uuid: None for uuid in now if uuid not in settled and uuid not in moved}
        own = frozenset(a.ip for addresses in hostfacts.read_interfaces().values() for a in addresses)
        Engine(store, config, own).change({**settled, **gone}, afresh=True)
        final = tuple(guest for guest in _records(store).values() if guest.phase == "running")
    return Outcome(final, tuple(errors))


def _records(store: Store) -> dict[str, Guest]:
    return {guest.uuid: guest for guest in store.guests()[0]}


def _running(
    domains: list[DomainState], store: Store, config: Config, errors: list[VirtForwardError]
) -> dict[str, Running]:
    found: dict[str, Running] = {}
    for state in domains:
        if state.active:
            try:
                domain = parse_domain(state.xml)
                if domain.declaration is not None:
                    found[domain.uuid] = _resolve(domain, store, config)
            except VirtForwardError as error:
                errors.append(error)
    return found


def _resolve(domain: Domain, store: Store, config: Config) -> Running:
    facts = hostfacts.facts(store.networks(), [nic.source for nic in domain.nics if nic.type == "network"])
    judge, spared = hostfacts.port_judge(config, resolve.places(domain.nics, facts))
    return Running(resolve.resolve(domain, facts, config, "running", spared), judge)


def _settle(
    running: Mapping[str, Running], now: Mapping[str, Guest], moved: set[str]
) -> dict[str, Guest | None]:
    """Return the guests to write; who has a claim already keeps it before anybody new."""
    index = tuple(row for uuid, guest in now.items() if uuid in moved for row in claims.rows(guest))
    settled: dict[str, Guest | None] = {}
    for uuid in sorted(running, key=lambda uuid: (uuid not in now, uuid)):
        if uuid not in moved:
            guest = judged(index, running[uuid].guest, now.get(uuid), running[uuid].judge)
            index += claims.rows(guest)
            settled[uuid] = guest
    return settled
