"""``hairpin = "ports"``: a guest reaches its own forward with br_netfilter, too, and nothing stays of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from netns.support import (
    FAMILIES,
    PROTOS,
    Cast,
    Family,
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
def calling(cast: Cast) -> Iterator[Cast]:
    """The host with br_netfilter on."""
    bridge_netfilter(cast.host, True)
    yield cast
    bridge_netfilter(cast.host, False)
    for port in ("vnet0", "vnet1", "vnet2"):
        cast.host.run(["bridge", "link", "set", "dev", port, "hairpin", "off"])


def flags(host: Ns) -> str:
    """Return hairpin mode of web's, db's and app's port."""
    return "".join(
        host.run(["cat", f"/sys/class/net/vnet{number}/brport/hairpin_mode"]).out.strip()
        for number in range(3)
    )


def recorded(cast: Cast) -> list[str]:
    """Return the record of what we have set outside our table: the effect and the interface of each item."""
    found = state.rows(cast.scene.lab.run_dir, "SELECT effect, dev FROM effect ORDER BY effect, dev")
    return [" ".join(map(str, row)) for row in found]


@pytest.mark.parametrize("proto", PROTOS)
@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_the_guest_reaches_its_own_forward(calling: Cast, family: Family, proto: str) -> None:
    if proto == "sctp":
        calling.crowd.serve(calling.web, (80,), protos=("sctp",))
    calling.scene.lab.configure(PORTS)
    calling.scene.start("web", *FORWARDS)
    assert told(calling.web, family.host, 8001, proto) == ("web", family.gateway, 80)
    assert told(calling.client, family.host, 8001, proto) == ("web", family.client, 80)


def test_only_ports_of_guests_with_forwards_and_only_while_they_run(calling: Cast) -> None:
    calling.scene.lab.configure(PORTS)
    calling.scene.event("web", "prepare", *FORWARDS)
    assert flags(calling.host) == "000"
    calling.scene.event("web", "started", *FORWARDS)
    calling.scene.start("db")
    assert flags(calling.host) == "100"
    calling.scene.start("app", port_forward("8002:80"))
    assert flags(calling.host) == "101"
    calling.scene.stop("web")
    assert flags(calling.host) == "001"
    calling.scene.stop("app")
    assert flags(calling.host) == "000"


def test_nobody_asked(calling: Cast) -> None:
    calling.scene.start("web", *FORWARDS)
    assert flags(calling.host) == "000"
    assert recorded(calling) == []


def test_without_br_netfilter_there_is_no_need(cast: Cast) -> None:
    cast.scene.lab.configure(PORTS)
    cast.scene.start("web", *FORWARDS)
    assert flags(cast.host) == "000"
    assert who(cast.web, FAMILIES[0].host, 8001) == "web"


def test_the_setting_withdrawn(calling: Cast) -> None:
    calling.scene.lab.configure(PORTS)
    calling.scene.start("web", *FORWARDS)
    calling.scene.lab.configure("")
    calling.scene.event("web", "reconnect", *FORWARDS)
    assert flags(calling.host) == "000"
    assert recorded(calling) == []


def test_a_port_that_a_person_set_stays_as_it_is(calling: Cast) -> None:
    calling.host.run(["bridge", "link", "set", "dev", "vnet0", "hairpin", "on"])
    calling.scene.lab.configure(PORTS)
    calling.scene.start("web", *FORWARDS)
    calling.scene.stop("web")
    assert flags(calling.host) == "100"


def test_a_port_that_went_with_its_guest_is_forgotten(calling: Cast) -> None:
    """Another guest's port may have its name next time."""
    calling.scene.lab.configure(PORTS)
    calling.scene.start("web", *FORWARDS)
    calling.scene.start("app", port_forward("8002:80"))
    calling.host.ip("link set vnet0 nomaster")
    calling.scene.stop("web")
    assert recorded(calling) == ["hairpin_port vnet2"]
    calling.host.ip("link set vnet0 master virbr0")


def test_duplicate_address_detection_is_not_taken_in_by_its_own_echo(calling: Cast) -> None:
    """RFC 7527, which Linux follows."""
    calling.scene.lab.configure(PORTS)
    calling.scene.start("web", *FORWARDS)
    calling.web.sysctl("net.ipv6.conf.eth0.accept_dad", 1)
    try:
        calling.web.ip("address add fd10:10::77/64 dev eth0")
        eventually(lambda: "tentative" not in addresses(calling.web), "the address is the guest's", 5)
        assert "dadfailed" not in addresses(calling.web)
        assert mac_of(200) in calling.web.run(["ip", "link", "show", "dev", "eth0"]).out
    finally:
        calling.web.sysctl("net.ipv6.conf.eth0.accept_dad", 0)
        calling.web.ip("address delete fd10:10::77/64 dev eth0")


def addresses(guest: Ns) -> str:
    return guest.run(["ip", "-6", "address", "show", "dev", "eth0"]).out
