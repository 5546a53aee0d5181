"""Where guests are attached: the NICs that are on a bridge of the host, and what the host knows of it."""

from collections.abc import Callable, Container, Iterable
from ipaddress import IPv4Interface, IPv6Interface
from typing import NamedTuple

from virt_forward import text
from virt_forward.addresses.leases import Neighbours
from virt_forward.config import Learn
from virt_forward.metadata import values
from virt_forward.model import Address, Network, Nic, Reservation, Sighting, Subnet


class Bridge(NamedTuple):
    """What the host knows of a bridge.

    ``addresses`` are the host's own on it, with their prefix; ``reservations`` are fixed
    leases. ``leases`` (given out by DHCP) and ``neighbours`` are read only when asked for.
    ``sightings`` came in just now, the newest first. ``uplink`` tells whether the host's
    default route is through it.
    """

    addresses: tuple[IPv4Interface | IPv6Interface, ...] = ()
    reservations: tuple[Reservation, ...] = ()
    leases: Callable[[], tuple[Reservation, ...]] = tuple
    neighbours: Callable[[], Neighbours] = Neighbours
    sightings: tuple[Sighting, ...] = ()
    uplink: bool = False


class Facts(NamedTuple):
    """What the host knows. ``own`` are all its addresses; the bridges are asked for by name.

    ``learn`` is what the configuration says of addresses learned from the wire. ``verify`` asks a
    NIC for some addresses and returns those at which it answers.
    """

    networks: tuple[Network, ...] = ()
    bridges: Callable[[str], Bridge] = lambda _: Bridge()
    own: frozenset[Address] = frozenset()
    learn: Learn = "derived"
    verify: "Verify" = lambda _, addresses: addresses


Verify = Callable[["Attachment", tuple[Address, ...]], Container[Address]]


class Attachment(NamedTuple):
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


def attached(nics: Iterable[Nic], facts: Facts) -> list[Attachment]:
    """Return the NICs that are on a bridge of the host, in document order."""
    found = []
    for nic in nics:
        bridge = _bridge(nic, facts)
        if values.is_dev(bridge):
            found.append(Attachment(nic, bridge, network_of(nic, facts.networks), facts.bridges(bridge)))
    return found


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
    network = network_of(nic, facts.networks)
    return network.bridge if network else nic.source if nic.type == "bridge" else ""


def network_of(nic: Nic, networks: Iterable[Network]) -> Network | None:
    """Return the libvirt network that a NIC is plugged into, where it is known."""
    if nic.type != "network":
        return None
    return next((network for network in networks if network.name == nic.source), None)


def belongs(ip: Address, attachment: Attachment) -> bool:
    """Tell whether an address is a usable one of the bridge; any is where the host has no subnet there."""
    return inside(ip, attachment) or not any(subnet.version == ip.version for subnet in attachment.lans())


def inside(ip: Address, attachment: Attachment) -> bool:
    """Tell whether an address is a usable one of a subnet that the host has on the bridge."""
    lans = (subnet for subnet in attachment.lans() if subnet.version == ip.version)
    return any(ip in subnet and _usable(ip, subnet) for subnet in lans)


def _usable(ip: Address, subnet: Subnet) -> bool:
    if subnet.prefixlen >= subnet.max_prefixlen - 1:
        return True
    return ip not in (subnet.network_address, subnet.broadcast_address if subnet.version == 4 else None)


def plausible(ip: Address, attachment: Attachment, facts: Facts) -> bool:
    """Tell whether an address that was learned can be a guest's on the bridge."""
    foreign = ip.is_link_local or ip.is_loopback or ip.is_multicast or ip.is_unspecified
    return not foreign and ip not in facts.own and belongs(ip, attachment)
