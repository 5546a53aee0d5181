"""isolate="yes": from outside only what is declared; and the counters of what came through."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from netns.support import FAMILIES, GUESTS, V4, Family, Topology, told, who
from support import netns
from support.xml import Nic, domain, forwards, host_ip, port_forward, uuid_of

pytestmark = pytest.mark.root

KINDS = [(family, proto) for family in FAMILIES for proto in ("tcp", "udp")]
ISOLATED = 'isolate="yes"'


def start(topo: Topology) -> None:
    forwards = [port_forward("8080:80", proto=proto) for proto in ("tcp", "udp")]
    topo.testbed.start("web", *forwards, attributes=ISOLATED)
    topo.testbed.start("db", port_forward("8081:80"))


def test_from_outside_only_declared_forwards_lead_in(topo: Topology) -> None:
    assert [who(topo.client, family.guest(200), 80, proto) for family, proto in KINDS] == ["web"] * 4
    start(topo)
    for family, proto in KINDS:
        for ns in (topo.client, topo.client2, topo.far):
            for port in (80, 5000):
                assert topo.silent(ns, family.guest(200), port, proto)
            assert who(ns, family.host, 8080, proto) == "web"
        assert who(topo.client, family.guest(201), 80, proto) == "db"
    topo.testbed.stop("web")
    assert [who(topo.client, family.guest(200), 80, proto) for family, proto in KINDS] == ["web"] * 4


def test_its_own_network_and_the_host_still_reach_it(topo: Topology) -> None:
    start(topo)
    for family, proto in KINDS:
        web = family.guest(200)
        assert told(topo.db, web, 5000, proto) == ("web", family.guest(201), 5000)
        assert told(topo.host, web, 5000, proto) == ("web", family.gateway, 5000)
        for ns in (topo.web, topo.db):
            assert told(ns, family.host, 8080, proto) == ("web", family.gateway, 80)


def test_connection_that_the_guest_opens_is_answered(topo: Topology) -> None:
    start(topo)
    for family, proto in KINDS:
        far = {4: "10.20.0.5", 6: "fd20:20::5"}[family.version]
        with topo.client.serve(proto, 9999, name="client"), topo.host.serve(proto, 9998, name="host"):
            assert told(topo.web, family.client, 9999, proto) == ("client", family.guest(200), 9999)
            assert told(topo.web, family.gateway, 9998, proto)[0] == "host"
        assert told(topo.web, far, 80, proto) == ("far", family.guest(200), 80)


def test_isolation_without_any_forward(topo: Topology) -> None:
    topo.testbed.start("web", attributes=ISOLATED)
    for family in FAMILIES:
        assert topo.silent(topo.client, family.guest(200), 80)
        assert who(topo.db, family.guest(200), 80) == "web"
        assert who(topo.host, family.guest(200), 80) == "web"
        with topo.client.serve("tcp", 9999, name="client"):
            assert who(topo.web, family.client, 9999) == "client"


class Unknown(NamedTuple):
    """Addresses of an isolated guest that nobody has told us of, as IPv6 privacy extensions make them."""

    address: str
    client: str
    far: str


@pytest.fixture(params=["declared", "nothing known"])
def unknown(topo: Topology, request: pytest.FixtureRequest) -> Iterator[list[Unknown]]:
    """Have the guest at more addresses than are declared, or declare none at all."""
    topo.web.ip("address add 10.10.0.77/24 dev eth0", "address add fd10:10::f00d:77/64 dev eth0 nodad")
    added = {4: "10.10.0.77", 6: "fd10:10::f00d:77"}
    # A server on one address answers from there.
    servers = [
        topo.web.serve(proto, 7777, name="web", address=address)
        for address, proto in itertools.product(added.values(), ("tcp", "udp"))
    ]
    for address, proto in itertools.product(added.values(), ("tcp", "udp")):
        assert who(topo.client, address, 7777, proto) == "web", "it is open without isolation"
    known = "" if request.param == "nothing known" else None
    start_isolated(topo, known)
    try:
        far = {4: "10.20.0.5", 6: "fd20:20::5"}
        yield [Unknown(added[family.version], family.client, far[family.version]) for family in FAMILIES]
    finally:
        for server in servers:
            server.close()
        topo.web.ip("address del 10.10.0.77/24 dev eth0", "address del fd10:10::f00d:77/64 dev eth0")


def start_isolated(topo: Topology, hosts: str | None) -> None:
    """Start the guest with the addresses that the lab declares, or with those in ``hosts``.

    The kernel may have just heard of the others.
    """
    for _ in range(5):
        topo.host.run(["ip", "neigh", "flush", "all"])
        with topo.testbed.declaring("web", hosts):
            topo.testbed.start("web", port_forward("8080:80"), attributes=ISOLATED)
        if not re.search(r"10\.10\.0\.77|f00d:77", topo.testbed.table()):
            return
        topo.testbed.stop("web")
    pytest.fail("the address is known")


def test_no_connection_to_an_unknown_address_is_answered(topo: Topology, unknown: list[Unknown]) -> None:
    for item in unknown:
        for ns, proto in itertools.product((topo.client, topo.client2, topo.far), ("tcp", "udp")):
            assert ns.unanswered(item.address, 7777, proto)
        # Nothing of TCP gets as far as a program.
        assert topo.silent(topo.client, item.address, 80)


def test_unknown_address_is_reached_on_its_own_network(topo: Topology, unknown: list[Unknown]) -> None:
    for item in unknown:
        for ns, proto in itertools.product((topo.db, topo.host), ("tcp", "udp")):
            assert who(ns, item.address, 7777, proto) == "web"


def test_connection_from_an_unknown_address_is_answered(topo: Topology, unknown: list[Unknown]) -> None:
    for item in unknown:
        for proto in ("tcp", "udp"):
            with topo.client.serve(proto, 9999, name="client"):
                assert who(topo.web, item.client, 9999, proto, source=item.address) == "client"
            assert who(topo.web, item.far, 80, proto, source=item.address) == "far"


def test_isolation_of_a_guest_of_which_nothing_is_known(topo: Topology) -> None:
    """From the first moment, and until its stop; the guest beside it is as open as ever."""
    start_isolated(topo, "")
    for family in FAMILIES:
        assert topo.silent(topo.client, family.guest(200), 80)
        assert who(topo.client, family.guest(201), 80) == "db"
    topo.testbed.stop("web")
    for family in FAMILIES:
        assert who(topo.client, family.guest(200), 80) == "web"


def test_another_guest_of_the_hardware_address_keeps_its_isolation(topo: Topology) -> None:
    """A clone that stops does not open the original."""
    start_isolated(topo, "")
    with topo.testbed.declaring("db", ""), topo.testbed.at_mac("db", GUESTS["web"]):
        topo.testbed.start("db", attributes=ISOLATED)
        topo.testbed.stop("db")
    for family in FAMILIES:
        assert topo.silent(topo.client, family.guest(200), 80)


def test_person_s_own_accept_does_not_open_it(topo: Topology) -> None:
    topo.host.nft("table inet mine { chain forward { type filter hook forward priority -10; accept; }; }")
    try:
        start(topo)
        for family in FAMILIES:
            assert topo.silent(topo.client, family.guest(200), 80)
            assert who(topo.client, family.host, 8080) == "web"
    finally:
        topo.host.nft("delete table inet mine")


COUNTER = re.compile(
    r"proto-dst (\d+)(?:-\d+)?(?: ct original ip6? [sd]addr (\S+))? counter packets (\d+) bytes (\d+)"
)


def counted(topo: Topology, name: str) -> dict[str, tuple[int, int]]:
    """Return packets and bytes in a guest's forward chain, by first port and the source or address asked."""
    chain = f"forward-{name}-{uuid_of(name)[:8]}"
    listed = topo.host.run(["nft", "list", "chain", "inet", "virt-forward", chain]).out
    found: dict[str, tuple[int, int]] = {}
    for port, limit, packets, size in COUNTER.findall(listed):
        key = f"{port} {limit}".strip()
        before = found.get(key, (0, 0))
        found[key] = (before[0] + int(packets), before[1] + int(size))
    return found


