"""Reading the host's facts: interfaces, networkd's files, libvirt's networks. Nothing is changed."""

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from types import MappingProxyType

from virt_forward.addresses import leases, networkd, probe
from virt_forward.addresses.attachments import Attachment, BridgeFacts, HostFacts
from virt_forward.addresses.probe import Sightings
from virt_forward.claims import absent
from virt_forward.config import Config
from virt_forward.errors import VirtForwardError
from virt_forward.host import libvirt_networks
from virt_forward.host.files import list_directory, read_text
from virt_forward.host.process import run
from virt_forward.model import Address, Endpoint, Network, Reservation, Sighting
from virt_forward.text import output

NO_SIGHTINGS: Sightings = MappingProxyType({})

VERIFY_SECONDS = 0.1
"""How long a NIC may take to answer a probe that verifies an address."""

Interfaces = dict[str, list[IPv4Interface | IPv6Interface]]


def host_facts(
    config: Config,
    recorded: Iterable[Network],
    names: Iterable[str] = (),
    sightings: Sightings = NO_SIGHTINGS,
) -> HostFacts:
    """Return the facts that resolving a guest needs.

    ``recorded`` are the networks that we have records of; of those in ``names``, libvirt's own status
    files count more (libvirt_networks.current). Raises VirtForwardError where the interfaces cannot
    be read.
    """
    interfaces = read_interfaces()
    files = cache(networkd_files)
    return HostFacts(
        tuple(libvirt_networks.current(recorded, names).values()),
        cache(lambda name: bridge_facts(name, interfaces, files(), sightings.get(name, ()))),
        _own_addresses(interfaces),
        config.learn,
        verify_addresses,
    )


def bridge_facts(
    name: str, interfaces: Interfaces, files: Mapping[str, str], sightings: tuple[Sighting, ...] = ()
) -> BridgeFacts:
    """Return what the kernel and networkd's configuration have about a bridge."""
    configured = networkd.bridge_config(files, name, read_text(f"/sys/class/net/{name}/address").strip())
    addresses = dict.fromkeys([*interfaces.get(name, []), *configured.addresses])
    return BridgeFacts(
        tuple(addresses),
        configured.leases,
        cache(lambda: dhcp_leases(name)),
        cache(lambda: neighbours(name)),
        tuple(reversed(sightings)),
        uplink=name in default_route_devices(),
    )


def lease_files(bridge_name: str) -> tuple[str, str]:
    """Return the paths of the lease files of networkd and of libvirt's dnsmasq for a bridge."""
    return (
        f"/var/lib/systemd/network/dhcp-server-lease/{bridge_name}",
        f"/var/lib/libvirt/dnsmasq/{bridge_name}.status",
    )


def dhcp_leases(bridge_name: str) -> tuple[Reservation, ...]:
    """Return the leases on a bridge that have not expired, networkd's first."""
    networkd_text, libvirt_text = map(read_text, lease_files(bridge_name))
    now = time.time()
    return (*leases.networkd(networkd_text, now), *leases.dnsmasq(libvirt_text, now))


def neighbours(bridge_name: str) -> leases.Neighbours:
    """Return the neighbour table of a bridge; empty where the bridge does not exist."""
    return leases.neighbours(run(["ip", "-j", "neighbour", "show", "dev", bridge_name]).stdout)


def verify_addresses(attachment: Attachment, addresses: tuple[Address, ...]) -> frozenset[Address]:
    """Probe a NIC at some addresses, and return those at which it has answered within VERIFY_SECONDS."""
    from virt_forward.host import probe_socket

    sightings = probe_socket.probe_once(probe.verification_probes(attachment, addresses), VERIFY_SECONDS)
    return frozenset(
        sighting.ip for sighting in sightings.get(attachment.bridge, ()) if sighting.origin == "probed"
    )


def confirm_neighbour(endpoint: Endpoint) -> None:
    """Make the kernel confirm a neighbour entry, as if it had a packet to send to it.

    NTF_USE of rtnetlink(7): the kernel probes an entry that was not confirmed recently by ARP or ND
    after five seconds, and marks it failed without an answer. No entry is added or changed.
    """
    run(["ip", "neighbour", "change", str(endpoint.ip), "dev", endpoint.bridge, "use"])


def default_route_devices() -> set[str]:
    """Return the interfaces with a default route (proc_net_route(5), /proc/net/ipv6_route)."""
    ipv4 = (line.split() for line in read_text("/proc/net/route").splitlines()[1:])
    ipv6 = (line.split() for line in read_text("/proc/net/ipv6_route").splitlines())
    found = {words[0] for words in ipv4 if len(words) > 7 and words[1] == words[7] == "0" * 8}
    return found | {words[9] for words in ipv6 if len(words) > 9 and words[:2] == ["0" * 32, "00"]} - {"lo"}


def _own_addresses(interfaces: Interfaces) -> frozenset[Address]:
    return frozenset(address.ip for addresses in interfaces.values() for address in addresses)


def listen_targets() -> absent.Host:
    """Return the addresses, local subnets and devices that a forward can listen on."""
    import socket

    words = ["route", "show", "table", "local", "type", "local"]
    routes = (absent.parse_local_routes(run(["ip", "-j", family, *words]).stdout) for family in ("-4", "-6"))
    devices = frozenset(name for _, name in socket.if_nameindex())
    return absent.Host(
        _own_addresses(read_interfaces()), tuple(subnet for found in routes for subnet in found), devices
    )


def read_interfaces() -> Interfaces:
    """Return the addresses of each interface, from ip-address(8). Raises VirtForwardError where it fails."""
    result = run(["ip", "-j", "address", "show"])
    if result.status:
        raise VirtForwardError(
            f"ip: {output(result.stderr) or result.status}", "install the package iproute2"
        )
    found: Interfaces = {}
    # ip does not escape control characters in the name of an interface.
    for link in json.loads(result.stdout or "[]", strict=False):
        for item in link.get("addr_info", []):
            if "local" in item:
                address = ip_interface(f"{item['local']}/{item['prefixlen']}")
                found.setdefault(link["ifname"], []).append(address)
    return found


def networkd_files() -> dict[str, str]:
    """Return by name the text of each .network file in use, its drop-ins appended (systemd.network(5))."""
    paths: dict[str, str] = {}
    for directory in reversed(networkd.DIRECTORIES):
        paths |= {
            name: os.path.join(directory, name)
            for name in list_directory(directory)
            if name.endswith(".network")
        }
    return {name: "\n".join(_with_dropins(name, path)) for name, path in paths.items()}


def _with_dropins(name: str, path: str) -> Iterator[str]:
    yield read_text(path)
    paths: dict[str, str] = {}
    for directory in reversed(networkd.DIRECTORIES):
        folder = os.path.join(directory, f"{name}.d")
        paths |= {
            item: os.path.join(folder, item) for item in list_directory(folder) if item.endswith(".conf")
        }
    yield from (read_text(paths[item]) for item in sorted(paths))
