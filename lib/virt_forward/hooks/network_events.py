"""What the network hook tells: networks that come, change and go, and the guests on them."""

from virt_forward.effects import converge
from virt_forward.effects.item import Change
from virt_forward.hooks.events import Action
from virt_forward.metadata import values
from virt_forward.metadata.network import NetworkPort, parse_network
from virt_forward.model import Guest, Network, Nic
from virt_forward.reconcile.reconciler import Reconciler
from virt_forward.reconcile.view import HostView
from virt_forward.reconcile.wants import Replugged
from virt_forward.state.config_file import load_config_or_last
from virt_forward.state.ledger import Ledger
from virt_forward.state.store import Store


def handle(action: Action, data: bytes, store: Store) -> None:
    """Remember or forget a network, and make the guests on it right."""
    network, port = parse_network(data)
    with store.lock():
        if action is Action.NETWORK_SEEN and not port and not _is_active(network, store):
            return
        if action is not Action.PORT_GONE:
            _remember(network, action, store)
        guests = _concerned(network, port, store)
        if guests:
            _follow(guests, network, port, action, store)


def _is_active(network: Network, store: Store) -> bool:
    """Tell whether a network is more than defined: "updated" also comes for one that does not run."""
    if not values.is_dev(network.bridge) or any(known.uuid == network.uuid for known in store.networks()):
        return True
    import socket

    try:
        return bool(socket.if_nametoindex(network.bridge))
    except OSError:
        return False


def _remember(network: Network, action: Action, store: Store) -> None:
    for known in store.networks():
        if known.name == network.name and known.uuid != network.uuid:
            # A transient network has another UUID each time; that its end was missed must not matter.
            store.put_network(known.uuid, None)
    store.put_network(network.uuid, network if action is Action.NETWORK_SEEN else None)


def _concerned(network: Network, port: NetworkPort | None, store: Store) -> list[Guest]:
    """Return the owner of a port if it is a guest of ours; without a port, all guests on the network."""
    ledger = Ledger(store)
    if port:
        owner = ledger.known(port.uuid)
        return [owner] if owner else []
    return [guest for guest in ledger.merged().values() if network.name in guest.networks]


def _follow(
    guests: list[Guest], network: Network, port: NetworkPort | None, action: Action, store: Store
) -> None:
    config = load_config_or_last(store)
    gone = action is Action.NETWORK_GONE
    host = HostView(
        config,
        store.networks,
        current=None if gone else network,
        without={network.name} if gone else (),
    )
    reconciler = Reconciler(store, config, host)
    wants = [Replugged(guest.uuid, _plugged(guest, network, port, action)) for guest in guests]
    planned = reconciler.plan(wants).guests
    changed = {guest.uuid: planned[guest.uuid] for guest in guests if planned[guest.uuid] != guest}
    if changed:
        reconciler.apply(changed)
    else:
        # libvirt has rebuilt its chain all the same.
        converge.follow(store, Change(config, reconciler.ledger.index()))


def _plugged(guest: Guest, network: Network, port: NetworkPort | None, action: Action) -> tuple[Nic, ...]:
    """Return a guest's NICs with that of a port that was created, less that of one that was deleted.

    A NIC that moves between networks has its new port before the old one goes.
    """
    if port is None or guest.uuid != port.uuid:
        return guest.nics
    nic = Nic(port.mac, "network", network.name)
    if action is Action.PORT_GONE:
        # Of a network in bridge mode, a running guest's XML tells the bridge instead.
        gone = (nic, Nic(port.mac, "bridge", port.bridge))
        return tuple(known for known in guest.nics if known not in gone)
    if nic in guest.nics:
        return guest.nics
    if port.mac not in {known.mac for known in guest.nics}:
        return (*guest.nics, nic)
    return tuple(nic if known.mac == port.mac else known for known in guest.nics)
