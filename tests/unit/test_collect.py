"""The host as one change sees it: libvirt's networks from our records, its status files and the event."""

from __future__ import annotations

import sys
from ipaddress import ip_network
from pathlib import Path
from socket import AF_INET

import pytest

from support import xml
from unit.build import MAC, uuid_of
from virt_forward.config import Config
from virt_forward.errors import VirtForwardError
from virt_forward.host import collect, interfaces, libvirt_networks
from virt_forward.host.collect import Reader
from virt_forward.host.netlink import attribute
from virt_forward.model import Network, Nic

NIC = Nic(MAC, "network", "default")


def network(third: int) -> Network:
    subnet = ip_network(f"192.168.{third}.0/24")
    return Network("default", uuid_of("network default"), "virbr0", "nat", (subnet,))


@pytest.fixture
def status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where libvirt keeps the status of its active networks."""
    monkeypatch.setattr(libvirt_networks, "DIRECTORY", str(tmp_path))
    monkeypatch.setattr(collect, "read_interfaces", dict)
    return tmp_path / "default.xml"


def subnets(host: Reader) -> list[str]:
    return [str(subnet) for one in host.facts([NIC]).networks for subnet in one.subnets]


def test_status_file_of_libvirt_overrides_our_record_of_a_network(status: Path) -> None:
    """The event that would have updated the record may have timed out."""
    host = Reader(Config(), lambda: [network(1)])
    assert subnets(host) == ["192.168.1.0/24"]
    text = xml.Network(ip4="192.168.2.1").xml()
    status.write_text(f"<networkstatus>{text}</networkstatus>")
    assert subnets(Reader(Config(), lambda: [network(1)])) == ["192.168.2.0/24"]
    assert subnets(Reader(Config(), lambda: [])) == ["192.168.2.0/24"]


def route_message(prefix: int, *attributes: bytes) -> bytes:
    """Return the payload of RTM_NEWROUTE: struct rtmsg of IPv4, and attributes."""
    return bytes((AF_INET, prefix)) + bytes(10) + b"".join(attributes)


OUT = attribute(interfaces.RTA_OIF, (1).to_bytes(4, sys.byteorder))  # 1 is the index of lo


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            route_message(24, attribute(interfaces.RTA_DST, bytes((10, 30, 0, 0))), OUT),
            (ip_network("10.30.0.0/24"), "lo"),
        ),
        (route_message(0, OUT), None),
        (route_message(24, attribute(interfaces.RTA_DST, bytes((10, 30, 0, 0)))), None),
    ],
    ids=["one", "default", "several interfaces, or none"],
)
def test_route_to_an_address_names_its_interface(message: bytes, expected: object) -> None:
    assert interfaces.parse_route(message) == expected


def test_event_of_a_network_overrides_its_status_file(status: Path) -> None:
    """libvirt writes the file after the hook."""
    status.write_text(f"<networkstatus>{xml.Network(ip4='192.168.2.1').xml()}</networkstatus>")
    assert subnets(Reader(Config(), lambda: [network(1)], current=network(3))) == ["192.168.3.0/24"]
    assert subnets(Reader(Config(), lambda: [network(1)], without={"default"})) == []


def test_host_that_cannot_be_read_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each attempt may take its full time; a change may be about many guests."""
    attempts: list[None] = []

    def fail() -> None:
        attempts.append(None)
        raise VirtForwardError("ip not found")

    monkeypatch.setattr(collect, "read_interfaces", fail)
    host = Reader(Config(), lambda: [])
    for _ in range(3):
        with pytest.raises(VirtForwardError, match="ip not found"):
            host.facts([NIC])
    assert len(attempts) == 1
