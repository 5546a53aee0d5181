"""The bridge of guests that reach the outside by NAT: networkd's files, and forwarding on the uplinks."""

from collections.abc import Iterator
from ipaddress import IPv4Interface, IPv6Network
from posixpath import basename
from typing import NamedTuple

from virt_forward.addresses import networkd
from virt_forward.model import Address
from virt_forward.setup.facts import Link, SetupFacts
from virt_forward.setup.options import File

DIRECTORY = "/etc/systemd/network"
MARK = "# Created by virt-forward init."
PUBLIC_DNS = "9.9.9.9"
"""What guests ask where the host has no name server that they could ask."""

PER_INTERFACE = 256
"""The version of systemd since which forwarding is set for each interface, and IPForward= is ignored."""


class Bridge(NamedTuple):
    """The bridge to be: its address with the prefix length, and its IPv6 network, None without IPv6."""

    name: str
    mac: str
    address: IPv4Interface
    prefix: IPv6Network | None
    dns: tuple[Address, ...] = ()

    @property
    def gateway6(self) -> str:
        """The bridge's own IPv6 address."""
        return str(self.prefix[1]) if self.prefix else ""


def netdev(name: str, mac: str) -> str:
    """Return the .netdev file of a bridge (systemd.netdev(5))."""
    return f"{MARK}\n[NetDev]\nName={name}\nKind=bridge\nMACAddress={mac}\n"


def network(bridge: Bridge, facts: SetupFacts) -> str:
    """Return the .network file of a bridge (systemd.network(5))."""
    lines = [
        MARK,
        *("[Match]", f"Name={bridge.name}", ""),
        # The bridge has no carrier before the first guest starts, and the boot does not wait for it.
        *("[Link]", "RequiredForOnline=no", ""),
        *("[Network]", "ConfigureWithoutCarrier=yes", f"Address={bridge.address}"),
        *_ipv6(bridge),
        "DHCPServer=yes",
        *_forwarding(bridge, facts.systemd),
        *("", "[DHCPServer]", *_pool(bridge.address), *_dns(bridge, facts)),
    ]
    if bridge.prefix:
        lines += ["", "[IPv6Prefix]", f"Prefix={bridge.prefix}"]
        servers = [str(server) for server in bridge.dns if server.version == 6]
        lines += ["", "[IPv6SendRA]", f"DNS={' '.join(servers)}"] if servers else []
    return "\n".join(lines) + "\n"


def _ipv6(bridge: Bridge) -> list[str]:
    if bridge.prefix is None:
        return ["LinkLocalAddressing=no", "IPv6AcceptRA=no"]
    # The bridge is the router here: what guests advertise does not count.
    return [f"Address={bridge.gateway6}/{bridge.prefix.prefixlen}", "IPv6SendRA=yes", "IPv6AcceptRA=no"]


def _forwarding(bridge: Bridge, systemd: int) -> list[str]:
    if systemd < PER_INTERFACE:
        return [f"IPForward={'yes' if bridge.prefix else 'ipv4'}"]
    return ["IPv4Forwarding=yes", *(["IPv6Forwarding=yes"] if bridge.prefix else [])]


def _pool(address: IPv4Interface) -> list[str]:
    """Return the pool: 100 addresses at most, and none of the lower ones, which are for static leases."""
    size = address.network.num_addresses
    offset = min(size // 2, 100)
    return [f"PoolOffset={offset}", f"PoolSize={min(size - offset - 1, 100)}"]


def _dns(bridge: Bridge, facts: SetupFacts) -> list[str]:
    servers = [server for server in bridge.dns if server.version == 4]
    if not servers and facts.dns_follows:
        return []
    servers = servers or [server for server in facts.nameservers if server.version == 4]
    return [f"DNS={' '.join(map(str, servers)) or PUBLIC_DNS}"]


def forwarding_files(bridge: Bridge, uplinks: list[Link], stem: str, facts: SetupFacts) -> Iterator[File]:
    """Yield the files that make the kernel forward what arrives on the uplinks, now and after a boot.

    For IPv4 the flag of the interface decides on which a packet arrives, for IPv6 the one for all
    interfaces (ip-sysctl.rst). networkd before 256 sets both for all interfaces, by the bridge's own file.
    """
    if facts.systemd >= PER_INTERFACE:
        for link in uplinks:
            if link.network_file:
                folder = f"{DIRECTORY}/{basename(link.network_file)}.d"
                yield File(f"{folder}/{stem}.conf", _drop_in(link, bridge, facts))
    settings = [*_settings(bridge, uplinks, facts)]
    if settings:
        yield File(f"/etc/sysctl.d/{stem}.conf", "\n".join([MARK, *settings]) + "\n")


def _drop_in(link: Link, bridge: Bridge, facts: SetupFacts) -> str:
    lines = [MARK, "[Network]", "IPv4Forwarding=yes"]
    if bridge.prefix:
        lines.append("IPv6Forwarding=yes")
        content = facts.networks.get(basename(link.network_file), "")
        keys = {key for name, items in networkd.parse_ini(content) if name == "Network" for key, _ in items}
        # With forwarding networkd takes router advertisements no longer unless it is told to.
        lines += [] if "IPv6AcceptRA" in keys else ["IPv6AcceptRA=yes"]
    return "\n".join(lines) + "\n"


def _settings(bridge: Bridge, uplinks: list[Link], facts: SetupFacts) -> Iterator[str]:
    if bridge.prefix:
        for link in facts.links:
            if link.kernel_ra and not link.network_file:
                # A router takes advertisements of others with 2 only; set before it becomes one.
                yield f"net/ipv6/conf/{link.name}/accept_ra = 2"
    if facts.systemd >= PER_INTERFACE:
        for link in uplinks:
            if not link.network_file:
                yield f"net/ipv4/conf/{link.name}/forwarding = 1"
        if bridge.prefix:
            yield "net/ipv6/conf/all/forwarding = 1"
