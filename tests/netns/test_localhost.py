"""127.0.0.1 on the host by ``localhost = true``, with the guard; ::1 never, and in words."""

from __future__ import annotations

import pytest

from netns.support import FAMILIES, PROTOS, SILENCE, V4, Cast, Crowd, silent, told, who
from support.netns import BRIDGE, Ns
from support.xml import port_forward

pytestmark = pytest.mark.root

LOCALHOST = "[forward]\nlocalhost = true\n"


def route_localnet(cast: Cast) -> str:
    return cast.host.run(["cat", f"/proc/sys/net/ipv4/conf/{BRIDGE}/route_localnet"]).out.strip()


def declare(cast: Cast, *ranges: str, attributes: str = "") -> None:
    protos = ("tcp", "udp")
    cast.scene.start("web", *(port_forward(*ranges, proto=proto, attributes=attributes) for proto in protos))


@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_off_by_default(cast: Cast, proto: str) -> None:
    declare(cast, "8080:80")
    assert told(cast.host, V4.host, 8080, proto)[0] == "web"
    for family in FAMILIES:
        assert cast.silent(cast.host, family.loopback, 8080, proto)
    assert route_localnet(cast) == "0"


def test_on(cast: Cast) -> None:
    cast.scene.lab.configure(LOCALHOST)
    declare(cast, "8080:80", "5000-5009", "20000-29999:5000", attributes="")
    for proto in ("tcp", "udp"):
        assert told(cast.host, "127.0.0.1", 8080, proto) == ("web", V4.gateway, 80)
        assert told(cast.host, "127.0.0.1", 5005, proto) == ("web", V4.gateway, 5005)
        assert told(cast.host, "127.0.0.1", 20005, proto) == ("web", V4.gateway, 5005)
        assert told(cast.host, V4.host, 8080, proto) == ("web", V4.host, 80)
        assert told(cast.client, V4.host, 8080, proto) == ("web", V4.client, 80)
        assert cast.silent(cast.host, "127.0.0.1", 8081, proto)
        assert cast.silent(cast.host, "::1", 8080, proto)


def test_127_0_0_1_alone(cast: Cast) -> None:
    cast.scene.lab.configure(LOCALHOST)
    declare(cast, "8080:80", attributes='address="127.0.0.1"')
    for proto in ("tcp", "udp"):
        assert told(cast.host, "127.0.0.1", 8080, proto) == ("web", V4.gateway, 80)
        for place in (cast.host, cast.client, cast.db):
            assert cast.silent(place, V4.host, 8080, proto)


def reach_for_loopback(place: Ns, gateway: str) -> None:
    """Make a guest send to 127.0.0.1 on the wire, as a hostile one would."""
    place.sysctl("net.ipv4.conf.all.route_localnet", 1)
    place.ip("address del 127.0.0.1/8 dev lo", f"route add 127.0.0.1/32 via {gateway}")


def stop_reaching(place: Ns) -> None:
    place.ip("route del 127.0.0.1/32", "address add 127.0.0.1/8 dev lo")


@pytest.mark.parametrize("hostile", ["db", "client"])
def test_the_guard_keeps_the_hosts_loopback_to_itself(cast: Cast, hostile: str) -> None:
    place: Ns = getattr(cast, hostile)
    cast.scene.lab.configure(LOCALHOST)
    declare(cast, "8080:80")
    reach_for_loopback(place, V4.gateway if hostile == "db" else V4.host)
    try:
        with cast.host.serve("udp", 9999, name="secret", address="127.0.0.1") as secret:
            assert who(cast.host, "127.0.0.1", 9999, "udp") == "secret"
            crowd = Crowd([secret])
            assert silent(place, "127.0.0.1", 9999, "udp", crowd)
            assert silent(place, "127.0.0.1", 8080, "udp", crowd)
            seen = crowd.heard()
            if hostile == "db":
                # Without the guard the same packet does arrive: the silence above is the guard's doing.
                cast.host.nft("flush chain inet virt-forward guard")
                place.ask("127.0.0.1", 9999, "udp", timeout=SILENCE)
                assert crowd.heard() == seen + 1
    finally:
        stop_reaching(place)


def test_route_localnet_goes_with_the_last_guest(cast: Cast) -> None:
    cast.scene.lab.configure(LOCALHOST)
    declare(cast, "8080:80")
    cast.scene.start("db", port_forward("8081:80"))
    assert route_localnet(cast) == "1"
    cast.scene.stop("web")
    assert route_localnet(cast) == "1"
    cast.scene.stop("db")
    assert route_localnet(cast) == "0"


def test_without_the_setting_an_address_of_loopback_is_refused(cast: Cast) -> None:
    said = cast.scene.refused("web", port_forward("8080", attributes='address="127.0.0.1"'))
    assert 'address="127.0.0.1" needs localhost = true in section [forward]' in said


@pytest.mark.parametrize("proto", PROTOS)
def test_the_loopback_of_ipv6_is_refused_in_words(cast: Cast, proto: str) -> None:
    cast.scene.lab.configure(LOCALHOST)
    said = cast.scene.refused("web", port_forward("8080", proto=proto, attributes='address="::1"'))
    assert "the kernel cannot forward ::1" in said


def test_with_it_a_listener_on_loopback_stands_against_a_forward(cast: Cast) -> None:
    with cast.host.serve("tcp", 8080, name="own", address="127.0.0.1"):
        declare(cast, "8080:80")
        assert told(cast.host, "127.0.0.1", 8080)[0] == "own"
        cast.scene.stop("web")
        cast.scene.lab.configure(LOCALHOST)
        said = cast.scene.refused("web", port_forward("8080:80"))
        assert "host port tcp/8080 is taken by" in said
        assert "which listens on 127.0.0.1" in said
