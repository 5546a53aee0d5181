"""Attachments: the NICs of a guest that are on a bridge of the host, with the host's facts about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Interface, IPv6Interface

from virt_forward import text
from virt_forward.addresses.leases import Neighbours
from virt_forward.claims.sockets import NO_INTERFACES, Interfaces, SocketFacts
from virt_forward.config import Learn
from virt_forward.errors import Question, UnreadError
from virt_forward.metadata import values
from virt_forward.model import Address, Network, Nic, Reservation, Sighting, Subnet
from virt_forward.namedtuple import NamedTuple


class BridgeFacts(NamedTuple):
    """The host's facts about a bridge.

    ``addresses`` are the host's own on it, with their prefix; ``reservations`` are networkd's static
    leases. ``leases`` (of DHCP servers) and ``neighbours`` are None where they were not read. ``sightings``
    are recent ones, the newest first. ``uplink`` tells whether a default route is through the bridge.
    """

    addresses: tuple[IPv4Interface | IPv6Interface, ...] = ()
    reservations: tuple[Reservation, ...] = ()
    leases: tuple[Reservation, ...] | None = ()
    neighbours: Neighbours | None = Neighbours()
    sightings: tuple[Sighting, ...] = ()
    uplink: bool = False


class HostFacts(NamedTuple):
    """The host's facts that a change needs, as far as they have been read.

    ``networks`` are libvirt's, ``bridges`` those that were read, by name, and ``own_addresses`` all
    addresses of the host. ``learn`` is the setting ``learn`` of the configuration. ``answers`` tells by
    bridge, MAC and address whether the NIC has answered a probe there. ``subnets`` are those of all
    interfaces, the longest prefix first, without link-local ones. ``routes`` are the kernel's to some
    addresses, each with its interface; None for the default route, or none at all.

    A function that needs what was not read raises UnreadError.
    """

    networks: tuple[Network, ...] = ()
    bridges: Mapping[str, BridgeFacts] = {}
    own_addresses: frozenset[Address] = frozenset()
    learn: Learn = "derived"
    answers: Mapping[tuple[str, str, Address], bool] = {}
    interfaces: Interfaces = NO_INTERFACES
    sockets: SocketFacts = SocketFacts()
    subnets: tuple[tuple[Subnet, str], ...] = ()
    routes: Mapping[Address, tuple[Subnet, str] | None] = {}

    def bridge(self, name: str) -> BridgeFacts:
        """Return the facts about a bridge."""
        if name not in self.bridges:
            raise UnreadError(Question("bridge", name))
        return self.bridges[name]

    def route(self, ip: Address) -> tuple[Subnet, str] | None:
        """Return the route to an address, as ``routes`` has it."""
        if ip not in self.routes:
            raise UnreadError(Question("route", addresses=(ip,)))
        return self.routes[ip]


class Attachment(NamedTuple):
    """A NIC on a bridge of the host."""

    nic: Nic
    bridge: str
    network: Network | None
    facts: BridgeFacts

    def subnets(self) -> tuple[Subnet, ...]:
        """Return the host's and libvirt's subnets on the bridge, each once, without link-local ones."""
        found = [address.network for address in self.facts.addresses if not address.is_link_local]
        found += self.network.subnets if self.network else ()
        return tuple(dict.fromkeys(found))

    def host_addresses(self) -> tuple[Address, ...]:
        """Return the host's own addresses on the bridge, without link-local ones."""
        return tuple(address.ip for address in self.facts.addresses if not address.is_link_local)

    def leases(self) -> tuple[Reservation, ...]:
        """Return the leases of DHCP servers on the bridge."""
        if self.facts.leases is None:
            raise UnreadError(Question("leases", self.bridge))
        return self.facts.leases

    def neighbours(self) -> Neighbours:
        """Return the neighbour table of the bridge."""
        if self.facts.neighbours is None:
            raise UnreadError(Question("neighbours", self.bridge))
        return self.facts.neighbours

    def answering(self, addresses: tuple[Address, ...], facts: HostFacts) -> frozenset[Address]:
        """Return those of ``addresses`` at which the NIC has answered a probe."""
        keys = {ip: (self.bridge, self.nic.mac, ip) for ip in addresses}
        if not all(key in facts.answers for key in keys.values()):
            raise UnreadError(Question("answers", self.bridge, self.nic.mac, addresses))
        return frozenset(ip for ip, key in keys.items() if facts.answers[key])


