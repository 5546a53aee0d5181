"""Attachments: the NICs of a guest that are on a bridge of the host, with the host's facts about it."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from ipaddress import IPv4Interface, IPv6Interface

from virt_forward import text
from virt_forward.addresses.leases import Neighbours
from virt_forward.config import Learn
from virt_forward.metadata import values
from virt_forward.model import Address, Network, Nic, Reservation, Sighting, Subnet
from virt_forward.namedtuple import NamedTuple


class BridgeFacts(NamedTuple):
    """The host's facts about a bridge.

    ``addresses`` are the host's own on it, with their prefix; ``reservations`` are networkd's static
    leases. ``leases`` (of DHCP servers) and ``neighbours`` are read only when called. ``sightings``
    are recent ones, the newest first. ``uplink`` tells whether a default route is through the bridge.
    """

    addresses: tuple[IPv4Interface | IPv6Interface, ...] = ()
    reservations: tuple[Reservation, ...] = ()
    leases: Callable[[], tuple[Reservation, ...]] = tuple
    neighbours: Callable[[], Neighbours] = Neighbours
    sightings: tuple[Sighting, ...] = ()
    uplink: bool = False


class HostFacts(NamedTuple):
    """The host's facts that resolving a guest needs.

    ``networks`` are libvirt's; ``bridges`` returns the facts about a bridge by its name;
    ``own_addresses`` are all addresses of the host. ``learn`` is the setting ``learn`` of the
    configuration. ``verify`` probes a NIC at some addresses and returns those at which it answers.
    """

    networks: tuple[Network, ...] = ()
    bridges: Callable[[str], BridgeFacts] = lambda _: BridgeFacts()
    own_addresses: frozenset[Address] = frozenset()
    learn: Learn = "derived"
    verify: Verify = lambda _, addresses: addresses


Verify = Callable[["Attachment", tuple[Address, ...]], Container[Address]]


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


def find_attachments(nics: Iterable[Nic], facts: HostFacts) -> list[Attachment]:
    """Return the NICs that are on a bridge of the host, in the order of ``nics``."""
    found = []
    for nic in nics:
        bridge = _bridge(nic, facts)
        if values.is_dev(bridge):
            found.append(Attachment(nic, bridge, network_of(nic, facts.networks), facts.bridges(bridge)))
    return found


def bridge_name_errors(nics: Iterable[Nic], facts: HostFacts) -> list[str]:
    """Return an error message for each bridge of a guest whose name nft or this program does not accept."""
    bridges = dict.fromkeys(
        bridge for nic in nics if (bridge := _bridge(nic, facts)) and not values.is_dev(bridge)
    )
    remedy = "rename it to 1 to 15 letters, digits or _.@+-"
    return [f"the name of its bridge, {text.quote(bridge)}, is not supported; {remedy}" for bridge in bridges]


def _bridge(nic: Nic, facts: HostFacts) -> str:
    network = network_of(nic, facts.networks)
    return network.bridge if network else nic.source if nic.type == "bridge" else ""


def network_of(nic: Nic, networks: Iterable[Network]) -> Network | None:
    """Return the libvirt network that a NIC is on; None for another kind of NIC or an unknown network."""
    if nic.type != "network":
        return None
    return next((network for network in networks if network.name == nic.source), None)


def belongs(ip: Address, attachment: Attachment) -> bool:
    """Tell whether an address is usable on the bridge; without a subnet of its family there, any is."""
    return inside(ip, attachment) or not any(subnet.version == ip.version for subnet in attachment.subnets())


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
    return not foreign and ip not in facts.own_addresses and belongs(ip, attachment)
