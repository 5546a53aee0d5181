"""Beside every forward: what was not declared stays as it was, and nobody's traffic is caught on its way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from netns.support import FAMILIES, PROTOS, Family, Servers, Testbed, silent, told, who
from support import netns
from support.netns import Ns
from support.xml import port_forward

pytestmark = [
    pytest.mark.root,
    pytest.mark.parametrize("proto", PROTOS),
    pytest.mark.parametrize("family", FAMILIES, ids=str),
]

PLAIN, SOURCE, SOURCE_RANGE, DEV, ADDRESS, DNS, OWN = 8001, 9001, 9300, 9101, 9201, 53, 8555


@dataclass(frozen=True)
class Topology:
    """Two uplinks with a client each, two guests on one bridge, one on another; only ``web`` has forwards."""

    host: Ns
    client: Ns
    client2: Ns
    web: Ns
    db: Ns
    far: Ns
    servers: Servers


def declared() -> list[str]:
    found = []
    for proto in PROTOS:
        found.append(port_forward(f"{PLAIN}:80", str(DNS), "8500-8999", proto=proto))
        found.append(port_forward(f"{DEV}:80", proto=proto, attributes=f'dev="{netns.UPLINK2}"'))
        for family in FAMILIES:
            source = f'source="{family.more(3)}"'
            found.append(port_forward(f"{SOURCE}:80", f"{SOURCE_RANGE}-9400", proto=proto, attributes=source))
            at = f'address="{family.second_host}"'
            found.append(port_forward(f"{ADDRESS}:80", proto=proto, attributes=at))
    return found


@pytest.fixture(scope="module")
def topo() -> Iterator[Topology]:
    with netns.lab() as lab:
        testbed = Testbed(lab)
        testbed.second_addresses()
        client2 = testbed.routed()
        web, db, far = testbed.guest("web", 200), testbed.guest("db", 201), testbed.far_guest("far", 5)
        testbed.start("web", *declared())
        servers = Servers()
        servers.serve(web, (80, PLAIN, DNS, SOURCE, SOURCE_RANGE, 9333, DEV, ADDRESS))
        for ns in (far, lab.client, client2):
            servers.serve(ns, (PLAIN, 9999))
        for family in FAMILIES:
            servers.serve(lab.host, (PLAIN,), name="loopback", address=family.loopback)
            servers.serve(lab.host, (DNS,), name="gateway", address=family.gateway)
        yield Topology(lab.host, lab.client, client2, web, db, far, servers)


def test_wrong_source(topo: Topology, family: Family, proto: str) -> None:
    for port in (SOURCE, SOURCE_RANGE, 9333):
        assert silent(topo.client, family.host, port, proto, topo.servers)
        assert silent(topo.client, family.host, port, proto, topo.servers, source=family.more(4))
        assert silent(topo.host, family.host, port, proto, topo.servers)
    seen = ("web", family.more(3))
    assert told(topo.client, family.host, SOURCE, proto, source=family.more(3)) == (*seen, 80)
    assert told(topo.client, family.host, 9333, proto, source=family.more(3)) == (*seen, 9333)


def test_wrong_device(topo: Topology, family: Family, proto: str) -> None:
    for address in (family.host, family.second_host):
        assert silent(topo.client, address, DEV, proto, topo.servers)
        assert silent(topo.host, address, DEV, proto, topo.servers)
        assert silent(topo.db, address, DEV, proto, topo.servers)
        assert told(topo.client2, address, DEV, proto) == ("web", family.second_client, 80)


def test_wrong_address(topo: Topology, family: Family, proto: str) -> None:
    for ns in (topo.client, topo.client2, topo.host, topo.db):
        assert silent(ns, family.host, ADDRESS, proto, topo.servers)
        assert told(ns, family.second_host, ADDRESS, proto)[0] == "web"


def test_traffic_that_only_passes_through_is_never_caught(topo: Topology, family: Family, proto: str) -> None:
    own, far = family.guest(200), {4: "10.20.0.5", 6: "fd20:20::5"}[family.version]
    assert told(topo.web, family.client, PLAIN, proto) == ("client", own, PLAIN)
    assert told(topo.web, far, PLAIN, proto) == ("far", own, PLAIN)
    assert told(topo.client, family.second_client, PLAIN, proto) == ("client2", family.client, PLAIN)
    assert told(topo.client, far, PLAIN, proto) == ("far", family.client, PLAIN)
    assert told(topo.client, own, PLAIN, proto) == ("web", family.client, PLAIN)
    assert told(topo.db, own, PLAIN, proto) == ("web", family.guest(201), PLAIN)


def test_hosts_own_connections_from_a_forwarded_port_are_left_alone(
    topo: Topology, family: Family, proto: str
) -> None:
    answer = topo.host.ask(family.client, 9999, proto, sport=OWN)
    assert answer is not None
    assert (answer.name, answer.source, answer.sport) == ("client", family.host, OWN)


def test_service_on_the_hosts_loopback_keeps_its_port(topo: Topology, family: Family, proto: str) -> None:
    assert told(topo.host, family.loopback, PLAIN, proto) == ("loopback", family.loopback, PLAIN)
    assert told(topo.host, family.host, PLAIN, proto)[0] == "web"
    assert told(topo.client, family.host, PLAIN, proto)[0] == "web"


def test_guests_keep_the_gateways_dns(topo: Topology, family: Family, proto: str) -> None:
    for ns in (topo.web, topo.db):
        assert told(ns, family.gateway, DNS, proto)[0] == "gateway"
        assert told(ns, family.host, DNS, proto) == ("web", family.gateway, DNS)
    assert told(topo.client, family.host, DNS, proto) == ("web", family.client, DNS)


@pytest.mark.parametrize("way", ["host", "client", "far"])
def test_nobody_loses_the_gateways_dns(topo: Topology, family: Family, proto: str, way: str) -> None:
    ns = {"host": topo.host, "client": topo.client, "far": topo.far}[way]
    assert who(ns, family.gateway, DNS, proto) == "gateway"


def test_no_forward_listens_on_the_gateway_address(topo: Topology, family: Family, proto: str) -> None:
    for ns in (topo.host, topo.web, topo.db, topo.far, topo.client):
        assert silent(ns, family.gateway, PLAIN, proto, topo.servers)


def test_topology_reaches_every_address(topo: Topology, family: Family, proto: str) -> None:
    """Silence proves nothing where the way is cut: the same ways do lead to the host."""
    for address in (family.host, family.gateway):
        with topo.host.serve(proto, 9876, name="host", address=address):
            for ns in (topo.client, topo.client2, topo.host, topo.db, topo.far):
                assert who(ns, address, 9876, proto) == "host"
