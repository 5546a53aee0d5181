"""What the network hook tells: networks that come, change and go, and the guests on them."""

from virt_forward import claims, hostfacts
from virt_forward.addresses.resolve import reseat
from virt_forward.engine import Engine
from virt_forward.events import Action
from virt_forward.metadata.network import NetworkPort, parse_network
from virt_forward.model import Guest, Network
from virt_forward.settings import load_config_or_last
from virt_forward.store import Store


def handle(action: Action, data: bytes, store: Store) -> None:
    """Remember or forget a network, and make the guests on it right."""
    network, port = parse_network(data)
    with store.lock():
        if action is not Action.PORT_GONE:
            store.put_network(network.uuid, network if action is Action.NETWORK_SEEN else None)
        guests = [guest for guest in store.guests()[0] if network.name in guest.networks]
        if guests:
            _reseat(guests, network, port, action, store)


def _reseat(
    guests: list[Guest], network: Network, port: NetworkPort | None, action: Action, store: Store
) -> None:
    known = store.networks()
    facts = hostfacts.facts(known, [] if action is Action.NETWORK_GONE else [network.name])
    engine = Engine(store, load_config_or_last(store), facts.own)
    changes: dict[str, Guest | None] = {}
    for guest in guests:
        plugged = _unplug(guest, port) if action is Action.PORT_GONE else guest
        others = claims.without(engine.index(), [guest.uuid])
        settled = claims.settle(others, reseat(plugged, facts))
        if settled != guest:
            changes[guest.uuid] = settled
    if changes:
        engine.change(changes)


def _unplug(guest: Guest, port: NetworkPort | None) -> Guest:
    """Return a guest less the NIC of a port that was deleted."""
    if port is None or guest.uuid != port.uuid:
        return guest
    return guest._replace(nics=tuple(nic for nic in guest.nics if nic.mac != port.mac))
