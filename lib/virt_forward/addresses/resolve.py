"""A domain and the facts of the host to a Guest: where it sits, and what may be forwarded to it."""

from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Interface, IPv6Interface
from typing import NamedTuple

from virt_forward import ports, text
from virt_forward.addresses.leases import Neighbours
from virt_forward.config import Config
from virt_forward.errors import VirtForwardError
from virt_forward.metadata import values
from virt_forward.model import (
    Address,
    Declaration,
    Domain,
    Guest,
    HostAddress,
    Network,
    Nic,
    Phase,
    PortForward,
    Reservation,
    Seat,
    Subnet,
)

DIRECT = ("bridge", "private", "vepa", "passthrough", "hostdev")
"""Modes of libvirt networks that make no bridge of their own (formatnetwork.html)."""


class Bridge(NamedTuple):
    """What the host knows of a bridge.

    ``addresses`` are the host's own on it, with their prefix; ``reservations`` are fixed
    leases. ``leases`` (given out by DHCP) and ``neighbours`` are read only when asked for.
    ``uplink`` tells whether the host's default route is through it.
    """

    addresses: tuple[IPv4Interface | IPv6Interface, ...] = ()
    reservations: tuple[Reservation, ...] = ()
    leases: Callable[[], tuple[Reservation, ...]] = tuple
    neighbours: Callable[[], Neighbours] = Neighbours
    uplink: bool = False


class Facts(NamedTuple):
    """What the host knows. ``own`` are all its addresses; the bridges are asked for by name."""

    networks: tuple[Network, ...] = ()
    bridges: Callable[[str], Bridge] = lambda _: Bridge()
    own: frozenset[Address] = frozenset()


class Place(NamedTuple):
    """A NIC on a bridge of the host."""

    nic: Nic
    bridge: str
    network: Network | None
    facts: Bridge

    def lans(self) -> tuple[Subnet, ...]:
        """Return the subnets the host has on the bridge, without link-local ones."""
        found = [address.network for address in self.facts.addresses if not address.is_link_local]
        found += self.network.subnets if self.network else ()
        return tuple(dict.fromkeys(found))

    def gateways(self) -> tuple[Address, ...]:
        """Return the host's own addresses on the bridge, without link-local ones."""
        return tuple(address.ip for address in self.facts.addresses if not address.is_link_local)


def places(nics: Iterable[Nic], facts: Facts) -> list[Place]:
    """Return the NICs that are on a bridge of the host, in document order."""
    found = []
    for nic in nics:
        bridge = _bridge(nic, facts)
        if values.is_dev(bridge):
            found.append(Place(nic, bridge, _network(nic, facts.networks), facts.bridges(bridge)))
    return found


def _network(nic: Nic, networks: Iterable[Network]) -> Network | None:
    if nic.type != "network":
        return None
    return next((network for network in networks if network.name == nic.source), None)


def resolve(
    domain: Domain,
    facts: Facts,
    config: Config,
    phase: Phase,
    spared: Callable[[PortForward], list[ports.Span]],
) -> Guest:
    """Return the guest of a domain that declares forwards.

    ``spared`` tells which ports a forward that names none leaves to the host. Raises
    VirtForwardError, with every reason, where the declaration cannot be served as it is.
    """
    declaration = domain.declaration or Declaration()
    found = places(domain.nics, facts)
    errors = [*_unserved(domain, found, facts), *_fenced(declaration, config)]
    errors += _strangers(declaration, found, facts)
    if errors:
        raise VirtForwardError(f"guest {text.quote(domain.name)}: {error}" for error in errors)
    guest = Guest(
        uuid=domain.uuid,
        name=domain.name,
        phase=phase,
        isolate=declaration.isolate,
        forwards=ports.expand(declaration, spared),
        nics=domain.nics,
        hosts=declaration.hosts,
    )
    return reseat(guest, facts)


def reseat(guest: Guest, facts: Facts) -> Guest:
    """Return ``guest`` with its seats and subnets as the facts have them now."""
    found = places(guest.nics, facts)
    # A bridge that the host's own uplink is part of has no gateway address to be kept from forwards.
    inner = [place for place in found if not place.facts.uplink]
    return guest._replace(
        seats=tuple(_seats(guest, found, facts)),
        lans=tuple((subnet, place.bridge) for place in inner for subnet in place.lans()),
        gateways=tuple(dict.fromkeys(ip for place in inner for ip in place.gateways())),
    )


def remembering(guest: Guest, known: Guest | None, facts: Facts) -> Guest:
    """Return ``guest`` seated with what was known of it before, where no source tells otherwise."""
    return reseat(guest._replace(seats=known.seats), facts) if known else guest


def unserved(domain: Domain, facts: Facts) -> list[str]:
    """Return why a domain is on no bridge of the host where it could be served; empty where it is on one."""
    return list(_unserved(domain, places(domain.nics, facts), facts))


def misnamed(nics: Iterable[Nic], facts: Facts) -> list[str]:
    """Return in words which bridges of a guest have a name that nft or this program cannot take."""
    bridges = dict.fromkeys(
        bridge for nic in nics if (bridge := _bridge(nic, facts)) and not values.is_dev(bridge)
    )
    right = "rename it to 1 to 15 letters, digits or _.@+-"
    return [
        f"its bridge has the name {text.quote(bridge)}, which cannot be served; {right}" for bridge in bridges
    ]


def _bridge(nic: Nic, facts: Facts) -> str:
    network = _network(nic, facts.networks)
    return network.bridge if network else nic.source if nic.type == "bridge" else ""