def find_attachments(nics: Iterable[Nic], facts: HostFacts) -> list[Attachment]:
    """Return the NICs that are on a bridge of the host, in the order of ``nics``."""
    found = named_attachments(nics, facts.networks)
    return [attachment._replace(facts=facts.bridge(attachment.bridge)) for attachment in found]


def named_attachments(nics: Iterable[Nic], networks: Iterable[Network]) -> list[Attachment]:
    """Return the same, with nothing known of the bridges but their names."""
    networks = tuple(networks)
    found = ((nic, _bridge(nic, networks)) for nic in nics)
    return [
        Attachment(nic, bridge, network_of(nic, networks), BridgeFacts())
        for nic, bridge in found
        if values.is_dev(bridge)
    ]


def bridge_name_errors(nics: Iterable[Nic], networks: Iterable[Network]) -> list[str]:
    """Return an error message for each bridge of a guest whose name nft or this program does not accept."""
    networks = tuple(networks)
    bridges = dict.fromkeys(
        bridge for nic in nics if (bridge := _bridge(nic, networks)) and not values.is_dev(bridge)
    )
    remedy = "rename it to 1 to 15 letters, digits or _.@+-"
    return [f"the name of its bridge, {text.quote(bridge)}, is not supported; {remedy}" for bridge in bridges]


def _bridge(nic: Nic, networks: Iterable[Network]) -> str:
    network = network_of(nic, networks)
    return network.bridge if network else nic.source if nic.type == "bridge" else ""


def network_of(nic: Nic, networks: Iterable[Network]) -> Network | None:
    """Return the libvirt network that a NIC is on; None for another kind of NIC or an unknown network."""
    if nic.type != "network":
        return None
    return next((network for network in networks if network.name == nic.source), None)


def belongs(ip: Address, attachment: Attachment, facts: HostFacts) -> bool:
    """Tell whether an address is usable on the bridge.

    Without a subnet of its family there, any is that the host does not look for on another interface.
    """
    any_is = not any(subnet.version == ip.version for subnet in attachment.subnets())
    return (any_is or inside(ip, attachment)) and not elsewhere(ip, attachment, facts)


def elsewhere(ip: Address, attachment: Attachment, facts: HostFacts) -> tuple[Subnet, str] | None:
    """Return the subnet, and its interface, to which the host sends what is for an address.

    None where that is the bridge, or it goes by the default route. As in routing, the longest prefix
    decides; other routes than those to subnets of interfaces count where no subnet has the address.
    """
    here = max((subnet.prefixlen for subnet in attachment.subnets() if ip in subnet), default=-1)
    nearest = next((place for place in facts.subnets if ip in place[0]), None)
    if nearest is None and here < 0:
        route = facts.route(ip)
        return route if route and route[1] != attachment.bridge else None
    return nearest if nearest and nearest[0].prefixlen > here else None


def inside(ip: Address, attachment: Attachment) -> bool:
    """Tell whether an address is usable in one of the host's subnets on the bridge."""
    subnets = (subnet for subnet in attachment.subnets() if subnet.version == ip.version)
    return any(ip in subnet and _usable(ip, subnet) for subnet in subnets)


def _usable(ip: Address, subnet: Subnet) -> bool:
    if subnet.prefixlen >= subnet.max_prefixlen - 1:
        return True
    return ip not in (subnet.network_address, subnet.broadcast_address if subnet.version == 4 else None)


def plausible(ip: Address, attachment: Attachment, facts: HostFacts) -> bool:
    """Tell whether a learned address can be that of a guest on the bridge."""
    foreign = ip.is_link_local or ip.is_loopback or ip.is_multicast or ip.is_unspecified
    return not foreign and ip not in facts.own_addresses and belongs(ip, attachment, facts)
