"""The frozen values everything else is made of.

Named tuples and not ``dataclasses``: every hook is a fresh interpreter, and
importing dataclasses costs it more than reading a guest's XML.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from virt_forward.namedtuple import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Literal, Protocol

    Proto = Literal["tcp", "udp", "sctp"]
    Phase = Literal["restoring", "prepared", "running"]
    Origin = Literal["declared", "reserved", "leased", "probed", "neighbour"]
else:
    Proto = Phase = Origin = str

Address = IPv4Address | IPv6Address
Subnet = IPv4Network | IPv6Network

PROTOS: tuple[Proto, ...] = ("tcp", "udp", "sctp")
ORIGINS: tuple[Origin, ...] = ("declared", "reserved", "leased", "probed", "neighbour")
"""Where an address was learned, the most trusted first: ``<host>``, a reservation, a lease of this
host's DHCP server, the guest's own answer to a probe, the kernel's neighbour table."""
LEARNED: tuple[Origin, ...] = ORIGINS[2:]
"""The origins of addresses that nobody wrote down; see addresses/endpoints.py."""
MAX_PORT = 65535
WIDE = 128
"""A range of more ports than this is handled as a range, any other by its single ports."""


class Span(NamedTuple):
    """The ports ``start``..``end``, both included."""

    start: int
    end: int

    @property
    def wide(self) -> bool:
        """Whether these are too many ports to be handled one by one."""
        return self.end - self.start >= WIDE

    def overlaps(self, other: Span) -> bool:
        """Tell whether a port is in both."""
        return self.start <= other.end and other.start <= self.end

    def contains(self, other: Span) -> bool:
        """Tell whether every port of ``other`` is in this one."""
        return self.start <= other.start and other.end <= self.end

    def __str__(self) -> str:
        """Return ``80`` for one port and ``80-90`` for several."""
        return str(self.start) if self.start == self.end else f"{self.start}-{self.end}"


class Listen(NamedTuple):
    """Which packets a forward takes, but for their ports. None means any.

    ``address`` is the host address they are sent to, ``dev`` the interface they arrive on,
    ``source`` the network they come from.
    """

    proto: Proto
    address: Address | None = None
    dev: str | None = None
    source: Subnet | None = None

    @property
    def restricted(self) -> bool:
        """Whether it is limited to an interface or a source, so that other guests may have its ports, too."""
        return self.dev is not None or self.source is not None

    def specificity(self) -> tuple[bool, bool, int]:
        """Return a sort key that puts the more specific one first.

        One with an address is before one without, then one with an interface, then the longer
        source prefix. Between any two that take the same packet, this decides which gets it.
        """
        prefix = -1 if self.source is None else self.source.prefixlen
        return (self.address is None, self.dev is None, -prefix)


class Range(NamedTuple):
    """One ``<range>``: host ports ``start``..``end``, the guest's first port ``to``."""

    start: int
    end: int
    to: int
    exclude: bool = False

    @property
    def span(self) -> Span:
        """The host's ports."""
        return Span(self.start, self.end)

    @property
    def offset(self) -> int:
        """What is added to a host port to get the guest's."""
        return self.to - self.start


class PortForward(NamedTuple):
    """One ``<portForward>`` as it was declared."""

    proto: Proto
    ranges: tuple[Range, ...] = ()
    address: Address | None = None
    dev: str | None = None
    source: Subnet | None = None
    mac: str | None = None

    @property
    def listen(self) -> Listen:
        """Which packets it takes, but for their ports."""
        return Listen(self.proto, self.address, self.dev, self.source)


class HostAddress(NamedTuple):
    """One ``<host>``: an address of the guest, of the NIC with ``mac`` where given."""

    ip: Address
    mac: str | None = None


class Declaration(NamedTuple):
    """The whole ``<forwards>`` element of one guest."""

    port_forwards: tuple[PortForward, ...] = ()
    hosts: tuple[HostAddress, ...] = ()
    isolate: bool = False


class Nic(NamedTuple):
    """One ``<interface>`` of a domain.

    ``source`` is the name of the bridge or of the libvirt network; ``type`` is libvirt's
    word for the kind of interface (``bridge``, ``network``, ``user``, ``direct``, …).
    """

    mac: str
    type: str
    source: str = ""


class Domain(NamedTuple):
    """What we need of a domain XML; ``declaration`` is None without our metadata."""

    name: str
    uuid: str
    nics: tuple[Nic, ...] = ()
    declaration: Declaration | None = None


class Reservation(NamedTuple):
    """A fixed DHCP lease: libvirt's ``<dhcp><host>`` or networkd's static lease."""

    ip: Address
    mac: str | None = None
    name: str | None = None


