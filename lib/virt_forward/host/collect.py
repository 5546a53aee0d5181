"""What the host knows: interfaces, networkd's files, libvirt's networks. Reads only."""

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from types import MappingProxyType

from virt_forward.addresses import leases, networkd, probe
from virt_forward.addresses.attachments import Attachment, Bridge, Facts
from virt_forward.addresses.probe import Heard
from virt_forward.claims import absent
from virt_forward.config import Config
from virt_forward.errors import VirtForwardError
from virt_forward.host.process import run
from virt_forward.model import Address, Endpoint, Network, Reservation, Sighting
from virt_forward.text import output

LIBVIRT_NETWORKS = "/run/libvirt/network"
"""Where libvirt keeps the status of its active networks, as NAME.xml."""

NOTHING_HEARD: Heard = MappingProxyType({})

VERIFY_SECONDS = 0.1
"""How long a NIC may take to answer at an address that the neighbour table tells of it."""

Interfaces = dict[str, list[IPv4Interface | IPv6Interface]]


def facts(
    config: Config,
    known: Iterable[Network],
    wanted: Iterable[str] = (),
    heard: Heard = NOTHING_HEARD,
) -> Facts:
    """Return the facts that resolving a guest needs.

    ``known`` are the networks we have records of; of those ``wanted`` by name, libvirt's
    own status files are read where we have none.
    """
    networks = {network.name: network for network in known}
    networks |= {network.name: network for network in active_networks(set(wanted) - set(networks))}
    interfaces = read_interfaces()
    own = frozenset(address.ip for addresses in interfaces.values() for address in addresses)
    files = cache(networkd_files)
    return Facts(
        tuple(networks.values()),
        cache(lambda name: bridge(name, interfaces, files(), heard.get(name, ()))),
        own,
        config.learn,
        verify,
    )


def bridge(
    name: str, interfaces: Interfaces, files: Mapping[str, str], heard: tuple[Sighting, ...] = ()
) -> Bridge:
    """Return what the kernel and networkd's configuration say of a bridge."""
    configured = networkd.bridge_config(files, name, text(f"/sys/class/net/{name}/address").strip())
    addresses = dict.fromkeys([*interfaces.get(name, []), *configured.addresses])
    return Bridge(
        tuple(addresses),
        configured.leases,
        cache(lambda: dhcp_leases(name)),
        cache(lambda: neighbours(name)),
        tuple(reversed(heard)),
        uplink=name in default_route_devices(),
    )


def lease_files(bridge_name: str) -> tuple[str, str]:
    """Return where the DHCP servers of networkd and libvirt keep the leases of a bridge."""
    return (
        f"/var/lib/systemd/network/dhcp-server-lease/{bridge_name}",
        f"/var/lib/libvirt/dnsmasq/{bridge_name}.status",
    )


def dhcp_leases(bridge_name: str) -> tuple[Reservation, ...]:
    """Return the leases that are valid now on a bridge."""
    of_networkd, of_libvirt = map(text, lease_files(bridge_name))
    now = time.time()
    return (*leases.networkd(of_networkd, now), *leases.dnsmasq(of_libvirt, now))


def neighbours(bridge_name: str) -> leases.Neighbours:
    """Return the neighbour table of a bridge; empty where the bridge does not exist."""
    return leases.neighbours(run(["ip", "-j", "neighbour", "show", "dev", bridge_name]).stdout)


def verify(attachment: Attachment, addresses: tuple[Address, ...]) -> frozenset[Address]:
    """Ask a NIC at some addresses, and return those at which it has answered within VERIFY_SECONDS."""
    from virt_forward.host import probe_socket

    heard = probe_socket.once(probe.verifying(attachment, addresses), VERIFY_SECONDS)
    return frozenset(seen.ip for seen in heard.get(attachment.bridge, ()) if seen.origin == "probed")


def confirm_neighbour(endpoint: Endpoint) -> None:
    """Make the kernel ask a neighbour whether it is still there, as if it had a packet for it.

    NTF_USE of rtnetlink(7): an entry that has not been confirmed lately is asked by ARP or ND
    after five seconds, and fails where nobody answers. No entry is made or changed.
    """
    run(["ip", "neighbour", "change", str(endpoint.ip), "dev", endpoint.bridge, "use"])


def default_route_devices() -> set[str]:
    """Return the interfaces that have a default route (proc_net_route(5), RTF_UP)."""
    ipv4 = (line.split() for line in text("/proc/net/route").splitlines()[1:])
    ipv6 = (line.split() for line in text("/proc/net/ipv6_route").splitlines())
    found = {words[0] for words in ipv4 if len(words) > 7 and words[1] == words[7] == "0" * 8}
    return found | {words[9] for words in ipv6 if len(words) > 9 and words[:2] == ["0" * 32, "00"]} - {"lo"}


def own_addresses() -> frozenset[Address]:
    """Return all addresses of the host."""
    return frozenset(address.ip for addresses in read_interfaces().values() for address in addresses)


def here() -> absent.Host:
    """Return what a forward can listen on."""
    import socket

    words = ["route", "show", "table", "local", "type", "local"]
    routes = (absent.parse_local_routes(run(["ip", "-j", family, *words]).stdout) for family in ("-4", "-6"))
    devices = frozenset(name for _, name in socket.if_nameindex())
    return absent.Host(own_addresses(), tuple(subnet for found in routes for subnet in found), devices)


def read_interfaces() -> Interfaces:
    """Return the addresses of every interface, as ip-address(8) tells them."""
    result = run(["ip", "-j", "address", "show"])
    if result.status:
        raise VirtForwardError(
            f"ip: {output(result.stderr) or result.status}", "install the package iproute2"
        )
    found: Interfaces = {}
    # ip writes control characters in the name of an interface as they are.
    for link in json.loads(result.stdout or "[]", strict=False):
        for item in link.get("addr_info", []):
            if "local" in item:
                address = ip_interface(f"{item['local']}/{item['prefixlen']}")
                found.setdefault(link["ifname"], []).append(address)
    return found


def networkd_files() -> dict[str, str]:
    """Return the text of every .network file in force, its drop-ins appended."""
    paths: dict[str, str] = {}
    for directory in reversed(networkd.DIRECTORIES):
        paths |= {
            name: os.path.join(directory, name) for name in names(directory) if name.endswith(".network")
        }
    return {name: "\n".join(_with_dropins(name, path)) for name, path in paths.items()}


def _with_dropins(name: str, path: str) -> Iterator[str]:
    yield text(path)
    paths: dict[str, str] = {}
    for directory in reversed(networkd.DIRECTORIES):
        folder = os.path.join(directory, f"{name}.d")
        paths |= {item: os.path.join(folder, item) for item in names(folder) if item.endswith(".conf")}
    yield from (text(paths[item]) for item in sorted(paths))


def active_networks(names: Iterable[str]) -> list[Network]:
    """Return those libvirt networks of ``names`` that are active, by libvirt's own status files."""
    return [network for name in sorted(names) for network in _status_file(name)]


def _status_file(name: str) -> list[Network]:
    path = os.path.join(LIBVIRT_NETWORKS, f"{name}.xml")
    if "/" in name or not os.path.exists(path):
        return []
    from virt_forward.metadata.network import parse_network

    try:
        return [parse_network(text(path).encode())[0]]
    except VirtForwardError:
        return []


def names(directory: str) -> list[str]:
    """Return the names in a directory; none where it does not exist or cannot be read."""
    try:
        return os.listdir(directory)
    except OSError:
        return []


def text(path: str) -> str:
    """Return a file's text; nothing where it is not there or cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
