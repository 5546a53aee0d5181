"""Making the table match the running guests: libvirt is asked, then records and kernel follow."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator

from virt_forward.addresses import probe
from virt_forward.addresses.probe import Probe, Sightings
from virt_forward.errors import VirtForwardError
from virt_forward.host import collect, libvirt_networks, probe_socket
from virt_forward.host.collect import Answers
from virt_forward.libvirtd import api
from virt_forward.libvirtd.api import DomainState
from virt_forward.metadata.domain import MetadataError, parse_domain
from virt_forward.model import Guest, Network
from virt_forward.namedtuple import NamedTuple
from virt_forward.reconcile.apply import apply
from virt_forward.reconcile.plan import Plan
from virt_forward.reconcile.planning import context, make_plan
from virt_forward.reconcile.wants import Absent, Present, Replugged
from virt_forward.state.config_file import load_config
from virt_forward.state.store import Store


class Outcome(NamedTuple):
    """The guests that have forwards now, and what was wrong with those that could have none."""

    guests: tuple[Guest, ...]
    errors: tuple[VirtForwardError, ...]


Tell = Callable[[str], None]
"""Is called with what is done next."""


def sync(
    only: Collection[str] | None = None, *, probe_guests: bool = True, tell: Tell = lambda _: None
) -> Outcome:
    """Make records and table right from libvirt's running guests: of all, or ``only`` of some UUIDs.

    With ``probe_guests``, those whose address nothing tells are asked for it, which takes a moment.

    libvirt is asked before the lock is taken: a hook that waits for the lock keeps libvirt
    waiting. A guest whose record a hook has changed meanwhile is left as the hook has it. A
    running guest whose metadata cannot be understood keeps what it has.
    """
    config, store = load_config(), Store()
    if only is None:
        store.replace_newer()
    with store.open() as state:
        seen = state.versions()
    tell("reading the guests from libvirt")
    with api.connection(config.uri) as opened:
        domains = api.domains(opened, only)
        networks = api.networks(opened) if only is None else None
    errors: list[VirtForwardError] = []
    tell(f"reading the metadata of {len(domains)} guests")
    wants = {want.uuid: want for want in _wants([state for state in domains if state.active], errors)}
    if networks is not None:
        _remember_networks(networks, store)
    sightings: Sightings = collect.NO_SIGHTINGS
    answers: Answers = {}
    asked = False
    while True:
        with store.open() as state:
            now = state.versions()
            moved = {uuid for uuid in {*seen, *now} if seen.get(uuid) != now.get(uuid)}
            meant = set(now) if only is None else set(now).intersection(only)
            gone = [Absent(uuid) for uuid in sorted(meant - set(wants) - moved)]
            still = [want for uuid, want in wants.items() if uuid not in moved]
            work = context(store, state, config, sightings=sightings, answers=answers)
            tell(f"finding the addresses and ports of {len(wants)} guests")
            planned = make_plan(work, [*still, *gone])
            probes = _probes(planned, state.networks()) if probe_guests else []
            if asked or not (probes or work.host().must_ask):
                tell(f"loading the rules of {len(wants)} guests")
                apply(work, planned, rebuild=only is None)
                final = tuple(guest for guest in state.guests().values() if guest.phase == "running")
                break
        # Not with the lock held: it takes the guests a moment to answer.
        tell("asking guests for their addresses")
        answers, asked = work.host().ask(), True
        found = {(bridge, mac, ip.version) for (bridge, mac, ip), answered in answers.items() if answered}
        missing = [item for item in probes if (item.bridge, item.mac, item.own.version) not in found]
        sightings = probe_socket.probe_once(missing)
    for uuid, error in planned.errors.items():
        want = wants[uuid]
        errors.append(MetadataError(want.domain, error.messages) if isinstance(want, Present) else error)
    return Outcome(final, tuple(errors))


def _wants(states: Iterable[DomainState], errors: list[VirtForwardError]) -> Iterator[Present | Replugged]:
    """Yield what the running domains declare; add what is wrong with the others to ``errors``."""
    for state in states:
        try:
            domain = parse_domain(state.xml)
        except MetadataError as error:
            errors.append(error)
            yield Replugged(error.domain.uuid, error.domain.nics)
        except VirtForwardError as error:
            errors.append(error)
        else:
            if domain.declaration is not None:
                yield Present(domain, "running")


def _probes(planned: Plan, networks: list[Network]) -> list[Probe]:
    """Return the probes for guests whose address nothing tells."""
    running = [guest for guest in planned.after.values() if guest and guest.phase == "running"]
    return [item for guest in running for item in probe.probes(guest, networks)]


def _remember_networks(texts: Iterable[bytes], store: Store) -> None:
    """Make the records of networks what libvirt says is active: the hook may not have run for them."""
    found = (network for xml in texts for network in libvirt_networks.parsed(xml))
    active = {network.uuid: network for network in found}
    with store.open() as state:
        known = {network.uuid: network for network in state.networks()}
        changed = {u: active.get(u) for u in {*active, *known} if active.get(u) != known.get(u)}
        if changed:
            state.put_networks(changed)
