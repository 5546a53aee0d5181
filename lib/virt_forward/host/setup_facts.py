"""Reading the facts that setting up a bridge depends on. Nothing is changed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from ipaddress import ip_interface, ip_network

from virt_forward.errors import NftError, VirtForwardError
from virt_forward.host import collect, libvirt_networks, nft, nftables_service, systemd
from virt_forward.host.files import list_directory, read_text
from virt_forward.host.netdevs import netdevs
from virt_forward.metadata import values
from virt_forward.model import Address, Subnet
from virt_forward.namedtuple import TYPE_CHECKING
from virt_forward.setup.chains import base_chains
from virt_forward.setup.facts import Chain, LibvirtNetwork, Link, Manager, SetupFacts
from virt_forward.setup.routed import MARK

if TYPE_CHECKING:
    from typing import Any

NETWORKD_STATE = "/run/systemd/netif"
INTERFACES = "/sys/class/net"


def read_facts() -> SetupFacts:
    """Return the facts. Raises VirtForwardError where systemd or the interfaces cannot be read."""
    links = tuple(_links())
    uplinks = tuple(sorted(collect.default_route_devices()))
    made = netdevs()
    conf = nftables_service.ruleset_path()
    return SetupFacts(
        systemd=_systemd_version(),
        networkd=_networkd_runs(),
        links=links,
        uplinks=uplinks,
        routes=tuple(_routes()),
        networks=collect.networkd_files(),
        netdevs={name: each.path for name, each in made.items()},
        marked=tuple(name for name, each in made.items() if MARK in each.text),
        libvirt=tuple(_libvirt_networks()),
        chains=_chains(),
        nameservers=tuple(_nameservers()),
        dns_follows=_dns_follows(links, uplinks),
        nftables_conf=conf,
        loaded_at_boot=systemd.is_enabled("nftables.service"),
        includes=_includes(read_text(conf)),
        random=os.urandom(16),
    )


def _systemd_version() -> int:
    version = systemd.version()
    if not version:
        raise VirtForwardError(
            "the version of systemd cannot be read", "init needs systemd-networkd; see systemctl --version"
        )
    return version


def _networkd_runs() -> bool:
    if systemd.is_manager():
        return systemd.is_active(systemd.NETWORKD)
    return os.path.exists(f"{NETWORKD_STATE}/state")


def _links() -> Iterator[Link]:
    routes = [
        *collect.read_ip("-4", "route", "show", "default"),
        *collect.read_ip("-6", "route", "show", "default"),
    ]
    ifupdown = _ifupdown()
    for item in collect.read_ip("-d", "address", "show"):
        name = item["ifname"]
        if not values.is_dev(name) or item.get("link_type") == "loopback":
            continue
        manager, file = _manager(name, item["ifindex"], ifupdown)
        inside = item.get("addr_info", [])
        yield Link(
            name,
            item.get("address", ""),
            item.get("linkinfo", {}).get("info_kind", ""),
            item.get("link_type") == "ether",
            _is_wifi(name),
            item.get("master", ""),
            tuple(ip_interface(f"{each['local']}/{each['prefixlen']}") for each in inside if "local" in each),
            tuple(_gateways(name, routes)),
            any(each.get("dynamic") and each.get("family") == "inet" for each in inside),
            manager,
            file,
            # networkd, NetworkManager and dhcpcd handle advertisements themselves, and have set it to 0.
            any(map(_is_autoconfigured, inside))
            and read_text(f"/proc/sys/net/ipv6/conf/{name}/accept_ra").strip() == "1",
        )


def _is_autoconfigured(address: dict[str, Any]) -> bool:
    return bool(address.get("dynamic")) and address.get("family") == "inet6"


def _gateways(name: str, routes: list[dict[str, Any]]) -> Iterator[Address]:
    for route in routes:
        if route.get("dev") == name and "gateway" in route:
            yield values.address(route["gateway"])


def _is_wifi(name: str) -> bool:
    path = f"{INTERFACES}/{name}"
    return (
        any(os.path.exists(f"{path}/{entry}") for entry in ("phy80211", "wireless"))
        or "DEVTYPE=wlan" in read_text(f"{path}/uevent").splitlines()
    )


def _manager(name: str, index: int, ifupdown: set[str]) -> tuple[Manager, str]:
    state = dict(
        line.partition("=")[::2] for line in read_text(f"{NETWORKD_STATE}/links/{index}").splitlines()
    )
    if state.get("NETWORK_FILE") and state.get("ADMIN_STATE") != "unmanaged":
        return "systemd-networkd", state["NETWORK_FILE"]
    if "connection-uuid=" in read_text(f"/run/NetworkManager/devices/{index}"):
        return "NetworkManager", ""
    return ("ifupdown" if name in ifupdown else ""), ""


def _ifupdown() -> set[str]:
    """Return the interfaces that ifup has configured (interfaces(5))."""
    folder = "/run/network"
    names = {name.partition(".")[2] for name in list_directory(folder) if name.startswith("ifstate.")}
    return names | {line.partition("=")[0] for line in read_text(f"{folder}/ifstate").splitlines()}


def _routes() -> Iterator[tuple[Subnet, str]]:
    for family in ("-4", "-6"):
        for route in collect.read_ip(family, "route", "show", "table", "all"):
            kind = route.get("type", "unicast")
            if route["dst"] == "default" or kind in ("local", "broadcast", "multicast", "anycast"):
                continue
            yield ip_network(route["dst"], strict=False), route.get("dev", kind)


def _libvirt_networks() -> Iterator[LibvirtNetwork]:
    for directory in (libvirt_networks.DEFINED, libvirt_networks.DIRECTORY):
        for network in libvirt_networks.in_directory(directory):
            yield LibvirtNetwork(network.name, network.bridge, network.subnets)


def _chains() -> tuple[Chain, ...] | None:
    try:
        return base_chains(nft.ruleset())
    except NftError:
        return None


def _nameservers() -> Iterator[Address]:
    for line in read_text("/etc/resolv.conf").splitlines():
        words = line.split()
        try:
            address = values.address(words[1]) if words[:1] == ["nameserver"] and words[1:] else None
        except ValueError:
            continue
        if address and not address.is_loopback and not address.is_link_local:
            yield address


def _dns_follows(links: tuple[Link, ...], uplinks: tuple[str, ...]) -> bool:
    """Tell whether networkd finds name servers for its DHCP server: an uplink's of its own, or resolved's."""
    managed = any(link.network_file for link in links if link.name in uplinks)
    return managed or os.path.exists("/run/systemd/resolve/resolv.conf")


def _includes(text: str) -> bool:
    lines = (line.strip() for line in text.splitlines())
    return any(line.startswith("include") and "/run/virt-forward/" in line for line in lines)
