"""``hairpin = "ports"``: a guest reaches its own forward with br_netfilter, too, and nothing stays of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from netns.support import (
    FAMILIES,
    PROTOS,
    Family,
    Topology,
    bridge_netfilter,
    has_br_netfilter,
    mac_of,
    told,
    who,
)
from support import state
from support.netns import Ns
from support.proc import eventually
from support.xml import port_forward

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not has_br_netfilter(), reason="the kernel module br_netfilter is not loaded"),
]

PORTS = '[forward]\nhairpin = "ports"\n'
FORWARDS = [port_forward("8001:80", "5000-5009:15000", proto=proto) for proto in PROTOS]


@pytest.fixture
def calling(topo: Topology) -> Iterator[Topology]:
    """The host with br_netfilter on."""
    bridge_netfilter(topo.host, True)
    yield topo
    bridge_netfilter(topo.host, False)
    for port in ("vnet0", "vnet1", "vnet2"):
        topo.host.run(["bridge", "link", "set", "dev", port, "hairpin", "off"])


def flags(host: Ns) -> str:
    """Return hairpin mode of web's, db's and app's port."""
    return "".join(
        host.run(["cat", f"/sys/class/net/vnet{number}/brport/hairpin_mode"]).out.strip()
        for number in range(3)
    )


def recorded(topo: Topology) -> list[str]:
    """Return the record of what we have set outside our table: the effect and the interface of each item."""
    found = state.rows(topo.testbed.lab.run_dir, "SELECT effect, dev FROM effect ORDER BY effect, dev")
    return [" ".join(map(str, row)) for row in found]


@pytest.mark.parametrize("proto", PROTOS)
@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_guest_reaches_its_own_forward(calling: Topology, family: Family, proto: str) -> None:
    if proto == "sctp":
        calling.servers.serve(calling.web, (80,), protos=("sctp",))
    calling.testbed.lab.configure(PORTS)
    calling.testbed.start("web", *FORWARDS)
    assert told(calling.web, family.host, 8001, proto) == ("web", family.gateway, 80)
    assert told(calling.client, family.host, 8001, proto) == ("web", family.client, 80)


def test_only_ports_of_guests_with_forwards_and_only_while_they_run(calling: Topology) -> None:
    calling.testbed.lab.configure(PORTS)
    calling.testbed.event("web", "prepare", *FORWARDS)
    assert flags(calling.host) == "000"
    calling.testbed.event("web", "started", *FORWARDS)
    calling.testbed.start("db")
    assert flags(calling.host) == "100"
    calling.testbed.start("app", port_forward("8002:80"))
    assert flags(calling.host) == "101"
    calling.testbed.stop("web")
    assert flags(calling.host) == "001"
    calling.testbed.stop("app")
    assert flags(calling.host) == "000"


def test_nobody_asked(calling: Topology) -> None:
    calling.testbed.start("web", *FORWARDS)
    assert flags(calling.host) == "000"
    assert recorded(calling) == []


def test_without_br_netfilter_there_is_no_need(topo: Topology) -> None:
    topo.testbed.lab.configure(PORTS)
    topo.testbed.start("web", *FORWARDS)
    assert flags(topo.host) == "000"
    assert who(topo.web, FAMILIES[0].host, 8001) == "web"


def test_setting_withdrawn(calling: Topology) -> None:
    calling.testbed.lab.configure(PORTS)
    calling.testbed.start("web", *FORWARDS)
    calling.testbed.lab.configure("")
    calling.testbed.event("web", "reconnect", *FORWARDS)
    assert flags(calling.host) == "000"
    assert recorded(calling) == []


def test_port_that_a_person_set_stays_as_it_is(calling: Topology) -> None:
    calling.host.run(["bridge", "link", "set", "dev", "vnet0", "hairpin", "on"])
    calling.testbed.lab.configure(PORTS)
    calling.testbed.start("web", *FORWARDS)
    calling.testbed.stop("web")
    assert flags(calling.host) == "100"


def test_port_that_went_with_its_guest_is_forgotten(calling: Topology) -> None:
    """Another guest's port may have its name next time."""
    calling.testbed.lab.configure(PORTS)
    calling.testbed.start("web", *FORWARDS)
    calling.testbed.start("app", port_forward("8002:80"))
    calling.host.ip("link set vnet0 nomaster")
    calling.testbed.stop("web")
    assert recorded(calling) == ["hairpin_port vnet2"]
    calling.host.ip("link set vnet0 master virbr0")


def test_duplicate_address_detection_is_not_taken_in_by_its_own_echo(calling: Topology) -> None:
    """RFC 7527, which Linux follows."""
    calling.testbed.lab.configure(PORTS)
    calling.testbed.start("web", *FORWARDS)
    calling.web.sysctl("net.ipv6.conf.eth0.accept_dad", 1)
    try:
        calling.web.ip("address add fd10:10::77/64 dev eth0")
        eventually(lambda: "tentative" not in addresses(calling.web), "the address is the guest's")
        assert "dadfailed" not in addresses(calling.web)
        assert mac_of(200) in calling.web.run(["ip", "link", "show", "dev", "eth0"]).out
    finally:
        calling.web.sysctl("net.ipv6.conf.eth0.accept_dad", 0)
        calling.web.ip("address delete fd10:10::77/64 dev eth0")


def addresses(guest: Ns) -> str:
    return guest.run(["ip", "-6", "address", "show", "dev", "eth0"]).out
