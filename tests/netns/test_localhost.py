"""127.0.0.1 on the host by ``localhost = true``, with the guard; ::1 never, and in words."""

from __future__ import annotations

import pytest

from netns.support import FAMILIES, PROTOS, V4, Servers, Topology, silent, told, who
from support.netns import BRIDGE, Ns
from support.xml import port_forward

pytestmark = pytest.mark.root

LOCALHOST = "[forward]\nlocalhost = true\n"


def route_localnet(topo: Topology) -> str:
    return topo.host.run(["cat", f"/proc/sys/net/ipv4/conf/{BRIDGE}/route_localnet"]).out.strip()


def declare(topo: Topology, *ranges: str, attributes: str = "") -> None:
    protos = ("tcp", "udp")
    topo.testbed.start(
        "web", *(port_forward(*ranges, proto=proto, attributes=attributes) for proto in protos)
    )


@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_off_by_default(topo: Topology, proto: str) -> None:
    declare(topo, "8080:80")
    assert told(topo.host, V4.host, 8080, proto)[0] == "web"
    for family in FAMILIES:
        assert topo.silent(topo.host, family.loopback, 8080, proto)
    assert route_localnet(topo) == "0"


def test_on(topo: Topology) -> None:
    topo.testbed.lab.configure(LOCALHOST)
    declare(topo, "8080:80", "5000-5009", "20000-29999:5000", attributes="")
    for proto in ("tcp", "udp"):
        assert told(topo.host, "127.0.0.1", 8080, proto) == ("web", V4.gateway, 80)
        assert told(topo.host, "127.0.0.1", 5005, proto) == ("web", V4.gateway, 5005)
        assert told(topo.host, "127.0.0.1", 20005, proto) == ("web", V4.gateway, 5005)
        assert told(topo.host, V4.host, 8080, proto) == ("web", V4.host, 80)
        assert told(topo.client, V4.host, 8080, proto) == ("web", V4.client, 80)
        assert topo.silent(topo.host, "127.0.0.1", 8081, proto)
        assert topo.silent(topo.host, "::1", 8080, proto)


def test_127_0_0_1_alone(topo: Topology) -> None:
    topo.testbed.lab.configure(LOCALHOST)
    declare(topo, "8080:80", attributes='address="127.0.0.1"')
    for proto in ("tcp", "udp"):
        assert told(topo.host, "127.0.0.1", 8080, proto) == ("web", V4.gateway, 80)
        for ns in (topo.host, topo.client, topo.db):
            assert topo.silent(ns, V4.host, 8080, proto)


def reach_for_loopback(ns: Ns, gateway: str) -> None:
    """Make a guest send to 127.0.0.1 on the wire, as a hostile one would."""
    ns.sysctl("net.ipv4.conf.all.route_localnet", 1)
    ns.ip("address del 127.0.0.1/8 dev lo", f"route add 127.0.0.1/32 via {gateway}")


def stop_reaching(ns: Ns) -> None:
    ns.ip("route del 127.0.0.1/32", "address add 127.0.0.1/8 dev lo")


@pytest.mark.parametrize("hostile", ["db", "client"])
def test_guard_keeps_the_hosts_loopback_to_itself(topo: Topology, hostile: str) -> None:
    ns: Ns = getattr(topo, hostile)
    topo.testbed.lab.configure(LOCALHOST)
    declare(topo, "8080:80")
    reach_for_loopback(ns, V4.gateway if hostile == "db" else V4.host)
    try:
        with topo.host.serve("udp", 9999, name="secret", address="127.0.0.1") as secret:
            assert who(topo.host, "127.0.0.1", 9999, "udp") == "secret"
            servers = Servers([secret])
            assert silent(ns, "127.0.0.1", 9999, "udp", servers)
            assert silent(ns, "127.0.0.1", 8080, "udp", servers)
            seen = servers.requests()
            if hostile == "db":
                # Without the guard the same packet does arrive: the silence above is the guard's doing.
                topo.host.nft("flush chain inet virt-forward guard")
                ns.knock("127.0.0.1", 9999, "udp")
                assert servers.requests() == seen + 1
    finally:
        stop_reaching(ns)


def test_guard_comes_with_the_setting_at_an_event_that_changes_no_rule(topo: Topology) -> None:
    ports = [port_forward("8080:80", proto=proto) for proto in ("tcp", "udp")]
    topo.testbed.start("web", *ports)
    topo.testbed.lab.configure(LOCALHOST)
    topo.testbed.event("web", "reconnect", *ports)
    assert route_localnet(topo) == "1"
    assert told(topo.host, "127.0.0.1", 8080, "udp") == ("web", V4.gateway, 80)
    reach_for_loopback(topo.db, V4.gateway)
    try:
        with topo.host.serve("udp", 9999, name="secret", address="127.0.0.1") as secret:
            assert silent(topo.db, "127.0.0.1", 9999, "udp", Servers([secret]))
    finally:
        stop_reaching(topo.db)


def test_route_localnet_goes_with_the_last_guest(topo: Topology) -> None:
    topo.testbed.lab.configure(LOCALHOST)
    declare(topo, "8080:80")
    topo.testbed.start("db", port_forward("8081:80"))
    assert route_localnet(topo) == "1"
    topo.testbed.stop("web")
    assert route_localnet(topo) == "1"
    topo.testbed.stop("db")
    assert route_localnet(topo) == "0"


def test_without_the_setting_an_address_of_loopback_is_refused(topo: Topology) -> None:
    said = topo.testbed.refused("web", port_forward("8080", attributes='address="127.0.0.1"'))
    assert 'address="127.0.0.1" needs localhost = true in section [forward]' in said


@pytest.mark.parametrize("proto", PROTOS)
def test_loopback_of_ipv6_is_refused_in_words(topo: Topology, proto: str) -> None:
    topo.testbed.lab.configure(LOCALHOST)
    said = topo.testbed.refused("web", port_forward("8080", proto=proto, attributes='address="::1"'))
    assert "the kernel cannot forward ::1" in said


def test_with_it_a_listener_on_loopback_stands_against_a_forward(topo: Topology) -> None:
    with topo.host.serve("tcp", 8080, name="own", address="127.0.0.1"):
        declare(topo, "8080:80")
        assert told(topo.host, "127.0.0.1", 8080)[0] == "own"
        topo.testbed.stop("web")
        topo.testbed.lab.configure(LOCALHOST)
        said = topo.testbed.refused("web", port_forward("8080:80"))
        assert "host port tcp/8080 is taken by" in said
        assert "which listens on 127.0.0.1" in said
