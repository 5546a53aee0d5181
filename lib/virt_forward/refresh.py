"""Following addresses: the guests that run are seated anew as leases and neighbours have it now."""

from virt_forward import claims, hostfacts, nft
from virt_forward.addresses import resolve
from virt_forward.addresses.asking import Heard
from virt_forward.engine import Engine
from virt_forward.model import Guest
from virt_forward.settings import load_config_or_last
from virt_forward.store import Store


def refresh(store: Store, heard: Heard = hostfacts.NOTHING_HEARD) -> int:
    """Move the rules of running guests to where these are now; return how many guests have moved."""
    if not _differing(store, heard):
        return 0
    config = load_config_or_last(store)
    with store.lock():
        # Between the look and the lock a hook may have come; what counts is what stands now.
        moved = _differing(store, heard)
        engine = Engine(store, config, hostfacts.own_addresses())
        for guest in moved:
            others = claims.without(engine.index(), [guest.uuid])
            engine.change({guest.uuid: engine.settled(others, guest) or guest})
    return len(moved)


def _differing(store: Store, heard: Heard) -> list[Guest]:
    """Return the running guests whose seats are other than their records have them, seated anew."""
    running = [guest for guest in store.guests()[0] if guest.phase == "running"]
    if not running:
        return []
    facts = hostfacts.facts(store.networks(), {name for guest in running for name in guest.networks}, heard)
    pairs = [(guest, resolve.reseat(guest, facts)) for guest in running]
    return [now for before, now in pairs if now != before]


def verify(store: Store) -> None:
    """Look whether the kernel still has the table, and make it anew where it has not."""
    with store.lock():
        running = next((guest for guest in store.guests()[0] if guest.phase == "running"), None)
        if running:
            # Changing a running guest to what it is already runs a transaction that fits only our own table.
            engine = Engine(store, load_config_or_last(store))
            engine.change({running.uuid: running})
            if not nft.dispatches():
                engine.change({}, afresh=True)
