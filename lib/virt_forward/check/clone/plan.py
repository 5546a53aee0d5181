"""How the clone is built: commands of ip and bridge, sysctls and wires, from the host and the probes."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from virt_forward.check.clone.host_state import HostState, Link, Route, is_plain
from virt_forward.check.clone.packets import Flow
from virt_forward.check.clone.probes import Probe
from virt_forward.model import Address, Endpoint

MAX_LINKS = 400
"""The most links that are copied; those that probes pass come first."""
FIRST_INDEX = 1 << 20
"""The index of the first outside end."""
CLIENT_MAC = "02:76:66:00:00:01"
"""The hardware address of all that is outside; locally administered (IEEE 802)."""


class Wire(NamedTuple):
    """A link of the clone whose other end is outside: ``outside`` is the name of that end."""

    link: str
    outside: str


class Plan(NamedTuple):
    """The clone, as steps in this order.

    ``links`` are the words of ``ip link add`` with and without the index of the host's link, ``configure``
    the lines for ``ip -batch`` after that, ``rules`` those of an IP version, ``vlans`` for ``bridge -batch``;
    ``sysctls`` are paths below /proc/sys/net with values. ``uplinks`` are the wires by which probes enter, by
    device, ``guests`` those by which they leave, by bridge and MAC address; ``macs`` the hardware addresses
    of the links.
    """

    links: tuple[tuple[str, str], ...]
    configure: tuple[str, ...]
    rules: tuple[tuple[int, str], ...]
    vlans: tuple[str, ...]
    sysctls: tuple[tuple[str, str], ...]
    uplinks: Mapping[str, Wire]
    guests: Mapping[tuple[str, str], Wire]
    macs: Mapping[str, str]


class _Port(NamedTuple):
    """A bridge port with a wire, and the link of the host that it stands for."""

    bridge: str
    link: Link


def plan(host: HostState, probes: Iterable[Probe]) -> Plan:
    """Return how to build a clone in which the probes can be sent."""
    probes = tuple(probes)
    endpoints = tuple(dict.fromkeys(probe.endpoint for probe in probes))
    by_endpoint = _guest_ports(host, endpoints)
    entries = {name: _uplink_port(host, name, by_endpoint.values()) for name in _devices(probes)}
    ports = {port.link.name: port for port in (*by_endpoint.values(), *entries.values()) if port}
    links = _chosen(host, probes, ports)
    copied = {link.name: link for link in links}
    macs = {name: _mac(link, number) for number, (name, link) in enumerate(copied.items())}
    wires = {name: Wire(name, f"out{number}") for number, name in enumerate(copied)}
    sysctls = _sysctls(host, copied)
    return Plan(
        tuple(_add(link, macs, wires) for link in links if link.name != "lo"),
        (
            *_ports(ports),
            *_ups(links),
            *_addresses(links),
            *_routes(host, probes, copied),
            *_neighbours(host, probes, copied, endpoints),
        ),
        tuple(_rules(host)),
        tuple(_vlans(host, ports, copied)),
        sysctls,
        {name: wires[port.link.name if port else name] for name, port in entries.items()},
        {key: wires[port.link.name] for key, port in by_endpoint.items()},
        macs,
    )


def flow(probe: Probe, built: Plan, sport: int) -> Flow:
    """Return where the first packet of a probe goes, from source port ``sport``."""
    mac = built.macs[probe.device]
    return Flow(CLIENT_MAC, mac, probe.forward.proto, probe.client, probe.address, sport, probe.port)


def _devices(probes: Iterable[Probe]) -> list[str]:
    return list(dict.fromkeys(probe.device for probe in probes))


def _guest_ports(host: HostState, endpoints: Iterable[Endpoint]) -> dict[tuple[str, str], _Port]:
    """Return the port of each guest by bridge and MAC address.

    Guests share a port where nothing in the host's rules can tell their ports apart: every link costs
    some milliseconds.
    """
    found: dict[tuple[str, str], _Port] = {}
    shared: dict[str, _Port] = {}
    for endpoint in endpoints:
        bridge, tap = endpoint.bridge, _tap(host, endpoint)
        if tap and _is_distinct(host, tap, bridge):
            port = _Port(bridge, tap)
        else:
            port = shared.setdefault(bridge, _Port(bridge, tap or Link(f"vf-guest{len(shared)}", 0)))
        found[bridge, endpoint.mac] = port
    return found


def _tap(host: HostState, endpoint: Endpoint) -> Link | None:
    """Return the tap device of a guest: libvirt gives it the guest's MAC address, but for the first byte."""
    first = "fa" if endpoint.mac.startswith("fe") else "fe"
    wanted = first + endpoint.mac[2:]
    ports = [link for link in host.links if link.master == endpoint.bridge and link.up]
    return next((link for link in ports if link.mac == wanted), None)


def _is_distinct(host: HostState, port: Link, bridge: str) -> bool:
    """Tell whether rules or the bridge treat a port unlike others."""
    master = host.link(bridge)
    special = port.isolated or port.hairpin or (master is not None and master.vlan_filtering)
    return special or any(
        re.search(rf"(?<![\w.-]){re.escape(port.name)}(?![\w.-])", text) for text in _texts(host)
    )


def _texts(host: HostState) -> Iterator[str]:
    yield host.ruleset
    yield from (table.text for table in (*host.xtables, *host.legacy))


def _uplink_port(host: HostState, name: str, taken: Iterable[_Port]) -> _Port | None:
    """Return the port by which packets from outside enter a bridge, or None if ``name`` is no bridge."""
    link = host.link(name)
    if link is None or not link.is_bridge:
        return None
    names = {port.link.name for port in taken}
    ports = [port for port in host.links if port.master == name and port.up and port.name not in names]
    hardware = [port for port in ports if not port.kind]
    return _Port(name, next(iter((*hardware, *ports)), Link("vf-outside", 0)))


