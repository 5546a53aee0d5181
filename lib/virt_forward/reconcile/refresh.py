"""Following addresses: the guests that run are located again from the present leases and neighbours."""

from functools import partial

from virt_forward.addresses import resolve
from virt_forward.addresses.attachments import HostFacts, find_attachments
from virt_forward.addresses.endpoints import doubtful_endpoints
from virt_forward.addresses.probe import Sightings
from virt_forward.claims import index as claims
from virt_forward.effects import converge
from virt_forward.effects.item import Change
from virt_forward.host import collect, nft
from virt_forward.host.collect import Reader
from virt_forward.model import Endpoint, Guest
from virt_forward.reconcile.apply import reconcile
from virt_forward.reconcile.planning import context
from virt_forward.reconcile.wants import Readdressed
from virt_forward.state.config_file import load_config_or_last
from virt_forward.state.store import Store


def refresh(store: Store, sightings: Sightings = collect.NO_SIGHTINGS) -> int:
    """Move the rules of running guests to where these are now; return how many guests have moved.

    Where a second address of a NIC has shown up, the kernel is made to find out whether the guest
    still has the first; what it finds comes as a neighbour event.
    """
    with store.open() as state:
        config, guests, networks = load_config_or_last(state), state.guests(), state.networks()
    # Not with the lock held: NICs may be probed, and take their time to answer.
    reader = Reader(config, lambda: networks, sightings)
    moved, doubted_endpoints = _look(guests, reader)
    if reader.must_ask:
        reader.ask()
        moved, doubted_endpoints = _look(guests, reader)
    for endpoint in doubted_endpoints:
        collect.confirm_neighbour(endpoint)
    if not moved:
        return 0
    with store.open() as state:
        # Between the look and the lock a hook may have come; what counts is what stands now.
        work = context(store, state, config, sightings=sightings, answers=reader.ask())
        moved, _ = _look(state.guests(), work.host())
        reconcile(work, [Readdressed(guest.uuid) for guest in moved])
    return len(moved)


def _look(guests: dict[str, Guest], reader: Reader) -> tuple[list[Guest], list[Endpoint]]:
    """Return the running guests whose endpoints are not as recorded, located again, and doubted endpoints."""
    known = list(guests.values())
    running = [guest for guest in known if guest.phase == "running"]
    if not running:
        return [], []
    found = {guest.uuid: reader.complete(partial(_located, guest), guest.nics) for guest in running}
    here = (found[guest.uuid][0] if guest.uuid in found else guest for guest in known)
    now = claims.without_weaker_endpoints(here)
    moved = [guest for before, guest in zip(known, now, strict=True) if guest != before]
    doubted = [endpoint for _, endpoints in found.values() for endpoint in endpoints]
    return [guest for guest in moved if guest.phase == "running"], doubted


def _located(guest: Guest, facts: HostFacts) -> tuple[Guest, list[Endpoint]]:
    """Return a guest where it is now, and those of its endpoints that are in doubt."""
    attachments = find_attachments(guest.nics, facts)
    return resolve.locate(guest, facts), [*doubtful_endpoints(guest, attachments, facts)]


def verify(store: Store) -> None:
    """Look whether the kernel still has the table, and rebuild it where it has not."""
    with store.open() as state:
        work = context(store, state, load_config_or_last(state))
        # What was queued or interrupted is done either way.
        reconcile(work, ())
        if state.has_table() and not (nft.revision() == state.revision and nft.dispatches()):
            reconcile(work, (), rebuild=True)


def readmit(store: Store) -> None:
    """Look whether libvirt's chains still admit the guests: libvirt may have rebuilt them without a hook."""
    with store.open() as state:
        converge.follow(state, Change.of(state, load_config_or_last(state)))
