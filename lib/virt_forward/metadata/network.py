"""A libvirt network XML to a Network, from the network hook's stdin or libvirt's status file."""

from __future__ import annotations

from ipaddress import ip_network

from virt_forward import text
from virt_forward.errors import VirtForwardError
from virt_forward.metadata import values, xml
from virt_forward.metadata.etree import etree
from virt_forward.model import Network, Reservation, Subnet
from virt_forward.namedtuple import NamedTuple


class NetworkPort(NamedTuple):
    """``<networkport>``: the guest's NIC that was plugged into a network, and the bridge it is on."""

    uuid: str
    mac: str
    bridge: str


def parse_network(data: bytes) -> tuple[Network, NetworkPort | None]:
    """Return the network (and port, where one is told) of hookData, networkstatus or network XML."""
    root = xml.parse(data, "network XML")
    element = root if root.tag == "network" else root.find("network")
    if element is None:
        raise VirtForwardError(f"network XML: <{text.plain(str(root.tag))}> has no <network> inside")
    return _network(element), _port(root.find("networkport"))


def _network(element: etree._Element) -> Network:
    forward, bridge = element.find("forward"), element.find("bridge")
    return Network(
        # As it stands: the interfaces of guests name it with every blank it has.
        name=element.findtext("name", ""),
        uuid=_uuid(element),
        bridge="" if bridge is None else bridge.get("name", ""),
        mode="" if forward is None else forward.get("mode", "nat"),
        subnets=tuple(subnet for subnet in map(_subnet, element.iterfind("ip")) if subnet),
        reservations=tuple(lease for lease in map(_reservation, element.iterfind("ip/dhcp/host")) if lease),
    )


def _uuid(element: etree._Element) -> str:
    # Our record of the network is a file of this name.
    found = xml.text(element.find("uuid")).lower()
    try:
        return values.uuid(found)
    except values.Bad:
        raise VirtForwardError(f"network XML: <uuid> is {text.quote(found)}, which is no UUID") from None


def _port(element: etree._Element | None) -> NetworkPort | None:
    if element is None:
        return None
    mac, plug = element.find("mac"), element.find("plug")
    return NetworkPort(
        xml.text(element.find("owner/uuid")).lower(),
        "" if mac is None else mac.get("address", "").lower(),
        "" if plug is None else plug.get("bridge", ""),
    )


def _subnet(element: etree._Element) -> Subnet | None:
    bits = element.get("prefix") or element.get("netmask") or _classful(element.get("address", ""))
    try:
        return ip_network(f"{values.address(element.get('address', ''))}/{bits}", strict=False)
    except ValueError:
        return None


def _classful(address: str) -> str:
    # libvirt's default where neither netmask nor prefix stands: virSocketAddrGetIPPrefix().
    first = address.partition(".")[0]
    if not first.isdigit():
        return "64"
    return "8" if int(first) < 128 else "16" if int(first) < 192 else "24"


def _reservation(element: etree._Element) -> Reservation | None:
    mac, name = element.get("mac"), element.get("name")
    try:
        return Reservation(values.address(element.get("ip", "")), mac.lower() if mac else None, name)
    except ValueError:
        return None