def _chosen(host: HostState, probes: Iterable[Probe], ports: Mapping[str, _Port]) -> list[Link]:
    """Return the links to copy: those on the way of probes, and what rules or addresses refer to."""
    needed = {name for probe in probes for name in (probe.device, probe.endpoint.bridge)}
    quoted = {*re.findall(r'"([^"]+)"', host.ruleset)}
    first = [link for link in host.links if link.name in needed]
    first += [port.link for port in ports.values()]
    others = [link for link in host.links if link.name in quoted or link.addresses]
    found = {link.name: link for link in (*first, *others)}
    # Bridges first, ports after them; names that the host has before those made here.
    chosen = [*found.values()][:MAX_LINKS]
    return sorted(chosen, key=lambda link: (link.number == 0, not link.is_bridge))


def _mac(link: Link, number: int) -> str:
    return (
        link.mac
        if re.fullmatch(r"(?!00:00:00:00:00:00)..(:..){5}", link.mac)
        else f"02:76:66:01:{number >> 8:02x}:{number & 255:02x}"
    )


def _add(link: Link, macs: Mapping[str, str], wires: Mapping[str, Wire]) -> tuple[str, str]:
    wire = wires[link.name]
    # Where both ends of a veth have the same index, the kernel may take a second to see that they are up.
    kind = f"type veth peer name {wire.outside} index {FIRST_INDEX + int(wire.outside[3:])} netns @outside@"
    if link.is_bridge:
        filtering = " vlan_filtering 1" if link.vlan_filtering else ""
        kind = f"type bridge forward_delay 0 stp_state 0 mcast_snooping 0{filtering}"
    index = f" index {link.number}" if link.number else ""
    return tuple(f"link add {link.name}{words} address {macs[link.name]} {kind}" for words in (index, ""))  # type: ignore[return-value]


def _ports(ports: Mapping[str, _Port]) -> Iterator[str]:
    for name, port in ports.items():
        yield f"link set {name} master {port.bridge}"
        flags = [f"{flag} on" for flag in ("isolated", "hairpin") if getattr(port.link, flag)]
        if flags:
            yield f"link set {name} type bridge_slave {' '.join(flags)}"


def _ups(links: Iterable[Link]) -> Iterator[str]:
    yield "link set lo up"
    yield from (f"link set {link.name} up" for link in links if link.up)


def _addresses(links: Iterable[Link]) -> Iterator[str]:
    for link in links:
        for item in link.addresses:
            if item.ip.is_loopback:
                continue
            peer = link.peers.get(item.ip)
            words = f"{item.ip} peer {peer}/{item.network.prefixlen}" if peer else str(item)
            # The routes are copied; duplicates are not looked for.
            yield f"address add {words} dev {link.name} noprefixroute{' nodad' if item.version == 6 else ''}"


def _routes(host: HostState, probes: Iterable[Probe], copied: Mapping[str, Link]) -> Iterator[str]:
    """Yield the routes that any probe or its answer may take, those without a gateway first."""
    relevant = _relevant(host, probes)
    for route in sorted(relevant, key=lambda route: bool(route.gateways)):
        if all(name in copied for name in route.devices):
            kind = "" if route.kind == "unicast" else f"{route.kind} "
            yield f"route add {kind}{route.destination} {route.words}"


def _relevant(host: HostState, probes: Iterable[Probe]) -> list[Route]:
    addresses = {address for probe in probes for address in (probe.client, probe.address, probe.endpoint.ip)}
    found = []
    for route in host.routes:
        network = route.destination
        if any(address.version == network.version and address in network for address in addresses):
            found.append(route)
    return found


def _rules(host: HostState) -> Iterator[tuple[int, str]]:
    for version in sorted({number for number, _ in host.rules}):
        yield version, "rule flush"
        yield from ((number, f"rule add {line}") for number, line in host.rules if number == version)


def _neighbours(
    host: HostState, probes: Iterable[Probe], copied: Mapping[str, Link], endpoints: Iterable[Endpoint]
) -> Iterator[str]:
    pairs: dict[tuple[Address, str], str] = {}
    pairs |= {(probe.client, probe.device): CLIENT_MAC for probe in probes}
    for route in _relevant(host, probes):
        pairs |= {(gateway, name): CLIENT_MAC for gateway in route.gateways for name in route.devices}
        # Without a gateway, every client is a neighbour.
        pairs |= {
            (probe.client, name): CLIENT_MAC
            for name in route.devices
            for probe in probes
            if not route.gateways and probe.client.version == route.destination.version
        }
    pairs |= {(endpoint.ip, endpoint.bridge): endpoint.mac for endpoint in endpoints}
    for (address, name), mac in pairs.items():
        if name in copied:
            yield f"neighbour replace {address} lladdr {mac} dev {name} nud permanent"


def _vlans(host: HostState, ports: Mapping[str, _Port], copied: Mapping[str, Link]) -> Iterator[str]:
    for name, words in host.vlans:
        link = copied.get(name)
        if link and (link.is_bridge or name in ports):
            yield f"vlan add dev {name} {words}{' self' if link.is_bridge else ''}"


def _sysctls(host: HostState, copied: Mapping[str, Link]) -> tuple[tuple[str, str], ...]:
    return tuple((path, value) for path, value in host.sysctls if _applies(path, copied))


def _applies(path: str, copied: Mapping[str, Link]) -> bool:
    _, slash, rest = path.partition("/conf/")
    name = rest.rpartition("/")[0]
    return not slash or name == "all" or (is_plain(name) and name in copied)
