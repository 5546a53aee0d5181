"""Every kind of forward by every way: who answers, whom the guest sees, and silence beside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from netns.support import FAMILIES, PROTOS, Family, Servers, Testbed, silent, told
from support import netns
from support.netns import Ns
from support.xml import port_forward

pytestmark = pytest.mark.root

Pairs = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Shape:
    """A kind of forward: its ranges, (host port, guest port) that lead to the guest, ports that do not."""

    name: str
    ranges: tuple[str, ...]
    works: Pairs
    closed: tuple[int, ...]
    whole: bool = False

    def __str__(self) -> str:
        return self.name


def same(*ports: int) -> Pairs:
    return tuple((port, port) for port in ports)


SHAPES = (
    Shape("single", ("8001:80",), ((8001, 80),), (8000, 8002)),
    Shape("range", ("5000-5009",), same(5000, 5004, 5009), (4999, 5010)),
    Shape("shifted", ("6000-6009:16000",), ((6000, 16000), (6007, 16007), (6009, 16009)), (5999, 6010)),
    Shape("excluded", ("7000-7009", "!7004-7005"), same(7000, 7003, 7006, 7009), (7004, 7005, 7010)),
    Shape("wide", ("20000-29999",), same(20000, 24321, 29999), (19999, 30000)),
    Shape("wide-shifted", ("31000-31999:41000",), ((31000, 41000), (31999, 41999)), (30999, 32000)),
    Shape("whole", ("!77-78",), same(1, 76, 79, 8001, 65535), (77, 78), whole=True),
)
EVERY_PORT = tuple(
    sorted(
        {port for shape in SHAPES for pair in shape.works for port in pair}
        | {p for s in SHAPES for p in s.closed}
    )
)
WAYS = ("LAN", "host", "itself", "sibling")


def declared() -> list[str]:
    found = []
    for proto in PROTOS:
        ranges = [words for shape in SHAPES if not shape.whole for words in shape.ranges]
        found.append(port_forward(*ranges, proto=proto))
        whole = [words for shape in SHAPES if shape.whole for words in shape.ranges]
        found += [port_forward(*whole, proto=proto, attributes=f'address="{f.extra}"') for f in FAMILIES]
    return found


@dataclass(frozen=True)
class Topology:
    testbed: Testbed
    places: dict[str, Ns]
    servers: Servers


@pytest.fixture(scope="module")
def topo() -> Iterator[Topology]:
    with netns.lab() as lab:
        testbed = Testbed(lab)
        testbed.second_addresses()
        web, db = testbed.guest("web", 200), testbed.guest("db", 201)
        servers = Servers()
        servers.serve(web, EVERY_PORT)
        testbed.start("web", *declared())
        yield Topology(testbed, {"LAN": lab.client, "host": lab.host, "itself": web, "sibling": db}, servers)


def seen_source(way: str, family: Family, asked: str) -> str:
    """Return the address that the guest must see: the client's own, but for its own network."""
    return {"LAN": family.client, "host": asked}.get(way, family.gateway)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("proto", PROTOS)
@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_cell(topo: Topology, family: Family, proto: str, shape: Shape, way: str) -> None:
    address = family.extra if shape.whole else family.host
    ns, expected = topo.places[way], seen_source(way, family, address)
    for port, to in shape.works:
        assert told(ns, address, port, proto) == ("web", expected, to)
    for port in shape.closed:
        assert silent(ns, address, port, proto, topo.servers), port


@pytest.mark.parametrize("proto", PROTOS)
@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_whole_address_leaves_the_others_alone(topo: Topology, family: Family, proto: str) -> None:
    assert told(topo.places["LAN"], family.extra, 65535, proto)[0] == "web"
    assert silent(topo.places["LAN"], family.host, 65535, proto, topo.servers)
    assert silent(topo.places["LAN"], family.gateway, 65535, proto, topo.servers)
