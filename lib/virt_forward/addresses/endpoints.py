"""The endpoints of a guest: the address of each of its NICs, and its origin.

Origins are ranked (model.ORIGINS). Declared and reserved addresses are configured by a person and
used as they are. Leased, probed and neighbour addresses are learned: one that another MAC address
uses as well is refused, and a known one that is still current is never replaced by another.
"""

from collections.abc import Iterable, Iterator
from functools import cached_property

from virt_forward.addresses.attachments import Attachment, HostFacts, belongs, inside, plausible
from virt_forward.addresses.leases import Neighbours
from virt_forward.model import LEARNED, Address, Endpoint, Guest, HostAddress, Origin, Reservation, rank

MAX_VERIFIED = 64
"""The most addresses that are verified at one NIC: a guest can fill the neighbour table."""

ConfiguredAddresses = dict[tuple[int, int], tuple[Address, Origin]]
"""The declared and reserved addresses, by the index of the attachment and the IP version."""


def endpoints(guest: Guest, attachments: list[Attachment], facts: HostFacts) -> Iterator[Endpoint]:
    """Yield the endpoints of a guest, at most one for each attachment and IP version, in their order."""
    configured = _configured_addresses(guest, attachments, facts)
    used = {(ip, attachments[number].bridge) for (number, _), (ip, _) in configured.items()}
    for number, attachment in enumerate(attachments):
        for version in (4, 6):
            address = configured.get((number, version))
            # A guest that is to start has no NIC yet that could have learned one, or could be asked.
            if address is None and guest.phase == "running":
                other = (number, 10 - version) in configured
                address = LearnedAddresses(guest, attachment, version, facts, other_is_configured=other).best(
                    used
                )
            if address:
                used.add((address[0], attachment.bridge))
                yield Endpoint(address[0], attachment.bridge, attachment.nic.mac, address[1])


def doubtful_endpoints(guest: Guest, attachments: list[Attachment], facts: HostFacts) -> Iterator[Endpoint]:
    """Yield the learned endpoints of NICs that have another address as well, unless just confirmed.

    For these the kernel has to find out whether the guest still answers (collect.confirm_neighbour).
    """
    for attachment in attachments:
        for version in (4, 6):
            known = LearnedAddresses(guest, attachment, version, facts).doubtful_endpoint()
            if known:
                yield known


def _configured_addresses(
    guest: Guest, attachments: list[Attachment], facts: HostFacts
) -> ConfiguredAddresses:
    chosen = _declared_addresses(guest.hosts, attachments, facts)
    used = {(ip, attachments[number].bridge) for (number, _), (ip, _) in chosen.items()}
    for number, attachment in enumerate(attachments):
        for ip in _reserved_addresses(guest, attachment):
            taken = (number, ip.version) in chosen or (ip, attachment.bridge) in used
            if not taken and plausible(ip, attachment, facts):
                chosen[number, ip.version] = (ip, "reserved")
                used.add((ip, attachment.bridge))
    return chosen


def _declared_addresses(
    hosts: Iterable[HostAddress], attachments: list[Attachment], facts: HostFacts
) -> ConfiguredAddresses:
    chosen: ConfiguredAddresses = {}
    used: set[tuple[Address, str]] = set()
    for host in sorted(hosts, key=lambda host: host.mac is None):
        candidates = [
            number
            for number, attachment in enumerate(attachments)
            if host.mac in (None, attachment.nic.mac)
            and (number, host.ip.version) not in chosen
            and (host.ip, attachment.bridge) not in used
            and belongs(host.ip, attachment, facts)
        ]
        # A bridge without a subnet accepts any address, but one whose subnet contains it comes first.
        for number in sorted(candidates, key=lambda number: not inside(host.ip, attachments[number]))[:1]:
            chosen[number, host.ip.version] = (host.ip, "declared")
            used.add((host.ip, attachments[number].bridge))
    return chosen


def _reserved_addresses(guest: Guest, attachment: Attachment) -> Iterator[Address]:
    """Yield the reserved addresses of a NIC: by its MAC address, then by the guest's name."""
    mac = attachment.nic.mac
    of_network = attachment.network.reservations if attachment.network else ()
    yield from (lease.ip for lease in of_network if lease.mac == mac)
    named = [lease.ip for lease in of_network if lease.mac is None and lease.name == guest.name]
    if named:
        # The server gives it to any client with that name, so what counts is which NIC has the lease.
        elsewhere = {lease.ip for lease in attachment.leases() if lease.mac != mac}
        yield from (ip for ip in named if ip not in elsewhere)
    yield from (lease.ip for lease in attachment.facts.reservations if lease.mac == mac)


