"""Names and addresses that nothing on the host uses."""

import itertools
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Interface, IPv4Network, IPv6Network, ip_network

from virt_forward import text
from virt_forward.addresses import networkd
from virt_forward.errors import VirtForwardError
from virt_forward.model import Subnet
from virt_forward.setup.facts import SetupFacts
from virt_forward.setup.options import Options

BRIDGES = "vmbr"
"""Not virbr: libvirt numbers its own bridges with that, and its network "default" has virbr0."""


def bridge(options: Options, facts: SetupFacts) -> str:
    """Return the name of the new bridge. Raises VirtForwardError if it is taken, or one is set up already."""
    if options.bridge is None:
        if facts.marked:
            raise VirtForwardError(
                f"{facts.marked[0]} is set up already, by {facts.netdevs[facts.marked[0]]}",
                "name another bridge with --bridge to set up a second one",
            )
        names = (f"{BRIDGES}{number}" for number in itertools.count())
        return next(name for name in names if not _bridge_user(name, facts))
    user = _bridge_user(options.bridge, facts)
    if user:
        raise VirtForwardError(
            f"the name {options.bridge} is taken: {user}", "choose another name with --bridge"
        )
    return options.bridge


def _bridge_user(name: str, facts: SetupFacts) -> str:
    for network in facts.libvirt:
        if network.bridge == name:
            return f"libvirt's network {text.quote(network.name)} makes a bridge of that name"
    if name in facts.netdevs:
        return f"{facts.netdevs[name]} makes it"
    return "an interface of this host has it" if facts.link(name) else ""


def mac(options: Options, facts: SetupFacts) -> str:
    """Return the MAC address of the bridge: fixed, as guests and their leases know the gateway by it."""
    # QEMU's prefix; its second lowest bit makes it a locally administered address.
    return options.mac or ":".join(f"{byte:02x}" for byte in (0x52, 0x54, 0x00, *facts.random[:3]))


def subnet(options: Options, facts: SetupFacts) -> IPv4Interface:
    """Return the address of the bridge with its prefix length. Raises VirtForwardError if it overlaps."""
    if options.subnet is not None:
        _need_free(options.subnet.network, "--subnet", facts)
        return options.subnet
    for network in _private():
        if not overlap(network, facts):
            return IPv4Interface((network[1], network.prefixlen))
    raise VirtForwardError("no private IPv4 network is free on this host", "name one with --subnet")


def _private() -> Iterator[IPv4Network]:
    yield from IPv4Network("10.10.0.0/16").subnets(new_prefix=24)
    yield from IPv4Network("172.30.0.0/16").subnets(new_prefix=24)
    yield from IPv4Network("192.168.0.0/16").subnets(new_prefix=24)


def prefix(options: Options, facts: SetupFacts) -> IPv6Network | None:
    """Return the IPv6 network of the bridge: by default a unique local one, with a random ID (RFC 4193)."""
    if options.ipv6 is False:
        return None
    if isinstance(options.ipv6, IPv6Network):
        _need_free(options.ipv6, "--ipv6", facts)
        return options.ipv6
    # fd00::/8, 40 random bits, subnet 0.
    return IPv6Network((bytes([0xFD, *facts.random[3:8], *bytes(10)]), 64))


def _need_free(network: Subnet, option: str, facts: SetupFacts) -> None:
    user = overlap(network, facts)
    if user:
        raise VirtForwardError(
            f"{option} {network}: overlaps with {user}", "choose a network that is not in use"
        )


def overlap(network: Subnet, facts: SetupFacts) -> str:
    """Return who on this host uses addresses of a network; empty if nobody."""
    for link in facts.links:
        for address in link.addresses:
            if _overlaps(network, address.network):
                return f"{address} on {text.word(link.name)}"
    for destination, device in facts.routes:
        if _overlaps(network, destination):
            return f"the route to {destination} by {text.word(device)}"
    for other in facts.libvirt:
        for each in other.subnets:
            if _overlaps(network, each):
                return f"{each} of libvirt's network {text.quote(other.name)}"
    for name, content in facts.networks.items():
        for each in _addresses(content):
            if _overlaps(network, each):
                return f"{each} in {name}"
    return ""


def _addresses(content: str) -> Iterator[Subnet]:
    for _, items in networkd.parse_ini(content):
        for value in (value for key, value in items if key == "Address" and "/" in value):
            try:
                yield ip_network(value, strict=False)
            except ValueError:
                continue


def _overlaps(one: Subnet, other: Subnet) -> bool:
    return one.version == other.version and one.overlaps(other)


def file_name(properties: Mapping[str, str], facts: SetupFacts, taken_by: str = "") -> str:
    """Return the name, without its suffix, of a .network file that is the first to match an interface.

    networkd takes the first one in the order of their names (systemd.network(5)). ``properties`` are the
    interface's by the keys of [Match], ``taken_by`` is the file that it has now.
    """
    name = properties["Name"]
    contents = {file: networkd.parse_ini(content) for file, content in facts.networks.items()}
    others = [file for file, sections in contents.items() if networkd.matches(sections, properties)]
    first = min([*others, *filter(None, [taken_by])], default=None)
    for number in ("98", "50", "10", "00"):
        if first is None or f"{number}-{name}.network" < first:
            return f"{number}-{name}"
    raise VirtForwardError(
        f"{first} matches {name} as well, and networkd would take it before a file of ours",
        f"rename it, or limit its [Match] section so that it does not match {name}",
    )
