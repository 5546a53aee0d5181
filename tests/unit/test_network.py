"""libvirt's network XML, alone and in what the network hook is given."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from unit.build import UUID
from virt_forward.errors import VirtForwardError
from virt_forward.metadata.network import NetworkPort, parse_network
from virt_forward.model import Network, Reservation

NETWORK = """
<network connections='1'>
  <name>default</name>
  <uuid>0F5CE0C2-0B2A-4B7E-9D5B-0F1F2F3F4F5F</uuid>
  <forward mode='nat'><nat><port start='1024' end='65535'/></nat></forward>
  <bridge name='virbr1' stp='on' delay='0'/>
  <mac address='52:54:00:11:22:33'/>
  <ip address='192.0.2.1' netmask='255.255.255.0'>
    <dhcp>
      <range start='192.0.2.2' end='192.0.2.254'/>
      <host mac='52:54:00:A0:8F:2C' name='web' ip='192.0.2.200'/>
      <host name='db' ip='192.0.2.201'/>
    </dhcp>
  </ip>
  <ip family='ipv6' address='2001:db8::1' prefix='64'>
    <dhcp><host id='0:3:0:1:0:16:3e:11:22:33' name='web' ip='2001:db8::200'/></dhcp>
  </ip>
</network>"""

PARSED = Network(
    "default",
    "0f5ce0c2-0b2a-4b7e-9d5b-0f1f2f3f4f5f",
    "virbr1",
    "nat",
    (ip_network("192.0.2.0/24"), ip_network("2001:db8::/64")),
    (
        Reservation(ip_address("192.0.2.200"), "52:54:00:a0:8f:2c", "web"),
        Reservation(ip_address("192.0.2.201"), None, "db"),
        Reservation(ip_address("2001:db8::200"), None, "web"),
    ),
)

PORT = f"""<networkport>
  <uuid>7e9d5b0f-1f2f-4f4f-8f5f-0f5ce0c20b2a</uuid>
  <owner><name>web</name><uuid>{UUID.upper()}</uuid></owner>
  <mac address='52:54:00:A0:8F:2C'/>
  <plug type='bridge' bridge='virbr1'/>
</networkport>"""


def parsed(inside: str) -> Network:
    network, port = parse_network(f"<network><uuid>{UUID}</uuid>{inside}</network>".encode())
    assert port is None
    return network


def test_input_of_the_network_hook_is_parsed() -> None:
    assert parse_network(f"<hookData>{NETWORK}</hookData>".encode()) == (PARSED, None)
    assert parse_network(f"<hookData>{NETWORK}{PORT}</hookData>".encode()) == (
        PARSED,
        NetworkPort(UUID, "52:54:00:a0:8f:2c", "virbr1"),
    )


def test_status_file_and_the_bare_network() -> None:
    status = f"<networkstatus><class_id bitmap='0-2'/><floor sum='0'/>{NETWORK}</networkstatus>"
    assert parse_network(status.encode()) == (PARSED, None)
    assert parse_network(NETWORK.strip().encode()) == (PARSED, None)


@pytest.mark.parametrize(
    ("forward", "mode"),
    [
        ("", ""),
        ("<forward/>", "nat"),
        ("<forward mode='route'/>", "route"),
        ("<forward mode='open'/>", "open"),
        ("<forward mode='bridge'/>", "bridge"),
    ],
)
def test_forward_mode(forward: str, mode: str) -> None:
    network = parsed(f"<name>n</name>{forward}<bridge name='br0'/>")
    assert network == Network("n", UUID, "br0", mode)


@pytest.mark.parametrize(
    ("attributes", "subnet"),
    [
        ("address='192.0.2.1' prefix='25'", "192.0.2.0/25"),
        ("address='192.0.2.1' netmask='255.255.255.128'", "192.0.2.0/25"),
        ("address='192.0.2.1'", "192.0.2.0/24"),
        ("address='172.16.0.1'", "172.16.0.0/16"),
        ("address='10.0.0.1'", "10.0.0.0/8"),
        ("family='ipv6' address='2001:db8::1'", "2001:db8::/64"),
    ],
)
def test_subnets_with_and_without_their_size(attributes: str, subnet: str) -> None:
    assert parsed(f"<ip {attributes}/>").subnets == (ip_network(subnet),)


@pytest.mark.parametrize(
    "ip",
    [
        "<ip/>",
        "<ip address='x'/>",
        "<ip address='192.0.2.1' prefix='x'/>",
        "<ip address='2001:db8::1%a\" accept' prefix='64'/>",
        "<ip address='192.0.2.1' prefix='33'/>",
    ],
)
def test_subnet_that_cannot_be_read_is_passed_over(ip: str) -> None:
    assert parsed(ip).subnets == ()


@pytest.mark.parametrize("ip", ["", "x", "192.0.2.1/24", "2001:db8::1%a } ; flush ruleset", "192.0.2.01"])
def test_reservation_that_cannot_be_read_is_passed_over(ip: str) -> None:
    text = f"<ip address='192.0.2.1'><dhcp><host mac='x' ip='{ip}'/></dhcp></ip>"
    assert parsed(text).reservations == ()


@pytest.mark.parametrize(
    "text", ["", "<hookData/>", "<hookData><networkport/></hookData>", "<network", "<network/>"]
)
def test_xml_without_a_network_is_refused(text: str) -> None:
    with pytest.raises(VirtForwardError, match="network XML"):
        parse_network(text.encode())
