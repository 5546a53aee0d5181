"""Which packets are sent into the clone: for each open forward, from where and to which address."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from virt_forward.check.clone.host_state import HostState, Link
from virt_forward.config import Config
from virt_forward.model import Address, Endpoint, Forward, Guest, Subnet

MAX_PROBES = 8192
MAX_TRIES = 512
"""The most addresses of a subnet that are tried for a client."""


class Probe(NamedTuple):
    """A first packet from ``client`` to ``port`` of ``address``, that arrives on ``device``.

    It should leave by the endpoint's bridge for port ``to`` of the endpoint.
    """

    uuid: str
    guest: str
    forward: Forward
    endpoint: Endpoint
    device: str
    client: Address
    address: Address
    port: int
    to: int


class Entry(NamedTuple):
    """Where a client outside meets the host: the device, and an address of the host."""

    device: Link
    address: Address


def probes(guests: Iterable[Guest], host: HostState, config: Config) -> list[Probe]:
    """Return the probes of all open forwards of running guests, MAX_PROBES at most.

    A forward without an address or device that exists now has none, and neither has one that only the
    host itself reaches.
    """
    running = [guest for guest in guests if guest.phase == "running"]
    bridges = {endpoint.bridge for guest in running for endpoint in guest.endpoints}
    taken = host.own_addresses() | {endpoint.ip for guest in running for endpoint in guest.endpoints}
    found = (
        probe
        for guest in running
        for forward in guest.forwards
        for endpoint in guest.endpoints_for(forward)
        for entry in _entries(forward, endpoint, host, config, bridges)
        if (client := _client(host, entry.device, endpoint.ip.version, forward.source, taken))
        for probe in _ports(guest, forward, endpoint, entry, client)
    )
    return list(islice(found, MAX_PROBES))


def _ports(
    guest: Guest, forward: Forward, endpoint: Endpoint, entry: Entry, client: Address
) -> Iterator[Probe]:
    """Yield a probe of the first and of the last port of a forward."""
    way = forward, endpoint, entry.device.name, client, entry.address
    for port in dict.fromkeys((forward.start, forward.end)):
        yield Probe(guest.uuid, guest.name, *way, port, port + forward.offset)


def _entries(
    forward: Forward, endpoint: Endpoint, host: HostState, config: Config, bridges: Iterable[str]
) -> Iterator[Entry]:
    version = endpoint.ip.version
    if forward.address and (forward.address.is_loopback or not _is_local(forward.address, host)):
        return
    for link in _devices(forward, version, host, config, bridges):
        # On its own address in a guest network, the host keeps what no forward with that address has.
        if not link.up or (link.name == endpoint.bridge and forward.address is None):
            continue
        addresses = [forward.address] if forward.address else [item.ip for item in link.own(version)[:1]]
        yield from (Entry(link, address) for address in addresses)


def _is_local(address: Address, host: HostState) -> bool:
    return address in host.own_addresses() or any(
        route.kind == "local" and address in route.destination for route in host.routes
    )


def _devices(
    forward: Forward, version: int, host: HostState, config: Config, bridges: Iterable[str]
) -> list[Link]:
    if forward.dev:
        return [link for link in host.links if link.name == forward.dev and not link.master]
    outside = uplinks(host, config, bridges, version)
    if forward.address:
        owners = [link for link in host.links if forward.address in {item.ip for item in link.addresses}]
        inside = [link for link in owners if link.name in bridges or _leads_outside(link, host, bridges)]
        return inside or outside
    return _toward(forward.source, outside, version, host) if forward.source else outside


def uplinks(host: HostState, config: Config, bridges: Iterable[str], version: int) -> list[Link]:
    """Return the links by which clients outside reach the host: the configured ones, those of the default
    routes, or else all that lead outside.
    """  # noqa: D205 - one sentence
    if config.uplinks:
        names: Iterable[str] = config.uplinks
    else:
        routes = (route for route in host.routes if route.kind == "unicast")
        defaults = [route for route in routes if route.destination.prefixlen == 0]
        same = [route for route in defaults if route.destination.version == version]
        # An uplink of the other family is one of this as well, rather than every link with an address.
        names = {device for route in same or defaults for device in route.devices}
        names = names or {link.name for link in host.links if _leads_outside(link, host, bridges)}
    return [link for link in host.links if link.name in names and not _is_vrf(link, host)]


def _leads_outside(link: Link, host: HostState, bridges: Iterable[str]) -> bool:
    if link.name == "lo" or link.name in bridges or link.kind in ("tun", "vrf"):
        return False
    return not link.is_bridge or any(port.master == link.name and not port.kind for port in host.links)


def _is_vrf(link: Link, host: HostState) -> bool:
    master = host.link(link.master) if link.master else None
    return master is not None and master.kind == "vrf"


def _toward(source: Subnet, outside: list[Link], version: int, host: HostState) -> list[Link]:
    """Return the links behind which the clients of a source are: on the link, or by the longest route."""
    near = [link for link in outside if any(item.network.overlaps(source) for item in link.own(version))]
    if near:
        return near
    routes = [
        route
        for route in host.routes
        if route.table == "main"
        and route.destination.version == version
        and source.network_address in route.destination
    ]
    best = max(routes, key=lambda route: route.destination.prefixlen, default=None)
    return [link for link in outside if best and link.name in best.devices]


def _client(
    host: HostState, link: Link, version: int, source: Subnet | None, taken: Iterable[Address]
) -> Address | None:
    """Return an address that a client behind a link may have and that nobody here has."""
    own = link.own(version)
    subnets = [item.network for item in own]
    gateways = [
        gateway
        for route in host.routes
        for gateway in route.gateways
        if link.name in route.devices and gateway.version == version and not gateway.is_link_local
    ]
    avoid = {*taken, *gateways}
    if source:
        near = [max(source, subnet, key=_prefix) for subnet in subnets if subnet.overlaps(source)]
        subnets = near or [source]
    found = [address for subnet in subnets if (address := _free(subnet, avoid))]
    # A point-to-point link has one client: its peer, or the gateway.
    peers = [link.peers[item.ip] for item in own if item.ip in link.peers]
    found += [address for address in (*peers, *gateways) if not source or address in source]
    return found[0] if found else None


def _prefix(subnet: Subnet) -> int:
    return subnet.prefixlen


def _free(subnet: Subnet, avoid: Iterable[Address]) -> Address | None:
    """Return a free address near the end of a subnet, where routers and servers rarely are."""
    if subnet.num_addresses <= 2:
        candidates: list[Address] = [*subnet]
    else:
        last = min(subnet.num_addresses, 1 << 16) - 2
        first = max(0, last - MAX_TRIES)
        candidates = [subnet[number] for number in range(last, first, -1)]
    return next((address for address in candidates if address not in avoid), None)
