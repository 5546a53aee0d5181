"""Leases and neighbours in the formats that systemd, libvirt and iproute2 write."""

import json
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virt_forward.addresses import leases
from virt_forward.model import Reservation

MAC = "52:54:00:00:00:77"
NOW = 1795380000.0

# systemd 257: the hardware address is padded to 16 bytes.
NETWORKD = """{"BootID":"622d036909a4478ab9c3b72cfcb920c4","Address":[10,10,0,1],"PrefixLength":24,"Leases":[
{"ClientId":[1,82,84,0,0,0,119],"Address":[10,10,0,95],"Hostname":"early","HardwareAddressType":1,
"HardwareAddressLength":6,"HardwareAddress":[82,84,0,0,0,119,0,0,0,0,0,0,0,0,0,0],
"ExpirationUSec":11039071730,"ExpirationRealtimeUSec":%d}]}"""

# libvirt 9.0 and 11.3 write the same: leaseshelper.c has not changed between them.
DNSMASQ = """[
  {
    "ip-address": "192.168.122.45",
    "mac-address": "52:54:00:00:00:77",
    "hostname": "early",
    "client-id": "01:52:54:00:00:00:77",
    "expiry-time": 1795383600
  },
  {
    "iaid": "1",
    "ip-address": "fd10:10::5",
    "mac-address": "52:54:00:00:00:77",
    "client-id": "00:01",
    "expiry-time": 1795383601
  },
  {
    "ip-address": "192.168.122.99",
    "mac-address": "52:54:00:00:00:77",
    "expiry-time": 1795370000
  }
]
"""

NEIGHBOURS = """[{"dst":"10.10.0.95","lladdr":"52:54:00:00:00:77","state":["STALE"]},
{"dst":"10.10.0.96","lladdr":"52:54:00:00:00:77","state":["REACHABLE"]},
{"dst":"10.10.0.97","lladdr":"52:54:00:00:00:77","state":["FAILED"]},
{"dst":"10.10.0.98","state":["INCOMPLETE"]},
{"dst":"10.10.0.99","lladdr":"52:54:00:00:00:77","state":["PERMANENT"]},
{"dst":"fe80::5054:ff:fe00:77","lladdr":"52:54:00:00:00:77","router":null,"state":["REACHABLE"]},
{"dst":"fd10:10::77","lladdr":"52:54:00:00:00:77","state":["DELAY"]}]"""


def lease(ip: str) -> Reservation:
    return Reservation(ip_address(ip), MAC)


def test_networkd_leases_are_parsed() -> None:
    assert leases.networkd(NETWORKD % 1795387461264995, NOW) == (lease("10.10.0.95"),)


def test_expired_lease_is_ignored() -> None:
    assert leases.networkd(NETWORKD % 1795370000000000, NOW) == ()


@pytest.mark.parametrize("end", ["0", "null", "1" + 400 * "0", '"x"', "true", "18446744073709551615"])
def test_networkd_lease_without_end_is_valid_and_comes_first(end: str) -> None:
    """DHCP's infinite lease: networkd leaves the time out, or writes USEC_INFINITY (dhcp-server)."""
    unlimited = (NETWORKD % 7).replace("7}", f"{end}}}").replace("10,10,0,95", "10,10,0,96")
    document = json.loads(NETWORKD % 1795387461264995)
    document["Leases"] += json.loads(unlimited)["Leases"]
    assert leases.networkd(json.dumps(document), NOW) == (lease("10.10.0.96"), lease("10.10.0.95"))
    del document["Leases"][1]["ExpirationRealtimeUSec"]
    assert leases.networkd(json.dumps(document), NOW)[0] == lease("10.10.0.96")


def test_dnsmasq_leases_are_newest_first() -> None:
    assert leases.dnsmasq(DNSMASQ, NOW) == (lease("fd10:10::5"), lease("192.168.122.45"))


def test_infinite_lease_comes_first() -> None:
    text = DNSMASQ.replace('"expiry-time": 1795370000', '"expiry-time": 0')
    assert leases.dnsmasq(text, NOW)[0] == lease("192.168.122.99")


def test_neighbours_are_parsed() -> None:
    found = leases.neighbours(NEIGHBOURS)
    assert found.confirmed == (lease("10.10.0.96"),)
    assert found.others == (lease("10.10.0.95"), lease("fd10:10::77"))
    assert found.failed == (ip_address("10.10.0.97"),)
    assert found.permanent == (lease("10.10.0.99"),)


@pytest.mark.parametrize(
    "text", ["", "{", "null", "[]", "[1]", '{"Leases": 5}', "[" * 100000, '[{"state": 1}]']
)
def test_damaged_text_has_no_leases(text: str) -> None:
    assert leases.networkd(text, NOW) == ()
    assert leases.dnsmasq(text, NOW) == ()
    assert leases.neighbours(text) == leases.Neighbours()


KEYS = [
    "Leases", "Address", "HardwareAddress", "HardwareAddressType", "HardwareAddressLength",
    "ExpirationRealtimeUSec", "ip-address", "mac-address", "expiry-time", "dst", "lladdr", "state",
]  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(KEYS) | st.text(), inner),
    max_leaves=20,
)


@given(JSON)
def test_any_json_is_accepted(document: object) -> None:
    text = json.dumps(document)
    for found in (leases.networkd(text, NOW), leases.dnsmasq(text, NOW), *leases.neighbours(text)[:2]):
        assert all(item.mac and not item.ip.is_link_local for item in found)
