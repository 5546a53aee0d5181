"""With bridge-nf-call-iptables, frames that stay on a bridge meet the IP hooks: hairpin must still work."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from netns.support import FAMILIES, PROTOS, Family, Servers, Testbed, has_br_netfilter, silent, told
from support import netns
from support.netns import Ns
from support.xml import port_forward

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not has_br_netfilter(), reason="the kernel module br_netfilter is not loaded"),
    pytest.mark.parametrize("proto", PROTOS),
    pytest.mark.parametrize("family", FAMILIES, ids=str),
]


@dataclass(frozen=True)
class Topology:
    client: Ns
    host: Ns
    web: Ns
    db: Ns
    far: Ns
    servers: Servers


@pytest.fixture(scope="module")
def topo() -> Iterator[Topology]:
    with netns.lab() as lab:
        testbed = Testbed(lab, br_netfilter=True)
        web, db, far = testbed.guest("web", 200), testbed.guest("db", 201), testbed.far_guest("far", 5)
        ranges = ("8001:80", "5000-5009:15000", "20000-29999")
        testbed.start("web", *(port_forward(*ranges, proto=proto) for proto in PROTOS))
        testbed.start("db", port_forward("8002:80"), attributes='isolate="yes"')
        servers = Servers()
        servers.serve(web, (80, 8001, 8002, 15003, 24000))
        servers.serve(db, (80, 8001))
        yield Topology(lab.client, lab.host, web, db, far, servers)


ASKED = ((8001, 80), (5003, 15003), (24000, 24000))


@pytest.mark.parametrize("way", ["client", "host", "db", "far"])
def test_every_way(topo: Topology, family: Family, proto: str, way: str) -> None:
    far = {4: "10.20.0.5", 6: "fd20:20::5"}[family.version]
    source = {"client": family.client, "host": family.host, "db": family.gateway, "far": far}[way]
    ns: Ns = getattr(topo, way)
    for port, to in ASKED:
        assert told(ns, family.host, port, proto) == ("web", source, to)
    assert silent(ns, family.host, 8000, proto, topo.servers)


def test_guest_itself_needs_a_port_in_hairpin_mode(topo: Topology, family: Family, proto: str) -> None:
    """The bridge never sends a frame back to the port it came from; there the kernel leaves us no choice."""
    for port, _ in ASKED:
        assert silent(topo.web, family.host, port, proto, topo.servers)
    topo.host.run(["bridge", "link", "set", "dev", "vnet0", "hairpin", "on"])
    try:
        for port, to in ASKED:
            assert told(topo.web, family.host, port, proto) == ("web", family.gateway, to)
    finally:
        topo.host.run(["bridge", "link", "set", "dev", "vnet0", "hairpin", "off"])


def test_frames_between_siblings_are_neither_caught_nor_isolated(
    topo: Topology, family: Family, proto: str
) -> None:
    assert told(topo.db, family.guest(200), 8001, proto) == ("web", family.guest(201), 8001)
    assert told(topo.web, family.guest(201), 8001, proto) == ("db", family.guest(200), 8001)
    assert told(topo.host, family.guest(201), 8001, proto) == ("db", family.gateway, 8001)