class Network(NamedTuple):
    """A libvirt network: ``mode`` is that of ``<forward>``, empty for an isolated one."""

    name: str
    uuid: str
    bridge: str
    mode: str = ""
    subnets: tuple[Subnet, ...] = ()
    reservations: tuple[Reservation, ...] = ()


class Sighting(NamedTuple):
    """An address that was seen at a hardware address on the wire, and what it was seen in."""

    ip: Address
    mac: str
    origin: Origin


class Endpoint(NamedTuple):
    """Where a guest sits: one of its addresses, and the bridge behind which it answers."""

    ip: Address
    bridge: str
    mac: str
    origin: Origin = "declared"


if TYPE_CHECKING:
    # A protocol takes long to make, and is nothing to a program that runs.
    class WithOrigin(Protocol):
        """Anything that tells where an address was learned."""

        @property
        def origin(self) -> Origin:
            """Return the origin."""


def rank(item: WithOrigin) -> int:
    """Return how far an address is trusted by its origin: 0 for the most trusted."""
    return ORIGINS.index(item.origin)


class Forward(NamedTuple):
    """One contiguous mapping of host ports to guest ports: the unit of rules and claims."""

    proto: Proto
    start: int
    end: int
    to: int
    address: Address | None = None
    dev: str | None = None
    source: Subnet | None = None
    mac: str | None = None

    @property
    def listen(self) -> Listen:
        """Which packets it takes, but for their ports."""
        return Listen(self.proto, self.address, self.dev, self.source)

    @property
    def span(self) -> Span:
        """The host's ports."""
        return Span(self.start, self.end)

    @property
    def guest_span(self) -> Span:
        """The guest's ports."""
        return Span(self.to, self.end + self.offset)

    @classmethod
    def of(cls, listen: Listen, span: Span, offset: int, mac: str | None = None) -> Forward:
        """Return the forward of ``span`` to the guest's ports ``offset`` above, on the NIC with ``mac``."""
        proto, address, dev, source = listen
        return cls(proto, *span, span.start + offset, address, dev, source, mac)

    @property
    def offset(self) -> int:
        """What is added to a host port to get the guest's."""
        return self.to - self.start

    @property
    def shifted(self) -> bool:
        """Whether the guest's ports differ from the host's."""
        return self.to != self.start


class Guest(NamedTuple):
    """All that the table says of one guest; records in the run directory hold just this.

    ``nics`` and ``hosts`` are what the domain XML says, ``endpoints`` what was made of it;
    ``conflicts`` are the forwards that are kept out, each with the reason; ``contested`` are the
    endpoints that another guest holds, and while there are any, all forwards are kept out. ``lans``
    are the subnets the host has on the guest's bridges, ``gateways`` its own addresses there.
    """

    uuid: str
    name: str
    phase: Phase = "running"
    isolate: bool = False
    forwards: tuple[Forward, ...] = ()
    conflicts: tuple[tuple[Forward, str], ...] = ()
    nics: tuple[Nic, ...] = ()
    hosts: tuple[HostAddress, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()
    lans: tuple[tuple[Subnet, str], ...] = ()
    gateways: tuple[Address, ...] = ()
    contested: tuple[Endpoint, ...] = ()

    @property
    def networks(self) -> tuple[str, ...]:
        """The names of the libvirt networks that the guest is plugged into."""
        return tuple(dict.fromkeys(nic.source for nic in self.nics if nic.type == "network"))

    def endpoints_for(self, forward: Forward) -> tuple[Endpoint, ...]:
        """Return the endpoint that serves ``forward`` in each family, IPv4 first; may be empty."""
        chosen: dict[int, Endpoint] = {}
        for endpoint in self.endpoints:
            version = endpoint.ip.version
            if version not in chosen and forward.mac in (None, endpoint.mac) and fits(forward, version):
                chosen[version] = endpoint
        return tuple([chosen[version] for version in sorted(chosen)])

    def served(self) -> Iterator[tuple[Forward, tuple[Endpoint, ...]]]:
        """Yield each forward that has an endpoint, with those that serve it."""
        # Most forwards of a guest are limited alike.
        known: dict[tuple[object, ...], tuple[Endpoint, ...]] = {}
        for forward in self.forwards:
            limits = forward.mac, forward.address, forward.source
            if limits not in known:
                known[limits] = self.endpoints_for(forward)
            if known[limits]:
                yield forward, known[limits]


Guests = dict[str, Guest | None]
"""Guests by UUID; None for one that is absent."""


def fits(forward: Forward, version: int) -> bool:
    """Tell whether packets of IP ``version`` can match ``forward``."""
    address, source = forward.address, forward.source
    return (address is None or address.version == version) and (source is None or source.version == version)
