"""Reservations by name, which the DHCP server gives to any client with that name."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network

from virt_forward.addresses.attachments import BridgeFacts, HostFacts, find_attachments
from virt_forward.addresses.endpoints import endpoints
from virt_forward.model import Guest, Network, Nic, Reservation

WEB, DB = "52:54:00:00:00:01", "52:54:00:00:00:02"
IP = ip_address("192.168.122.50")
NETWORK = Network(
    "default", "uuid", "virbr0", "nat", (ip_network("192.168.122.0/24"),), (Reservation(IP, name="web"),)
)
GUEST = Guest("uuid", "web", nics=(Nic(WEB, "network", "default"),))


def reserved(*leases: Reservation) -> list[str]:
    bridge = BridgeFacts((ip_interface("192.168.122.1/24"),), leases=leases)
    facts = HostFacts((NETWORK,), {"virbr0": bridge}, answers={("virbr0", WEB, IP): True})
    return [str(endpoint.ip) for endpoint in endpoints(GUEST, find_attachments(GUEST.nics, facts), facts)]


def test_reservation_by_name_is_assigned_to_guest() -> None:
    assert reserved() == [str(IP)]
    assert reserved(Reservation(IP, WEB)) == [str(IP)]


def test_reservation_by_name_that_another_client_got_is_not_the_guests() -> None:
    """A client chooses the name it sends, so the server may have leased the address to another NIC."""
    assert reserved(Reservation(IP, DB)) == []