def _unserved(domain: Domain, found: list[Place], facts: Facts) -> Iterator[str]:
    networks = {nic.source: _network(nic, facts.networks) for nic in domain.nics if nic.type == "network"}
    # A network that is not known, or has no bridge yet, may have one by the time the guest runs.
    if found:
        return
    wrong = misnamed(domain.nics, facts)
    if wrong:
        yield from wrong
        return
    if any(network is None or network.mode not in DIRECT for network in networks.values()):
        return
    kinds = {nic.type for nic in domain.nics}
    if networks:
        names = ", ".join(map(text.quote, networks))
        yield f"its network {names} puts it on the LAN directly, where it needs no forwards"
        return
    if "user" in kinds:
        yield "its NIC is of type user; libvirt's own <portForward> with <backend type='passt'/> serves it"
    elif "direct" in kinds:
        yield "its NIC is of type direct (macvtap), so it is on the LAN already and needs no forwards"
    else:
        yield "it has no NIC on a bridge or libvirt network; add an <interface type='bridge'>"


def _fenced(declaration: Declaration, config: Config) -> Iterator[str]:
    for item in declaration.port_forwards:
        if item.dev and config.uplinks and item.dev not in config.uplinks:
            allowed = ", ".join(config.uplinks)
            yield f'dev="{item.dev}" is not among the uplinks of the configuration, which are {allowed}'
        if item.address and item.address.is_loopback and not config.localhost:
            yield f'address="{item.address}" needs localhost = true in section [forward] of the configuration'


def _strangers(declaration: Declaration, found: list[Place], facts: Facts) -> Iterator[str]:
    for host in declaration.hosts:
        if host.ip in facts.own or any(host.ip == own.ip for place in found for own in place.facts.addresses):
            yield f'<host ip="{host.ip}"> is an address of the host itself; give the guest\'s'
            continue
        candidates = [place for place in found if host.mac in (None, place.nic.mac)]
        if candidates and not any(_belongs(host.ip, place) for place in candidates):
            listed = ", ".join(
                f"{subnet} on {place.bridge}" for place in candidates for subnet in place.lans()
            )
            yield f'<host ip="{host.ip}"> is not on the guest\'s network; the host has {listed}'


def _belongs(ip: Address, place: Place) -> bool:
    """Tell whether an address is a usable one of the bridge; any is where the host has no subnet there."""
    lans = [subnet for subnet in place.lans() if subnet.version == ip.version]
    return not lans or any(ip in subnet and _usable(ip, subnet) for subnet in lans)


def _usable(ip: Address, subnet: Subnet) -> bool:
    if subnet.prefixlen >= subnet.max_prefixlen - 1:
        return True
    return ip not in (subnet.network_address, subnet.broadcast_address if subnet.version == 4 else None)


def _seats(guest: Guest, found: list[Place], facts: Facts) -> Iterator[Seat]:
    taken: set[HostAddress] = set()
    for place in found:
        for version in (4, 6):
            hosts = (h for h in guest.hosts if h not in taken and _is_for(h, place, version))
            declared = next(hosts, None)
            ip = declared.ip if declared else _learned(guest, place, version, facts)
            if declared:
                taken.add(declared)
            if ip:
                yield Seat(ip, place.bridge, place.nic.mac)


def _is_for(host: HostAddress, place: Place, version: int) -> bool:
    return host.ip.version == version and host.mac in (None, place.nic.mac) and _belongs(host.ip, place)


def _learned(guest: Guest, place: Place, version: int, facts: Facts) -> Address | None:
    """Return the address that the first source knows for a NIC, where it is a plausible one."""
    known = (ip for ip in _sources(guest, place, version) if ip.version == version)
    return next((ip for ip in known if _plausible(ip, place, facts)), None)


def _sources(guest: Guest, place: Place, version: int) -> Iterator[Address]:
    """Yield the addresses of a NIC, the most trusted source first; the later ones cost a look at the host."""
    mac = place.nic.mac
    named = place.network.reservations if place.network else ()
    yield from (lease.ip for lease in named if lease.mac == mac)
    yield from (lease.ip for lease in named if lease.mac is None and lease.name == guest.name)
    yield from (lease.ip for lease in place.facts.reservations if lease.mac == mac)
    if any(subnet.version == version for subnet in place.lans()):
        yield from (lease.ip for lease in place.facts.leases() if lease.mac == mac)
        yield from _neighbouring(guest, place, version)


def _neighbouring(guest: Guest, place: Place, version: int) -> Iterator[Address]:
    """Yield what the neighbour table knows, and what is known of a guest already.

    A neighbour entry comes and goes with traffic, so a known address is not given up because
    its entry is gone. An IPv4 address confirmed a moment ago is a guest's new one; with IPv6 a
    guest has several at once, and the known one stays for as long as it is listed at all.
    """
    mac = place.nic.mac
    confirmed, others = (
        [lease.ip for lease in group if lease.mac == mac] for group in place.facts.neighbours()
    )
    known = [seat.ip for seat in guest.seats if (seat.mac, seat.bridge) == (mac, place.bridge)]
    if version == 6:
        yield from (ip for ip in known if ip in (*confirmed, *others))
    yield from (*confirmed, *known, *others)


def _plausible(ip: Address, place: Place, facts: Facts) -> bool:
    foreign = ip.is_link_local or ip.is_loopback or ip.is_multicast or ip.is_unspecified
    return not foreign and ip not in facts.own and _belongs(ip, place)
