"""What the host has: the facts that setting up a bridge depends on. All of it is plain data."""

from collections.abc import Mapping
from ipaddress import IPv4Interface, IPv6Interface
from types import MappingProxyType
from typing import Literal, NamedTuple

from virt_forward.model import Address, Subnet

Manager = Literal["systemd-networkd", "NetworkManager", "ifupdown", ""]


class Link(NamedTuple):
    """A network interface. ``kind`` is that of ip-link(8), empty for hardware; ``master`` its bridge or bond.

    ``manager`` is the program that configures it, empty if none is known, and ``network_file`` the path of
    its .network file if that is networkd; ``dynamic`` tells that it has its IPv4 address by DHCP,
    ``kernel_ra`` that the kernel itself configures it by router advertisements (ip-sysctl.rst).
    """

    name: str
    mac: str = ""
    kind: str = ""
    ethernet: bool = True
    wifi: bool = False
    master: str = ""
    addresses: tuple[IPv4Interface | IPv6Interface, ...] = ()
    gateways: tuple[Address, ...] = ()
    dynamic: bool = False
    manager: Manager = ""
    network_file: str = ""
    kernel_ra: bool = False


class Chain(NamedTuple):
    """A base chain of the host's ruleset: ``hook`` and ``type`` as in nft(8).

    ``accepts`` are the conntrack states that it accepts for all packets, ``ends`` tells that its last rule
    drops or rejects whatever reaches it, ``drops`` that some rule does. ``owner`` is the program that writes
    the table, empty for a table written by hand. ``admits`` tells that a rule accepts all connections that we
    forward.
    """

    family: str
    table: str
    name: str
    type: str
    hook: str
    policy: str = "accept"
    accepts: frozenset[str] = frozenset()
    drops: bool = False
    ends: bool = False
    owner: str = ""
    admits: bool = False


class LibvirtNetwork(NamedTuple):
    """A network defined in libvirt, running or not."""

    name: str
    bridge: str
    subnets: tuple[Subnet, ...] = ()


class SetupFacts(NamedTuple):
    """All facts about the host.

    ``systemd`` is its version. ``networks`` maps the names of networkd's .network files to their text with
    drop-ins, ``netdevs`` the names of interfaces to the .netdev files that create them; ``marked`` are the
    bridges that ``init`` has set up before. ``routes`` are the destinations in all routing tables but the
    default. ``nameservers`` are the host's, those on the host itself left out; ``dns_follows`` tells that
    networkd's DHCP server finds them on its own. ``chains`` is None if the ruleset cannot be read;
    ``loaded_at_boot`` tells that nftables.service loads ``nftables_conf``, and ``includes`` that this file
    includes ours. ``random`` is 16 random bytes.
    """

    systemd: int
    networkd: bool = True
    links: tuple[Link, ...] = ()
    uplinks: tuple[str, ...] = ()
    routes: tuple[tuple[Subnet, str], ...] = ()
    networks: Mapping[str, str] = MappingProxyType({})
    netdevs: Mapping[str, str] = MappingProxyType({})
    marked: tuple[str, ...] = ()
    libvirt: tuple[LibvirtNetwork, ...] = ()
    chains: tuple[Chain, ...] | None = None
    nameservers: tuple[Address, ...] = ()
    dns_follows: bool = True
    nftables_conf: str = "/etc/nftables.conf"
    loaded_at_boot: bool = True
    includes: bool = False
    random: bytes = bytes(16)

    def link(self, name: str) -> Link | None:
        """Return an interface by its name, None if the host does not have it."""
        return next((link for link in self.links if link.name == name), None)
