"""The host as its clone needs it: links, addresses, routes, rules, sysctls and rulesets, as values."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface, ip_network
from types import MappingProxyType
from typing import Any, NamedTuple

from virt_forward.model import Address, Subnet

Interface = IPv4Interface | IPv6Interface

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@+-]{0,14}")
"""Names that need no quoting for ip, nft and sysctl; links with others are not copied."""


class Link(NamedTuple):
    """A network interface.

    ``number`` is its index, ``kind`` that of ``ip -d link``, empty for hardware; ``master`` may be empty.
    ``peers`` has the other end of a point-to-point address by the address.
    """

    name: str
    number: int
    kind: str = ""
    mac: str = ""
    master: str = ""
    up: bool = True
    addresses: tuple[Interface, ...] = ()
    peers: Mapping[Address, Address] = MappingProxyType({})
    vlan_filtering: bool = False
    isolated: bool = False
    hairpin: bool = False

    @property
    def is_bridge(self) -> bool:
        """Whether it is a bridge of the kernel."""
        return self.kind == "bridge"

    def own(self, version: int) -> list[Interface]:
        """Return its addresses of an IP version that are not link-local."""
        return [item for item in self.addresses if item.version == version and not item.is_link_local]


class Route(NamedTuple):
    """A route: ``words`` are those of ``ip route add`` after the destination; they name ``devices``."""

    destination: Subnet
    words: str
    devices: tuple[str, ...] = ()
    gateways: tuple[Address, ...] = ()
    kind: str = "unicast"
    table: str = "main"


class XtTable(NamedTuple):
    """A table of iptables: the program that restores it, and what its ``-save`` printed.

    ``family`` is nft's.
    """

    family: str
    name: str
    program: str
    text: str


class HostState(NamedTuple):
    """All of the host that decides about packets, as far as it can be copied.

    ``ruleset`` is what ``nft -a list ruleset`` prints. ``managed`` are the tables in it that belong
    to iptables-nft, by family and name, ``xtables`` what its ``-save`` has of them, ``legacy`` those of
    legacy iptables. ``rules`` are the lines of ``ip rule``, by IP version.
    """

    links: tuple[Link, ...] = ()
    routes: tuple[Route, ...] = ()
    rules: tuple[tuple[int, str], ...] = ()
    sysctls: tuple[tuple[str, str], ...] = ()
    ruleset: str = ""
    managed: frozenset[tuple[str, str]] = frozenset()
    xtables: tuple[XtTable, ...] = ()
    legacy: tuple[XtTable, ...] = ()
    vlans: tuple[tuple[str, str], ...] = ()

    def link(self, name: str) -> Link | None:
        """Return a link by its name."""
        return next((link for link in self.links if link.name == name), None)

    def own_addresses(self) -> frozenset[Address]:
        """Return the addresses of all links."""
        return frozenset(item.ip for link in self.links for item in link.addresses)


def is_plain(name: str) -> bool:
    """Tell whether a link of that name can be copied."""
    return bool(_NAME.fullmatch(name))


def parse_links(text: str) -> tuple[Link, ...]:
    """Return the links in what ``ip -d -j address show`` prints."""
    return tuple(_link(item) for item in _items(text) if is_plain(item.get("ifname", "")))


def _items(text: str) -> list[dict[str, Any]]:
    try:
        # ip does not escape control characters in the name of an interface.
        found = json.loads(text or "[]", strict=False)
    except ValueError:
        return []
    return [item for item in found if isinstance(item, dict) and item]


def _link(item: dict[str, Any]) -> Link:
    info = item.get("linkinfo", {})
    data, slave = info.get("info_data", {}), info.get("info_slave_data", {})
    found = [entry for entry in item.get("addr_info", ()) if "local" in entry]
    return Link(
        item["ifname"],
        item["ifindex"],
        info.get("info_kind", ""),
        item.get("address", "") if item.get("link_type") == "ether" else "",
        item.get("master", ""),
        "UP" in item.get("flags", ()),
        tuple(ip_interface(f"{entry['local']}/{entry['prefixlen']}") for entry in found),
        {ip_address(entry["local"]): ip_address(entry["address"]) for entry in found if "address" in entry},
        bool(data.get("vlan_filtering")),
        bool(slave.get("isolated")),
        bool(slave.get("hairpin")),
    )


def parse_routes(text: str, version: int) -> tuple[Route, ...]:
    """Return the routes in what ``ip -j route show table all`` prints for an IP version."""
    return tuple(_routes(_items(text), version))


_TYPES = ("unicast", "local", "unreachable", "blackhole", "prohibit", "throw")


def _routes(items: Iterable[dict[str, Any]], version: int) -> Iterator[Route]:
    for item in items:
        kind, table = item.get("type", "unicast"), str(item.get("table", "main"))
        # The kernel makes the routes of the table local from the addresses.
        made = table == "local" and item.get("protocol") == "kernel"
        if kind not in _TYPES or made:
            continue
        words = [f"table {table}"]
        devices: list[str] = []
        gateways: list[Address] = []
        for hop in item.get("nexthops", [item]):
            words.append("nexthop" if "nexthops" in item else "")
            words.append(_hop(hop, devices, gateways))
        words += [f"{key} {item[name]}" for key, name in _OPTIONS if name in item]
        if version == 4 and "scope" in item:
            words.append(f"scope {item['scope']}")
        destination = item["dst"] if item["dst"] != "default" else ("0.0.0.0/0" if version == 4 else "::/0")
        yield Route(
            ip_network(destination, strict=False),
            " ".join(filter(None, words)),
            tuple(devices),
            tuple(gateways),
            kind,
            table,
        )


_OPTIONS = (("metric", "metric"), ("src", "prefsrc"))


def _hop(hop: dict[str, Any], devices: list[str], gateways: list[Address]) -> str:
    words = []
    via = hop.get("via") or {}
    gateway = hop.get("gateway") or via.get("host")
    if gateway:
        gateways.append(ip_address(gateway))
        family = {"inet": "inet ", "inet6": "inet6 "}.get(via.get("family", ""), "")
        words.append(f"via {family}{gateway}")
    if "dev" in hop:
        devices.append(hop["dev"])
        words.append(f"dev {hop['dev']}")
    if "weight" in hop:
        words.append(f"weight {hop['weight']}")
    # The clone need not have a route to the gateway.
    return " ".join(words + (["onlink"] if gateway else []))


_STATE = re.compile(r" ?\[(?:detached|unresolved)\]")


def parse_rules(text: str, version: int) -> tuple[tuple[int, str], ...]:
    """Return the words of ``ip rule add`` for what ``ip rule`` lists, but for the first, with the version."""
    lines = (line.partition(":") for line in text.splitlines() if ":" in line)
    words = ((int(number), " ".join(rest.split())) for number, _, rest in lines if number.strip().isdigit())
    return tuple((version, f"pref {number} {_STATE.sub('', rest)}") for number, rest in words if number)


def parse_vlans(text: str) -> Iterator[tuple[str, str]]:
    """Yield the port and the words of ``bridge vlan add`` in what ``bridge -j vlan show`` prints."""
    for item in _items(text):
        for vlan in item.get("vlans", ()):
            last = f"-{vlan['vlanEnd']}" if "vlanEnd" in vlan else ""
            flags = {"PVID": "pvid", "Egress Untagged": "untagged"}
            words = [flags[flag] for flag in vlan.get("flags", ()) if flag in flags]
            yield item.get("ifname", ""), " ".join([f"vid {vlan['vlan']}{last}", *words])


_WARNED = re.compile(r"table (\w+) (\S+) is managed by iptables-nft")


def managed_tables(warnings: str) -> frozenset[tuple[str, str]]:
    """Return the tables that nft says on stderr belong to iptables-nft, by family and name."""
    return frozenset((found[1], found[2]) for found in _WARNED.finditer(warnings))


def split_saved(text: str, family: str, program: str) -> Iterator[XtTable]:
    """Yield the tables in what a ``-save`` program of iptables or ebtables prints."""
    for part in re.split(r"^(?=\*)", text, flags=re.MULTILINE):
        if part.startswith("*"):
            body = "\n".join(line for line in part.splitlines() if not line.startswith("#")) + "\n"
            yield XtTable(family, part[1:].split("\n", 1)[0].strip(), program, body)


def saved_rules(table: XtTable, chain: str) -> list[str]:
    """Return the rules of a chain in a saved table, in their order."""
    words = (line for line in table.text.splitlines() if line.startswith("-A "))
    return [line for line in words if line.split(" ", 2)[1] == chain]