class LearnedAddresses:
    """The addresses of one IP version that can be learned for a NIC, from all sources."""

    def __init__(
        self,
        guest: Guest,
        attachment: Attachment,
        version: int,
        facts: HostFacts,
        *,
        other_is_configured: bool = False,
    ) -> None:
        self.guest, self.attachment, self.version, self.facts = guest, attachment, version, facts
        self.mac = attachment.nic.mac
        self.other_is_configured = other_is_configured

    def best(self, used: set[tuple[Address, str]]) -> tuple[Address, Origin] | None:
        """Return the most trusted address that is acceptable and not in ``used``, and its origin, or None."""
        if not any(subnet.version == self.version for subnet in self.attachment.subnets()):
            return None
        for ip, origin in self._candidates():
            if (ip, self.attachment.bridge) not in used and self._acceptable(ip, origin):
                return ip, origin
        return None

    def doubtful_endpoint(self) -> Endpoint | None:
        """Return the known endpoint if the NIC has another address; None if it was just confirmed."""
        known = self._known_endpoint()
        if known is None or known.ip in self._of_this_nic(self._neighbours.confirmed):
            return None
        others = (*self._leases, *(ip for ip, _ in self._sightings()), *self._in_neighbour_table)
        return known if any(ip != known.ip for ip in others) else None

    def _candidates(self) -> Iterator[tuple[Address, Origin]]:
        known = self._known_endpoint()
        failed = known is not None and known.ip in self._neighbours.failed
        if known and self._is_current(known):
            yield self._with_best_origin(known)
        leased = (*self._leases, *(ip for ip, origin in self._sightings() if origin == "leased"))
        yield from ((ip, "leased") for ip in leased if ip in self._verified)
        yield from ((ip, origin) for ip, origin in self._sightings() if origin == "probed")
        table = self._neighbours
        yield from ((ip, "neighbour") for ip in self._of_this_nic(table.permanent))
        yield from ((ip, "neighbour") for ip in self._of_this_nic(table.confirmed) if ip in self._verified)
        if known and not failed:
            yield self._with_best_origin(known)
        yield from ((ip, "neighbour") for ip in self._of_this_nic(table.others) if ip in self._verified)
        if known and failed:
            yield self._with_best_origin(known)

    def _sightings(self) -> Iterator[tuple[Address, Origin]]:
        """Yield the addresses in recent sightings of the NIC, the most trusted first, then the newest."""
        for sighting in sorted(self.attachment.facts.sightings, key=rank):
            if sighting.mac == self.mac and sighting.ip.version == self.version:
                yield sighting.ip, sighting.origin

    @cached_property
    def _verified(self) -> frozenset[Address]:
        """The addresses of all sources at which the NIC answers a probe, and those that need none.

        The kernel accepts any MAC address in an ARP or ND packet, and a DHCP server any client's, so
        neither proves that the NIC has the address.
        """
        certain = {ip for ip, origin in self._sightings() if origin == "probed"}
        certain.update(self._of_this_nic(self._neighbours.permanent))
        origins: dict[Address, Origin] = dict.fromkeys(self._in_neighbour_table, "neighbour")
        origins |= dict(self._sightings()) | dict.fromkeys(self._leases, "leased")
        wanted = [ip for ip, origin in origins.items() if ip not in certain and self._acceptable(ip, origin)]
        to_verify = tuple(sorted(wanted, key=lambda ip: LEARNED.index(origins[ip]))[:MAX_VERIFIED])
        answered = self.attachment.answering(to_verify, self.facts)
        return frozenset((*certain, *(ip for ip in to_verify if ip in answered)))

    @cached_property
    def _in_neighbour_table(self) -> list[Address]:
        table = self._neighbours
        return [
            ip
            for group in (table.permanent, table.confirmed, table.others)
            for ip in self._of_this_nic(group)
        ]

    def _known_endpoint(self) -> Endpoint | None:
        key = (self.mac, self.attachment.bridge, self.version)
        endpoints = (
            endpoint
            for endpoint in self.guest.endpoints
            if (endpoint.mac, endpoint.bridge, endpoint.ip.version) == key
        )
        return next((endpoint for endpoint in endpoints if endpoint.origin in LEARNED), None)

    def _is_current(self, known: Endpoint) -> bool:
        # Replaced by another lease, or the kernel has got no answer there.
        replaced = known.origin == "leased" and self._leases and known.ip not in self._leases
        if replaced or known.ip in self._neighbours.failed:
            return False
        return known.ip in (*self._leases, *self._in_neighbour_table, *(ip for ip, _ in self._sightings()))

    def _with_best_origin(self, known: Endpoint) -> tuple[Address, Origin]:
        origins: list[Origin] = [origin for ip, origin in self._sightings() if ip == known.ip]
        origins += ["leased"] if known.ip in self._leases else []
        return known.ip, min((known.origin, *origins), key=LEARNED.index)

    def _acceptable(self, ip: Address, origin: Origin) -> bool:
        return (
            plausible(ip, self.attachment, self.facts)
            and ip not in self._foreign
            and (origin == "leased" or self._allowed_from_wire(ip))
        )

    def _allowed_from_wire(self, ip: Address) -> bool:
        if self.facts.learn != "derived":
            return self.facts.learn == "any"
        return not self.other_is_configured or is_derived(ip, self.mac)

    @cached_property
    def _neighbours(self) -> Neighbours:
        return self.attachment.neighbours()

    @cached_property
    def _leases(self) -> list[Address]:
        return self._of_this_nic(self.attachment.leases())

    def _of_this_nic(self, leases: Iterable[Reservation]) -> list[Address]:
        return [lease.ip for lease in leases if lease.mac == self.mac and lease.ip.version == self.version]

    @cached_property
    def _foreign(self) -> frozenset[Address]:
        """Addresses that are reserved for, leased to or used by a NIC that is not the guest's."""
        own = {nic.mac for nic in self.guest.nics}
        reserved = self.attachment.network.reservations if self.attachment.network else ()
        held = (
            *reserved,
            *self.attachment.facts.reservations,
            *self.attachment.leases(),
            *self._neighbours.permanent,
            *self._neighbours.confirmed,
            *self._neighbours.others,
            *(Reservation(sighting.ip, sighting.mac) for sighting in self.attachment.facts.sightings),
        )
        return frozenset(
            lease.ip
            for lease in held
            if (lease.mac not in own if lease.mac else lease.name != self.guest.name)
        )


def is_derived(ip: Address, mac: str) -> bool:
    """Tell whether an IPv6 address has the interface identifier derived from a MAC (RFC 4291, appendix A)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    identifier = bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return ip.version == 6 and ip.packed[8:] == identifier
