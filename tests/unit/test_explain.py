"""The reason why a forward waits."""

from __future__ import annotations

import pytest

from unit.build import BRIDGE, MAC, UUID, endpoint, forward, guest
from virt_forward.addresses import explain
from virt_forward.model import Forward, Network, Nic

BRIDGED = Nic(MAC, "bridge", BRIDGE)
PLUGGED = Nic(MAC, "network", "default")
KNOWN = Network("default", UUID, BRIDGE)
SEARCHED = f"the address of {MAC} on {BRIDGE} is not known yet; searched: <host> in its metadata, "
REST = "networkd's static leases, the DHCP leases of networkd and dnsmasq, the neighbour table"


@pytest.mark.parametrize(
    ("nics", "networks", "wanted", "reason"),
    [
        ((BRIDGED,), (), forward(), SEARCHED + REST),
        ((PLUGGED,), (KNOWN,), forward(), f'{SEARCHED}the reservations of network "default", {REST}'),
        ((PLUGGED,), (), forward(), 'the network "default" of the guest is not active'),
        (
            (PLUGGED,),
            (KNOWN._replace(bridge=""),),
            forward(),
            'the network "default" of the guest has no bridge on this host',
        ),
        (
            (BRIDGED,),
            (),
            forward(mac="52:54:00:00:00:02"),
            "the guest has no NIC with the MAC address 52:54:00:00:00:02",
        ),
        ((), (), forward(), "the guest has no NIC on a bridge of this host"),
        (
            (BRIDGED._replace(source="virbr9"),),
            (),
            forward(source="2001:db8::/32"),
            "the host has no IPv6 subnet on virbr9, and the metadata has no <host> that is there",
        ),
        (
            (BRIDGED._replace(source="virbr9"),),
            (),
            forward(),
            "the host has no IP subnet on virbr9, and the metadata has no <host> that is there",
        ),
    ],
)
def test_reason_names_sources_or_what_is_missing(
    nics: tuple[Nic, ...], networks: tuple[Network, ...], wanted: Forward, reason: str
) -> None:
    waits = guest("web", wanted, endpoints=())._replace(nics=nics)
    assert explain.reason(waits, wanted, networks) == reason


def test_reason_names_sources_not_used_with_declared_address() -> None:
    waits = guest("web", forward(source="192.0.2.0/24"), endpoints=[endpoint("2001:db8:10::200")])
    waits = waits._replace(nics=(BRIDGED,))
    reason = explain.reason(waits, waits.forwards[0], ())
    assert reason.startswith(SEARCHED + REST)
    assert "as it has the declared address 2001:db8:10::200" in reason
    assert "[addresses] learn" in reason
    learned = waits._replace(endpoints=(endpoint("2001:db8:10::200")._replace(origin="probed"),))
    assert explain.reason(learned, waits.forwards[0], ()) == SEARCHED + REST
