"""What the network hook tells: networks that come, change and go, and the guests on them."""

from virt_forward.addresses.attachments import find_attachments
from virt_forward.addresses.resolve import locate
from virt_forward.claims import index as claims
from virt_forward.effects import libvirt_accept
from virt_forward.hooks.events import Action
from virt_forward.host import collect, hostports
from virt_forward.metadata import values
from virt_forward.metadata.network import NetworkPort, parse_network
from virt_forward.model import Guest, Network, Nic
from virt_forward.reconcile.engine import Engine, resolve_conflicts
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
        guests = [guest for guest in Ledger(store).merged().values() if _concerns(guest, network, port)]
        if guests:
            _locate(guests, network, port, action, store)


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


def _concerns(guest: Guest, network: Network, port: NetworkPort | None) -> bool:
    return network.name in guest.networks or (port is not None and guest.uuid == port.uuid)


def _locate(
    guests: list[Guest], network: Network, port: NetworkPort | None, action: Action, store: Store
) -> None:
    names = {name for guest in guests for name in guest.networks} | {network.name}
    config = load_config_or_last(store)
    facts = collect.host_facts(
        config, store.networks(), names - ({network.name} if action is Action.NETWORK_GONE else set())
    )
    engine = Engine(store, config, facts.own_addresses)
    changes: dict[str, Guest | None] = {}
    listening = hostports.socket_facts()
    for guest in guests:
        plugged = locate(_plugged(guest, network, port, action), facts)
        veto, _ = hostports.port_checks(
            engine.config, find_attachments(plugged.nics, facts), listening, hosts=plugged.hosts
        )
        settled = resolve_conflicts(claims.without(engine.index(), [guest.uuid]), plugged, guest, veto)
        if settled != guest:
            changes[guest.uuid] = settled
    if changes:
        engine.change(changes)
    else:
        # libvirt has made its chain anew all the same.
        libvirt_accept.follow(store, engine.config, engine.index())


def _plugged(guest: Guest, network: Network, port: NetworkPort | None, action: Action) -> Guest:
    """Return a guest with the NIC of a port that was created, less that of one that was deleted.

    A NIC that moves between networks has its new port before the old one goes.
    """
    if port is None or guest.uuid != port.uuid:
        return guest
    nic = Nic(port.mac, "network", network.name)
    if action is Action.PORT_GONE:
        # Of a network in bridge mode, a running guest's XML tells the bridge instead.
        gone = (nic, Nic(port.mac, "bridge", port.bridge))
        return guest._replace(nics=tuple(known for known in guest.nics if known not in gone))
    if nic in guest.nics:
        return guest
    if port.mac not in {known.mac for known in guest.nics}:
        return guest._replace(nics=(*guest.nics, nic))
    return guest._replace(nics=tuple(nic if known.mac == port.mac else known for known in guest.nics))
