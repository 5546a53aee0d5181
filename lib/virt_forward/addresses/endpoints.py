"""The endpoints of a guest: which address each of its NICs has, and where that was learned.

Origins rank (model.ORIGINS). Declared and reserved addresses are what a person wrote down;
they are taken as they are. Leased, probed and neighbour addresses are learned: one that
another hardware address holds is nobody's, and one that is known and still confirmed is
never exchanged for another.
"""

from collections.abc import Iterable, Iterator
from functools import cached_property

from virt_forward.addresses.attachments import Attachment, Facts, belongs, inside, plausible
from virt_forward.addresses.leases import Neighbours
from virt_forward.model import LEARNED, Address, Endpoint, Guest, HostAddress, Origin, Reservation, rank

MOST_VERIFIED = 64
"""The most addresses at which one NIC is asked: a guest may fill the neighbour table."""

Firm = dict[tuple[int, int], tuple[Address, Origin]]
"""The declared and reserved addresses, by the number of the attachment and the IP version."""


def endpoints(guest: Guest, found: list[Attachment], facts: Facts) -> Iterator[Endpoint]:
    """Yield the endpoints of a guest, at most one an attachment and family, in document order."""
    firm = _firm(guest, found, facts)
    used = {(ip, found[number].bridge) for (number, _), (ip, _) in firm.items()}
    for number, attachment in enumerate(found):
        for version in (4, 6):
            address = firm.get((number, version))
            if address is None:
                other = (number, 10 - version) in firm
                address = Learning(guest, attachment, version, facts, other_is_firm=other).best(used)
            if address:
                used.add((address[0], attachment.bridge))
                yield Endpoint(address[0], attachment.bridge, attachment.nic.mac, address[1])


def doubted(guest: Guest, found: list[Attachment], facts: Facts) -> Iterator[Endpoint]:
    """Yield the learned endpoints beside which another address of the same NIC has shown up.

    The kernel has to find out whether the guest still answers there.
    """
    for attachment in found:
        for version in (4, 6):
            known = Learning(guest, attachment, version, facts).doubted()
            if known:
                yield known


def _firm(guest: Guest, found: list[Attachment], facts: Facts) -> Firm:
    chosen = _declared(guest.hosts, found)
    used = {(ip, found[number].bridge) for (number, _), (ip, _) in chosen.items()}
    for number, attachment in enumerate(found):
        for ip in _reserved(guest, attachment):
            taken = (number, ip.version) in chosen or (ip, attachment.bridge) in used
            if not taken and plausible(ip, attachment, facts):
                chosen[number, ip.version] = (ip, "reserved")
                used.add((ip, attachment.bridge))
    return chosen


def _declared(hosts: Iterable[HostAddress], found: list[Attachment]) -> Firm:
    chosen: Firm = {}
    for host in sorted(hosts, key=lambda host: host.mac is None):
        fitting = [
            number
            for number, attachment in enumerate(found)
            if host.mac in (None, attachment.nic.mac)
            and (number, host.ip.version) not in chosen
            and belongs(host.ip, attachment)
        ]
        # A bridge without a subnet takes any address, but the one whose subnet has it comes first.
        for number in sorted(fitting, key=lambda number: not inside(host.ip, found[number]))[:1]:
            chosen[number, host.ip.version] = (host.ip, "declared")
    return chosen


def _reserved(guest: Guest, attachment: Attachment) -> Iterator[Address]:
    """Yield the reserved addresses of a NIC: by its MAC address, then by the guest's name."""
    mac = attachment.nic.mac
    of_network = attachment.network.reservations if attachment.network else ()
    yield from (lease.ip for lease in of_network if lease.mac == mac)
    named = [lease.ip for lease in of_network if lease.mac is None and lease.name == guest.name]
    if named:
        # The server gives it to whichever client calls itself that: who has it counts.
        elsewhere = {lease.ip for lease in attachment.facts.leases() if lease.mac != mac}
        yield from (ip for ip in named if ip not in elsewhere)
    yield from (lease.ip for lease in attachment.facts.reservations if lease.mac == mac)


