"""Guests that share a host port: the more special claim wins, whoever started first; equals are refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from netns.support import FAMILIES, V4, V6, Family, Topology, told, who
from support.xml import port_forward

pytestmark = pytest.mark.root

NAMES = ("web", "db", "app")
orders = pytest.mark.parametrize("order", [NAMES, NAMES[::-1]], ids="-".join)

Limit = Callable[[Family], str]


def at(which: str) -> Limit:
    return lambda family: f'address="{getattr(family, which)}"'


def dev(name: str) -> Limit:
    return lambda _: f'dev="{name}"'


def source(which: str) -> Limit:
    return lambda family: f'source="{getattr(family, which)}"'


def everywhere(_: Family) -> str:
    return ""


def claim(*limits: Limit, ranges: tuple[str, ...] = ("8080:80",), proto: str = "tcp") -> list[str]:
    """Declare the same in both families, where the limits make a difference between them."""
    found = (" ".join(limit(family) for limit in limits) for family in FAMILIES)
    return [port_forward(*ranges, proto=proto, attributes=words) for words in dict.fromkeys(found)]


def start(topo: Topology, claims: dict[str, list[str]], order: tuple[str, ...] = NAMES) -> None:
    for name in (name for name in order if name in claims):
        if order == NAMES:
            topo.testbed.event(name, "prepare", *claims[name])
        # Without prepare, as when libvirtd comes back to its guests in an order of its own.
        topo.testbed.event(name, "started" if order == NAMES else "reconnect", *claims[name])


@orders
def test_by_address(topo: Topology, order: tuple[str, ...]) -> None:
    start(topo, {"web": claim(at("host")), "db": claim(at("extra")), "app": claim()}, order)
    for family in FAMILIES:
        for place in (topo.client, topo.client2, topo.host, topo.web, topo.db, topo.far):
            assert who(place, family.host, 8080) == "web"
            assert who(place, family.extra, 8080) == "db"
            assert who(place, family.second_host, 8080) == "app"


def test_forward_that_names_the_gateway_address_gets_it(topo: Topology) -> None:
    topo.testbed.start("web", *claim(at("gateway")))
    for family in FAMILIES:
        for place in (topo.client, topo.host, topo.web, topo.db, topo.far):
            assert who(place, family.gateway, 8080) == "web"
            assert topo.silent(place, family.host, 8080)


@orders
def test_by_device(topo: Topology, order: tuple[str, ...]) -> None:
    start(topo, {"web": claim(dev("enp1s0")), "db": claim(dev("enp2s0")), "app": claim()}, order)
    for family in FAMILIES:
        assert who(topo.client, family.host, 8080) == "web"
        assert who(topo.client, family.second_host, 8080) == "web"
        assert who(topo.client2, family.host, 8080) == "db"
        for place in (topo.host, topo.web, topo.db, topo.far):
            assert who(place, family.host, 8080) == "app"


def test_by_disjoint_source(topo: Topology) -> None:
    kinds = [(family, proto) for family in FAMILIES for proto in ("tcp", "udp")]
    for name, which in (("web", "third"), ("db", "fourth")):
        topo.testbed.start(
            name, *(line for proto in ("tcp", "udp") for line in claim(source(which), proto=proto))
        )
    for family, proto in kinds:
        assert who(topo.client, family.host, 8080, proto, source=family.third) == "web"
        assert who(topo.client, family.host, 8080, proto, source=family.fourth) == "db"
        assert topo.silent(topo.client, family.host, 8080, proto)
    topo.testbed.start("app", *claim(proto="tcp"), *claim(proto="udp"))
    for family, proto in kinds:
        assert who(topo.client, family.host, 8080, proto) == "app"
    topo.testbed.stop("web")
    for family, proto in kinds:
        assert who(topo.client, family.host, 8080, proto, source=family.third) == "app"


@orders
def test_by_nested_source(topo: Topology, order: tuple[str, ...]) -> None:
    start(topo, {"web": claim(source("third")), "db": claim(source("lan")), "app": claim()}, order)
    for family in FAMILIES:
        assert who(topo.client, family.host, 8080, source=family.third) == "web"
        assert who(topo.client, family.host, 8080, source=family.fourth) == "db"
        assert who(topo.client2, family.host, 8080) == "app"
        assert who(topo.db, family.host, 8080) == "app"


@orders
def test_address_before_device_before_source(topo: Topology, order: tuple[str, ...]) -> None:
    claims = {"web": claim(at("host")), "db": claim(dev("enp1s0")), "app": claim(source("client"))}
    start(topo, claims, order)
    for family in FAMILIES:
        assert who(topo.client, family.host, 8080) == "web"
        assert who(topo.client, family.extra, 8080) == "db"
        assert who(topo.client2, family.host, 8080) == "web"
        assert topo.silent(topo.client2, family.extra, 8080)
    topo.testbed.stop("db")
    assert [who(topo.client, family.extra, 8080) for family in FAMILIES] == ["app", "app"]


@orders
def test_at_one_address_device_before_source_before_all(topo: Topology, order: tuple[str, ...]) -> None:
    here = at("host")
    claims = {"web": claim(here, dev("enp2s0")), "db": claim(here, source("third")), "app": claim(here)}
    start(topo, claims, order)
    for family in FAMILIES:
        assert who(topo.client2, family.host, 8080) == "web"
        assert who(topo.client, family.host, 8080, source=family.third) == "db"
        assert who(topo.client, family.host, 8080) == "app"


@orders
def test_single_port_in_a_wide_range(topo: Topology, order: tuple[str, ...]) -> None:
    claims = {
        "web": claim(ranges=("5000-5999",)),
        "db": claim(source("third"), ranges=("5555",)),
        "app": claim(dev("enp2s0"), ranges=("5555",)),
    }
    start(topo, claims, order)
    for family in FAMILIES:
        assert who(topo.client, family.host, 5555) == "web"
        assert who(topo.client, family.host, 5555, source=family.third) == "db"
        assert who(topo.client2, family.host, 5555) == "app"
        assert who(topo.client2, family.host, 5800) == "web"
    topo.testbed.stop("web")
    for family in FAMILIES:
        assert topo.silent(topo.client, family.host, 5555)
        assert who(topo.client, family.host, 5555, source=family.third) == "db"


@orders
def test_wide_range_that_is_the_more_special_one(topo: Topology, order: tuple[str, ...]) -> None:
    claims = {
        "web": claim(source("third"), ranges=("5000-5999",)),
        "db": claim(source("lan"), ranges=("5555", "5000-5005")),
        "app": claim(ranges=("5555", "5800")),
    }
    start(topo, claims, order)
    for family in FAMILIES:
        for port in (5000, 5005, 5555, 5800):
            assert who(topo.client, family.host, port, source=family.third) == "web"
        for port in (5000, 5005, 5555):
            assert who(topo.client, family.host, port) == "db"
        assert who(topo.client, family.host, 5800) == "app"
        assert who(topo.client2, family.host, 5555) == "app"
        assert topo.silent(topo.client2, family.host, 5000)


@orders
def test_wide_ranges_that_overlap(topo: Topology, order: tuple[str, ...]) -> None:
    claims = {
        "web": claim(source("lan"), ranges=("5000-5999",)),
        "db": claim(dev("enp1s0"), ranges=("5500-6999",)),
        "app": claim(at("extra"), ranges=()),
    }
    start(topo, claims, order)
    for family in FAMILIES:
        assert who(topo.client, family.host, 5005) == "web"
        assert who(topo.client, family.host, 5555) == "db"
        assert who(topo.client, family.host, 6500) == "db"
        assert who(topo.client, family.extra, 5555) == "app"
        assert topo.silent(topo.client2, family.host, 5555)
    topo.testbed.stop("db")
    assert [who(topo.client, family.host, 5555) for family in FAMILIES] == ["web", "web"]


SHIFTED = [("5000-5005:6000", {5000: 6000, 5005: 6005}), ("4500-5499:5000", {4500: 5000, 5499: 5999})]


@pytest.mark.parametrize(("words", "pairs"), SHIFTED, ids=["modest", "wide"])
@pytest.mark.parametrize("limit", [source("client"), dev("enp1s0")], ids=["source", "dev"])
def test_narrowed_range_keeps_its_offset(
    topo: Topology, limit: Limit, words: str, pairs: dict[int, int]
) -> None:
    topo.testbed.start("web", *claim(limit, ranges=(words,)))
    for family in FAMILIES:
        for port, to in pairs.items():
            assert told(topo.client, family.host, port) == ("web", family.client, to)
            assert topo.silent(topo.client2, family.host, port)
        assert topo.silent(topo.client, family.host, max(pairs) + 1)


@pytest.mark.parametrize("limits", [(at("extra"),), (at("extra"), dev("enp1s0"))], ids=["address", "both"])
def test_shifted_range_at_an_address_goes_before_that_of_another_guest(
    topo: Topology, limits: tuple[Limit, ...]
) -> None:
    start(topo, {"web": claim(*limits, ranges=("5000-5005:6000",)), "db": claim(ranges=("5000-5005:5995",))})
    for family in FAMILIES:
        assert told(topo.client, family.extra, 5005) == ("web", family.client, 6005)
        assert told(topo.client, family.host, 5005) == ("db", family.client, 6000)


def test_two_families_are_shared_by_source(topo: Topology) -> None:
    v4, v6 = (port_forward("8080:80", attributes=f'source="{family.any}"') for family in FAMILIES)
    start(topo, {"web": [v4], "db": [v6]})
    assert who(topo.client, V4.host, 8080) == "web"
    assert who(topo.client, V6.host, 8080) == "db"


@dataclass(frozen=True)
class Equal:
    """Two claims of which neither is the more special, and the first port on which they meet."""

    port: int
    first: tuple[str, ...]
    second: tuple[str, ...]
    limit: Limit = everywhere
    proto: str = "tcp"


EQUALS = [
    Equal(8080, ("8080:80",), ("8080:81",)),
    Equal(5009, ("5000-5009",), ("5009-5020",)),
    Equal(5555, ("5000-5999",), ("5555",)),
    Equal(5998, ("5000-5999",), ("5998-7000",)),
    Equal(80, (), ("80",), at("extra")),
    Equal(443, ("443",), (), at("extra")),
    Equal(8080, ("8080",), ("8080",), dev("enp1s0")),
    Equal(5555, ("5000-5999",), ("5555",), source("client")),
    Equal(53, ("53",), ("50-60:50",), proto="udp"),
    Equal(5009, ("5000-5009",), ("5009-9000",), dev("enp1s0"), proto="sctp"),
]


@pytest.mark.parametrize("case", EQUALS, ids=lambda case: f"{case.proto}-{case.port}-{case.limit(V4)}")
def test_equal_claim_is_refused_and_names_the_first(topo: Topology, case: Equal) -> None:
    first, second = (
        claim(case.limit, ranges=ranges, proto=case.proto) for ranges in (case.first, case.second)
    )
    topo.testbed.event("web", "prepare", *first)
    said = topo.testbed.refused("db", *second)
    assert f'guest "db": host port {case.proto}/{case.port} is taken by guest web' in said


def test_refused_guest_leaves_nothing_and_may_come_when_the_first_has_gone(topo: Topology) -> None:
    topo.testbed.start("web", *claim())
    before = topo.testbed.table()
    assert "taken by guest web" in topo.testbed.refused("db", *claim())
    # libvirt calls both for a start that failed.
    topo.testbed.stop("db")
    assert topo.testbed.table() == before
    assert who(topo.client, V4.host, 8080) == "web"
    topo.testbed.stop("web")
    topo.testbed.start("db", *claim())
    assert who(topo.client, V4.host, 8080) == "db"


def test_kept_out_while_the_first_runs_and_freed_when_it_stops(topo: Topology) -> None:
    topo.testbed.start("web", *claim())
    topo.testbed.event("db", "reconnect", *claim(), *claim(ranges=("9090:80",)))
    topo.testbed.event("app", "reconnect", *claim())
    for family in FAMILIES:
        assert who(topo.client, family.host, 8080) == "web"
        assert who(topo.client, family.host, 9090) == "db"
    topo.testbed.stop("web")
    winner = who(topo.client, V4.host, 8080)
    assert winner in ("db", "app")
    assert who(topo.client, V6.host, 8080) == winner
    topo.testbed.stop(winner)
    left = {"db": "app", "app": "db"}[winner]
    assert [who(topo.client, family.host, 8080) for family in FAMILIES] == [left, left]
