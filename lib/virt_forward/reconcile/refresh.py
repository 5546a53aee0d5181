"""Following addresses: the guests that run are located again from the present leases and neighbours."""

from virt_forward.addresses import resolve
from virt_forward.addresses.attachments import find_attachments
from virt_forward.addresses.endpoints import doubtful_endpoints
from virt_forward.addresses.probe import Sightings
from virt_forward.claims import index as claims
from virt_forward.config import Config
from virt_forward.effects import converge
from virt_forward.effects.item import Change
from virt_forward.host import collect, nft
from virt_forward.model import Endpoint, Guest
from virt_forward.reconcile.reconciler import Reconciler
from virt_forward.reconcile.view import HostView
from virt_forward.reconcile.wants import Readdressed
from virt_forward.state.config_file import load_config_or_last
from virt_forward.state.ledger import Ledger
from virt_forward.state.store import Store


def refresh(store: Store, heard: Sightings = collect.NO_SIGHTINGS) -> int:
    """Move the rules of running guests to where these are now; return how many guests have moved.

    Where a second address of a NIC has shown up, the kernel is made to find out whether the guest
    still has the first; what it finds comes as a neighbour event.
    """
    config = load_config_or_last(store)
    moved, doubted_endpoints = _look(store, config, heard)
    for endpoint in doubted_endpoints:
        collect.confirm_neighbour(endpoint)
    if not moved:
        return 0
    with store.lock():
        # Between the look and the lock a hook may have come; what counts is what stands now.
        moved, _ = _look(store, config, heard)
        host = HostView(config, store.networks, heard)
        Reconciler(store, config, host).reconcile([Readdressed(guest.uuid) for guest in moved])
    return len(moved)


def _look(store: Store, config: Config, heard: Sightings) -> tuple[list[Guest], list[Endpoint]]:
    """Return the running guests whose endpoints are not as recorded, located again, and doubted endpoints."""
    known = list(Ledger(store).merged().values())
    running = [guest for guest in known if guest.phase == "running"]
    if not running:
        return [], []
    names = {name for guest in running for name in guest.networks}
    facts = collect.host_facts(config, store.networks(), names, heard)
    now = claims.reconciled(resolve.locate(g, facts) if g.phase == "running" else g for g in known)
    moved = [guest for before, guest in zip(known, now, strict=True) if guest != before]
    return [guest for guest in moved if guest.phase == "running"], [
        endpoint
        for guest in running
        for endpoint in doubtful_endpoints(guest, find_attachments(guest.nics, facts), facts)
    ]


def verify(store: Store) -> None:
    """Look whether the kernel still has the table, and rebuild it where it has not."""
    config = load_config_or_last(store)
    with store.lock():
        reconciler = Reconciler(store, config)
        running = (guest for guest in reconciler.ledger.merged().values() if guest.phase == "running")
        guest = next(running, None)
        if guest:
            # Changing a running guest to what it is already runs a transaction that fits only our own table.
            reconciler.apply({guest.uuid: guest})
            if not nft.dispatches():
                Reconciler(store, config, rebuild=True).apply({})


def readmit(store: Store) -> None:
    """Look whether libvirt's chains still admit the guests: libvirt may have rebuilt them without a hook."""
    with store.lock():
        converge.follow(store, Change(load_config_or_last(store), Ledger(store).index()))