class Learning:
    """What a NIC's address in one family can be learned from."""

    def __init__(
        self, guest: Guest, attachment: Attachment, version: int, facts: Facts, *, other_is_firm: bool = False
    ) -> None:
        self.guest, self.attachment, self.version, self.facts = guest, attachment, version, facts
        self.mac = attachment.nic.mac
        self.other_is_firm = other_is_firm

    def best(self, used: set[tuple[Address, str]]) -> tuple[Address, Origin] | None:
        """Return the address that the NIC has, as far as one may trust that; None for none."""
        if not any(subnet.version == self.version for subnet in self.attachment.lans()):
            return None
        for ip, origin in self._candidates():
            if (ip, self.attachment.bridge) not in used and self._acceptable(ip, origin):
                return ip, origin
        return None

    def doubted(self) -> Endpoint | None:
        """Return the known endpoint where another address has shown up and it was not confirmed just now."""
        known = self._known()
        if known is None or known.ip in self._mine(self._neighbours.confirmed):
            return None
        others = (*self._leased, *(ip for ip, _ in self._seen()), *self._listed)
        return known if any(ip != known.ip for ip in others) else None

    def _candidates(self) -> Iterator[tuple[Address, Origin]]:
        known = self._known()
        failed = known is not None and known.ip in self._neighbours.failed
        if known and self._is_confirmed(known):
            yield self._with_origin(known)
        leased = (*self._leased, *(ip for ip, origin in self._seen() if origin == "leased"))
        yield from ((ip, "leased") for ip in leased if ip in self._answered)
        yield from ((ip, origin) for ip, origin in self._seen() if origin == "probed")
        table = self._neighbours
        yield from ((ip, "neighbour") for ip in self._mine(table.permanent))
        yield from ((ip, "neighbour") for ip in self._mine(table.confirmed) if ip in self._answered)
        if known and not failed:
            yield self._with_origin(known)
        yield from ((ip, "neighbour") for ip in self._mine(table.others) if ip in self._answered)
        if known and failed:
            yield self._with_origin(known)

    def _seen(self) -> Iterator[tuple[Address, Origin]]:
        """Yield what the NIC was just given or has answered, the most trusted first, then the newest."""
        for seen in sorted(self.attachment.facts.sightings, key=rank):
            if seen.mac == self.mac and seen.ip.version == self.version:
                yield seen.ip, seen.origin

    @cached_property
    def _answered(self) -> frozenset[Address]:
        """The addresses at which the NIC has answered just now, of those that were told of it.

        The kernel believes whoever writes another's MAC address into an ARP or ND packet, and a
        DHCP server whoever asks in another's name.
        """
        certain = {ip for ip, origin in self._seen() if origin == "probed"}
        certain.update(self._mine(self._neighbours.permanent))
        told: dict[Address, Origin] = dict.fromkeys(self._listed, "neighbour")
        told |= dict(self._seen()) | dict.fromkeys(self._leased, "leased")
        wanted = [ip for ip, origin in told.items() if ip not in certain and self._acceptable(ip, origin)]
        asked = tuple(sorted(wanted, key=lambda ip: LEARNED.index(told[ip]))[:MOST_VERIFIED])
        answered = self.facts.verify(self.attachment, asked) if asked else ()
        return frozenset((*certain, *(ip for ip in asked if ip in answered)))

    @cached_property
    def _listed(self) -> list[Address]:
        table = self._neighbours
        return [ip for group in (table.permanent, table.confirmed, table.others) for ip in self._mine(group)]

    def _known(self) -> Endpoint | None:
        attachment = (self.mac, self.attachment.bridge, self.version)
        endpoints = (
            endpoint
            for endpoint in self.guest.endpoints
            if (endpoint.mac, endpoint.bridge, endpoint.ip.version) == attachment
        )
        return next((endpoint for endpoint in endpoints if endpoint.origin in LEARNED), None)

    def _is_confirmed(self, known: Endpoint) -> bool:
        # The server has another lease for the NIC now, or the kernel has asked in vain.
        over = known.origin == "leased" and self._leased and known.ip not in self._leased
        if over or known.ip in self._neighbours.failed:
            return False
        return known.ip in (*self._leased, *self._listed, *(ip for ip, _ in self._seen()))

    def _with_origin(self, known: Endpoint) -> tuple[Address, Origin]:
        origins: list[Origin] = [origin for ip, origin in self._seen() if ip == known.ip]
        origins += ["leased"] if known.ip in self._leased else []
        return known.ip, min((known.origin, *origins), key=LEARNED.index)

    def _acceptable(self, ip: Address, origin: Origin) -> bool:
        return (
            plausible(ip, self.attachment, self.facts)
            and ip not in self._held_by_others
            and (origin == "leased" or self._may_come_from_the_wire(ip))
        )

    def _may_come_from_the_wire(self, ip: Address) -> bool:
        if self.facts.learn != "derived":
            return self.facts.learn == "any"
        return not self.other_is_firm or is_derived(ip, self.mac)

    @cached_property
    def _neighbours(self) -> Neighbours:
        return self.attachment.facts.neighbours()

    @cached_property
    def _leased(self) -> list[Address]:
        return self._mine(self.attachment.facts.leases())

    def _mine(self, leases: Iterable[Reservation]) -> list[Address]:
        return [lease.ip for lease in leases if lease.mac == self.mac and lease.ip.version == self.version]

    @cached_property
    def _held_by_others(self) -> frozenset[Address]:
        """Addresses that are reserved for, leased to or answered by a NIC that is not the guest's."""
        own = {nic.mac for nic in self.guest.nics}
        reserved = self.attachment.network.reservations if self.attachment.network else ()
        held = (
            *reserved,
            *self.attachment.facts.reservations,
            *self.attachment.facts.leases(),
            *self._neighbours.permanent,
            *self._neighbours.confirmed,
            *self._neighbours.others,
            *(Reservation(seen.ip, seen.mac) for seen in self.attachment.facts.sightings),
        )
        return frozenset(
            lease.ip
            for lease in held
            if (lease.mac not in own if lease.mac else lease.name != self.guest.name)
        )


def is_derived(ip: Address, mac: str) -> bool:
    """Tell whether an IPv6 address has the interface identifier made of a MAC (RFC 4291, appendix A)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    identifier = bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return ip.version == 6 and ip.packed[8:] == identifier
