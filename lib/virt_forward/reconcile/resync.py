"""Making the table match the running guests: libvirt is asked, then records and kernel follow."""

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

from virt_forward.addresses import attachments, probe, resolve
from virt_forward.claims import index as claims
from virt_forward.config import Config
from virt_forward.errors import VirtForwardError
from virt_forward.host import collect, hostports, probe_socket
from virt_forward.libvirtd import api
from virt_forward.libvirtd.api import DomainState
from virt_forward.metadata.domain import MetadataError, parse_domain
from virt_forward.metadata.network import parse_network
from virt_forward.model import Domain, Guest, Network
from virt_forward.reconcile.engine import Engine, resolve_conflicts
from virt_forward.state.config_file import load_config
from virt_forward.state.ledger import Ledger
from virt_forward.state.store import Store


class Outcome(NamedTuple):
    """The guests that have forwards now, and what was wrong with those that could have none."""

    guests: tuple[Guest, ...]
    errors: tuple[VirtForwardError, ...]


class Running(NamedTuple):
    """A running guest as its XML has it, and how the host's side judges its forwards."""

    guest: Guest
    veto: claims.Veto


def sync(only: Collection[str] | None = None, *, ask_guests: bool = True) -> Outcome:
    """Make records and table right from libvirt's running guests: of all, or ``only`` of some UUIDs.

    With ``ask_guests``, those whose address nothing tells are asked for it, which takes a moment.

    libvirt is asked before the lock is taken: a hook that waits for the lock keeps libvirt
    waiting. A guest whose record a hook has changed meanwhile is left as the hook has it. A
    running guest whose metadata cannot be understood keeps what it has.
    """
    config, store = load_config(), Store()
    seen = _records(store)
    with api.connection(config.uri) as opened:
        domains = api.domains(opened, only)
        networks = api.networks(opened) if only is None else None
    if networks is not None:
        _remember_networks(networks, store)
    errors: list[VirtForwardError] = []
    running = _running([state for state in domains if state.active], seen, store, config, errors)
    if ask_guests:
        running = _asked(running, store, config)
    broken = {error.domain.uuid for error in errors if isinstance(error, MetadataError)} - set(running)
    with store.lock():
        now = _records(store)
        moved = {uuid for uuid in {*seen, *now} if seen.get(uuid) != now.get(uuid)} | broken
        meant = set(now) if only is None else set(now).intersection(only)
        gone: dict[str, Guest | None] = {u: None for u in meant if u not in running and u not in moved}
        settled = _settle(running, {uuid: now[uuid] for uuid in now if uuid not in gone}, moved)
        Engine(store, config, collect.own_addresses()).change({**settled, **gone}, afresh=only is None)
        final = tuple(guest for guest in _records(store).values() if guest.phase == "running")
    return Outcome(final, tuple(errors))


def _records(store: Store) -> dict[str, Guest]:
    return Ledger(store).merged()


def _remember_networks(texts: Iterable[bytes], store: Store) -> None:
    """Make the records of networks what libvirt says is active: the hook may not have run for them."""
    active = {network.uuid: network for network in _networks(texts)}
    with store.lock():
        known = {network.uuid: network for network in store.networks()}
        for uuid in {*active, *known}:
            if active.get(uuid) != known.get(uuid):
                store.put_network(uuid, active.get(uuid))


def _networks(texts: Iterable[bytes]) -> Iterator[Network]:
    for text in texts:
        with contextlib.suppress(VirtForwardError):
            yield parse_network(text)[0]


def _running(
    states: list[DomainState],
    known: Mapping[str, Guest],
    store: Store,
    config: Config,
    errors: list[VirtForwardError],
) -> dict[str, Running]:
    domains = [domain for domain in (_parsed(state, errors) for state in states) if domain]
    names = {nic.source for domain in domains for nic in domain.nics if nic.type == "network"}
    facts = collect.host_facts(config, store.networks(), names)
    listening = hostports.socket_facts()
    found: dict[str, Running] = {}
    for domain in domains:
        before = known.get(domain.uuid)
        veto, spared = hostports.port_checks(
            config,
            attachments.find_attachments(domain.nics, facts),
            listening,
            hosts=domain.declaration.hosts if domain.declaration else (),
            held=before.forwards if before else (),
        )
        try:
            guest = resolve.resolve(domain, facts, config, "running", spared)
            guest = resolve.locate_known(guest, before, facts)
            found[domain.uuid] = Running(guest, veto)
        except VirtForwardError as error:
            errors.append(MetadataError(domain, error.messages))
    broken = (error.domain for error in errors if isinstance(error, MetadataError))
    return found | {domain.uuid: kept for domain in broken if (kept := _kept(domain, known, facts))}


def _kept(domain: Domain, known: Mapping[str, Guest], facts: attachments.HostFacts) -> Running | None:
    """Return a guest that cannot be understood as it was, but for NICs that came or went meanwhile."""
    before = known.get(domain.uuid)
    if before is None or before.phase != "running" or before.nics == domain.nics:
        return None
    return Running(resolve.locate(before._replace(nics=domain.nics), facts), dict(before.conflicts).get)


def _asked(running: dict[str, Running], store: Store, config: Config) -> dict[str, Running]:
    """Return the running guests, those without an address located where they say they are."""
    networks = store.networks()
    questions = [item for one in running.values() for item in probe.probes(one.guest, networks)]
    if not questions:
        return running
    heard = probe_socket.probe_once(questions)
    facts = collect.host_facts(
        config, networks, {name for one in running.values() for name in one.guest.networks}, heard
    )
    return {uuid: one._replace(guest=resolve.locate(one.guest, facts)) for uuid, one in running.items()}


def _parsed(state: DomainState, errors: list[VirtForwardError]) -> Domain | None:
    try:
        domain = parse_domain(state.xml)
    except VirtForwardError as error:
        errors.append(error)
        return None
    return domain if domain.declaration is not None else None


def _settle(
    running: Mapping[str, Running], now: Mapping[str, Guest], moved: set[str]
) -> dict[str, Guest | None]:
    """Return the guests to write. What a running guest has already is not given to another one."""
    others = [guest for uuid, guest in now.items() if uuid in moved or uuid not in running]
    order = sorted((uuid for uuid in running if uuid not in moved), key=lambda uuid: _turn(uuid, now))
    wanted = claims.reconciled((*others, *(running[uuid].guest for uuid in order)))[len(others) :]
    held = claims.Held(row for guest in others for row in claims.rows(guest))
    for guest in wanted:
        held.add(claims.rows(claims.incumbent(guest, now.get(guest.uuid))))
    settled: dict[str, Guest | None] = {}
    for guest in wanted:
        upheld = resolve_conflicts(held.near(guest), guest, now.get(guest.uuid), running[guest.uuid].veto)
        held.add(claims.rows(upheld))
        settled[guest.uuid] = upheld
    return settled


def _turn(uuid: str, now: Mapping[str, Guest]) -> tuple[bool, bool, str]:
    """Return a sort key: who has all that it wants comes first, then who was kept out, then who is new."""
    return uuid not in now, uuid in now and bool(now[uuid].conflicts), uuid