COUNTED = [
    port_forward("8080:80", proto="udp"),
    port_forward("9000-9009:5000", proto="udp"),
    port_forward("9100:80", proto="udp", attributes='dev="enp1s0"'),
    port_forward("9200:80", proto="udp", attributes=f'source="{V4.client}"'),
    port_forward("9200:80", proto="udp", attributes=f'source="{FAMILIES[1].client}"'),
    port_forward("!1-4999", "!5001-65535", proto="udp", attributes=f'address="{V4.extra}"'),
]


def asked_of(way: str, family: Family) -> list[tuple[str, str, int]]:
    """Return which counter counts what is asked at which address and port."""
    asked = [("8080", family.host, 8080), ("9000", family.host, 9005)]
    if way == "client":
        asked += [("9100", family.host, 9100), (f"9200 {family.client}", family.host, 9200)]
        asked += [(f"5000 {V4.extra}", V4.extra, 5000)]
    return asked


def test_counter_for_every_forward_counts_both_directions(topo: Topology) -> None:
    topo.testbed.start("web", *COUNTED)
    before = counted(topo, "web")
    assert list(before.values()) == [(0, 0)] * len(COUNTED)
    for way, family in itertools.product(("client", "web", "db", "far"), FAMILIES):
        for key, address, port in asked_of(way, family):
            assert who(getattr(topo, way), address, port, "udp") == "web"
            now = counted(topo, "web")
            assert {at: now[at][0] - before[at][0] for at in now if now[at] != before[at]} == {key: 2}
            assert now[key][1] - before[key][1] > 2 * 28
            before = now


def test_counters_live_through_the_changes_of_others(topo: Topology) -> None:
    topo.testbed.start("web", *COUNTED)
    assert who(topo.client, V4.host, 8080, "udp") == "web"
    before = counted(topo, "web")
    topo.testbed.start("db", port_forward("8081:80"))
    topo.testbed.stop("db")
    topo.testbed.event("web", "reconnect", *COUNTED)
    assert counted(topo, "web") == before


def test_no_forward_of_a_guest_on_another_bridge_leads_to_it() -> None:
    """That bridge has no subnet, which could tell that the address is not there."""
    with netns.lab() as lab:
        lab.add_bridge("br1")
        lab.add_bridge("br2")
        lab.host.ip("route add 10.30.0.0/24 dev br2")
        for ip, place in (("10.10.0.200", "10.10.0.0/24 on virbr0"), ("10.30.0.5", "10.30.0.0/24 on br2")):
            text = domain("evil", forwards(host_ip(ip), port_forward("2222:22")), [Nic("br1")])
            done = lab.hook("qemu", "evil", "prepare", xml=text, check=False)
            assert done.status == 1
            assert f'<host ip="{ip}"> is in {place}, but the guest is on br1' in done.err
