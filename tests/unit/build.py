"""Small documents and values that tests are made of. Addresses are those of RFC 5737 and RFC 3849."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address, ip_network
from uuid import NAMESPACE_DNS, uuid5

from virt_forward.addresses.attachments import BridgeFacts
from virt_forward.metadata import xml
from virt_forward.metadata.forwards import NAMESPACE, parse_forwards
from virt_forward.model import Address, Declaration, Endpoint, Forward, Guest, Proto, Subnet

MAC = "52:54:00:a0:8f:2c"
UUID = "9b8b5e27-6d3c-4f0e-9a3c-3b1f8f2a7c10"
BRIDGE = "virbr0"
LAN = ((ip_network("198.51.100.0/24"), BRIDGE), (ip_network("2001:db8:10::/64"), BRIDGE))


def collide(one: Forward, other: Forward) -> bool:
    """Tell whether both claim the same packets: the rule of ``ports.by_listen`` for a single pair."""
    return one.listen == other.listen and one.span.overlaps(other.span)


def uuid_of(name: str) -> str:
    return str(uuid5(NAMESPACE_DNS, name))


def forwards_xml(inside: str, attributes: str = "") -> bytes:
    """Write a <forwards> element; the first line of ``inside`` is line 2."""
    return f'<vf:forwards xmlns:vf="{NAMESPACE}"{attributes}>\n{inside}\n</vf:forwards>'.encode()


def declared(inside: str, attributes: str = "") -> tuple[Declaration, tuple[str, ...]]:
    return parse_forwards(xml.parse(forwards_xml(inside, attributes), "test"))


def domain_xml(
    metadata: str = "",
    nics: str = f"<interface type='bridge'><mac address='{MAC}'/><source bridge='{BRIDGE}'/></interface>",
    name: str = "web",
    uuid: str = UUID,
) -> bytes:
    """Write a domain; the first line of ``metadata`` is line 4."""
    return (
        f"<domain type='kvm'>\n<name>{name}</name><uuid>{uuid}</uuid>\n"
        f"<metadata>\n{metadata}\n</metadata>\n<devices>{nics}</devices>\n</domain>"
    ).encode()


def forward(
    start: int = 8080,
    end: int | None = None,
    to: int | None = None,
    *,
    proto: Proto = "tcp",
    address: str | None = None,
    dev: str | None = None,
    source: str | None = None,
    mac: str | None = None,
) -> Forward:
    return Forward(
        proto,
        start,
        end or start,
        to or start,
        ip_address(address) if address else None,
        dev,
        ip_network(source) if source else None,
        mac,
    )


def endpoint(ip: str = "198.51.100.200", bridge: str = BRIDGE, mac: str = MAC) -> Endpoint:
    return Endpoint(ip_address(ip), bridge, mac)


def guest(name: str = "web", *forwards: Forward, endpoints: Iterable[Endpoint] = (endpoint(),)) -> Guest:
    return Guest(uuid_of(name), name, forwards=forwards, endpoints=tuple(endpoints), lans=LAN)


class Answering(dict[tuple[str, str, Address], bool]):
    """The answers of NICs that answer probes at all addresses."""

    def __contains__(self, key: object) -> bool:
        return True

    def __missing__(self, key: tuple[str, str, Address]) -> bool:
        return True


class NoRoutes(dict[Address, tuple[Subnet, str] | None]):
    """The routes of a host that has none but to the subnets of its interfaces."""

    def __contains__(self, ip: object) -> bool:
        return True

    def __missing__(self, ip: Address) -> None:
        return None


class AllRead(dict[str, BridgeFacts]):
    """Facts about some bridges, where nothing is known of the others."""

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> BridgeFacts:
        return BridgeFacts()
