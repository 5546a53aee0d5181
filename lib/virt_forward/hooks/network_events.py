"""What the network hook tells: networks that come, change and go, and the guests on them."""

from virt_forward.effects import converge
from virt_forward.effects.item import Change
from virt_forward.hooks.events import Action
from virt_forward.metadata import values
from virt_forward.metadata.network import NetworkPort, parse_network
from virt_forward.model import Guest, Network, Nic
from virt_forward.reconcile.apply import apply
from virt_forward.reconcile.planning import Context, context, make_plan
from virt_forward.reconcile.wants import Replugged
from virt_forward.state.config_file import load_config_or_last
from virt_forward.state.snapshot import Snapshot
from virt_forward.state.store import Store


def handle(action: Action, data: bytes, store: Store) -> None:
    """Remember or forget a network, and make the guests on it right."""
    network, port = parse_network(data)
    with store.open() as state:
        if action is Action.NETWORK_SEEN and not port and not _is_active(network, state):
            return
        if action is not Action.PORT_GONE:
            _remember(network, action, state)
        guests = _guests_concerned(network, port, state)
        if guests:
            work = _context(network, action, store, state)
            _follow(work, [Replugged(g.uuid, _plug(g, network, port, action)) for g in guests])


def _is_active(network: Network, state: Snapshot) -> bool:
    """Tell whether a network is more than defined: "updated" also comes for one that does not run."""
    if not values.is_dev(network.bridge) or any(known.uuid == network.uuid for known in state.networks()):
        return True
    import socket

    try:
        return bool(socket.if_nametoindex(network.bridge))
    except OSError:
        return False


def _remember(network: Network, action: Action, state: Snapshot) -> None:
    # A transient network has another UUID each time; that its end was missed must not matter.
    same = {known.uuid: known for known in state.networks() if known.name == network.name}
    now = {network.uuid: network} if action is Action.NETWORK_SEEN else {}
    changed = {u: now.get(u) for u in {*same, network.uuid} if same.get(u) != now.get(u)}
    if changed:
        state.put_networks(changed)


def _guests_concerned(network: Network, port: NetworkPort | None, state: Snapshot) -> list[Guest]:
    """Return the owner of a port if it is a guest of ours; without a port, all guests on the network."""
    if port:
        owner = state.guest(port.uuid)
        return [owner] if owner else []
    return [guest for guest in state.guests().values() if network.name in guest.networks]


def _context(network: Network, action: Action, store: Store, state: Snapshot) -> Context:
    gone = action is Action.NETWORK_GONE
    return context(
        store,
        state,
        load_config_or_last(state),
        current=None if gone else network,
        without={network.name} if gone else (),
    )


def _follow(work: Context, wants: list[Replugged]) -> None:
    planned = make_plan(work, wants)
    if planned.before != planned.after:
        apply(work, planned)
    else:
        # libvirt has rebuilt its chain all the same.
        converge.follow(work.state, Change.of(work.state, work.config))


def _plug(guest: Guest, network: Network, port: NetworkPort | None, action: Action) -> tuple[Nic, ...]:
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
