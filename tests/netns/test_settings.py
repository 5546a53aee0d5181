"""What config.toml says about uplinks, hairpin, reserved ports and errors, as packets and libvirt see it."""

from __future__ import annotations

import pytest

from netns.support import FAMILIES, PROTOS, V4, Family, Testbed, Topology, told, who
from support import netns
from support.xml import port_forward

pytestmark = pytest.mark.root

both = pytest.mark.parametrize("family", FAMILIES, ids=str)
EVERY_PROTO = [port_forward("8080:80", proto=proto) for proto in ("tcp", "udp")]


@both
def test_uplinks(topo: Topology, family: Family) -> None:
    topo.testbed.lab.configure('[forward]\nuplinks = ["enp1s0"]\n')
    topo.testbed.start("web", *EVERY_PROTO)
    for proto in ("tcp", "udp"):
        assert told(topo.client, family.host, 8080, proto) == ("web", family.client, 80)
        assert told(topo.client, family.second_host, 8080, proto) == ("web", family.client, 80)
        for place in (topo.host, topo.web, topo.db):
            assert who(place, family.host, 8080, proto) == "web"
        for address in (family.host, family.second_host):
            assert topo.silent(topo.client2, address, 8080, proto)
            assert topo.silent(topo.far, address, 8080, proto)


def test_device_that_is_no_uplink_is_refused(topo: Topology) -> None:
    topo.testbed.lab.configure('[forward]\nuplinks = ["enp1s0"]\n')
    said = topo.testbed.refused("web", port_forward("8080:80", attributes='dev="enp2s0"'))
    assert 'dev="enp2s0" is not among the uplinks in /etc/virt-forward/config.toml, which are enp1s0' in said


@both
def test_without_hairpin(topo: Topology, family: Family) -> None:
    topo.testbed.lab.configure("[forward]\nhairpin = false\n")
    topo.testbed.start("web", *EVERY_PROTO)
    for proto in ("tcp", "udp"):
        assert told(topo.client, family.host, 8080, proto) == ("web", family.client, 80)
        assert told(topo.host, family.host, 8080, proto) == ("web", family.host, 80)
        assert who(topo.far, family.host, 8080, proto) == "web"
        for place in (topo.web, topo.db):
            assert topo.silent(place, family.host, 8080, proto)


def test_reserved(topo: Topology) -> None:
    topo.testbed.lab.configure('[policy]\nreserved = ["tcp/8443", "udp/53"]\n')
    for ranges in (("8443",), ("8000-9000",), ("8443:80",)):
        said = topo.testbed.refused("web", port_forward(*ranges))
        assert "host port tcp/8443 is reserved by the configuration ([policy] reserved)" in said
    assert "udp/53 is reserved" in topo.testbed.refused("web", port_forward("53", proto="udp"))
    topo.testbed.start("web", port_forward("8443:80", proto="udp"), port_forward("53:80", "22:80"))
    assert who(topo.client, V4.host, 8443, "udp") == "web"
    assert who(topo.client, V4.host, 53) == "web"
    assert who(topo.client, V4.host, 22) == "web"


def test_ssh_is_reserved_unless_said_otherwise(topo: Topology) -> None:
    assert "host port tcp/22 is reserved" in topo.testbed.refused("web", port_forward("22"))
    topo.testbed.start("web", port_forward("22:80", proto="udp"))


@both
def test_whole_address_spares_what_the_host_keeps(topo: Topology, family: Family) -> None:
    topo.testbed.lab.configure('[policy]\nreserved = ["tcp/81"]\n')
    with topo.host.serve("tcp", 80, name="own"):
        topo.testbed.start("web", port_forward(attributes=f'address="{family.extra}"'))
        assert told(topo.client, family.extra, 5000)[0] == "web"
        assert who(topo.client, family.extra, 80) == "own"
        assert topo.silent(topo.client, family.extra, 81)


def test_warn_starts_a_guest_whose_forwards_are_wrong(topo: Topology) -> None:
    topo.testbed.lab.configure('[policy]\non_error = "warn"\n')
    wrong = port_forward("0")
    for operation in ("prepare", "started", "reconnect"):
        done = topo.testbed.event("web", operation, wrong, port_forward("8080:80"))
        assert (done.out, done.err) == ("", "")
    assert topo.silent(topo.client, V4.host, 8080)
    assert topo.testbed.table() == ""


def test_refuse_is_the_default_and_never_later_than_prepare(topo: Topology) -> None:
    wrong = port_forward("0")
    assert 'start="0" is wrong: use a port number from 1 to 65535' in topo.testbed.refused("web", wrong)
    for operation in ("started", "reconnect", "stopped", "release"):
        done = topo.testbed.event("web", operation, wrong)
        assert (done.out, done.err) == ("", "")


def test_warn_starts_a_guest_less_the_forwards_that_are_taken(topo: Topology) -> None:
    topo.testbed.start("web", port_forward("8080:80"))
    topo.testbed.lab.configure('[policy]\non_error = "warn"\n')
    topo.testbed.start("db", port_forward("8080:80", "8081:80"))
    assert who(topo.client, V4.host, 8080) == "web"
    assert who(topo.client, V4.host, 8081) == "db"
    topo.testbed.stop("web")
    assert who(topo.client, V4.host, 8080) == "db"


BROKEN = [
    ("[forward]\nuplink = []\n", "2: [forward] uplink: unknown key; known: uplinks, localhost, hairpin"),
    ('[forward]\n\nhairpin = "no"\n', "3: [forward] hairpin: use true, false or "),
    ('[policy]\nreserved = ["22"]\n', "2: [policy] reserved: use protocol/port"),
    ('[policy]\non_error = "ignore"\n', '2: [policy] on_error: use "refuse" or "warn"'),
    ("[forwards]\n", "1: unknown section [forwards]"),
]


@pytest.mark.parametrize(("text", "said"), BROKEN, ids=lambda value: value.split("\n")[0])
def test_broken_configuration_is_told_by_file_line_and_key(topo: Topology, text: str, said: str) -> None:
    topo.testbed.lab.configure(text)
    assert f"{topo.testbed.lab.config}:{said}" in topo.testbed.refused("web", port_forward("8080"))


def test_configuration_that_broke_meanwhile_leaves_the_last_one_in_force(topo: Topology) -> None:
    topo.testbed.lab.configure('[forward]\nuplinks = ["enp1s0"]\n')
    topo.testbed.start("web", port_forward("8080:80"))
    topo.testbed.lab.configure("[forward]\nuplinks = 1\n")
    topo.testbed.event("db", "reconnect", port_forward("8081:80"))
    assert who(topo.client, V4.host, 8081) == "db"
    assert topo.silent(topo.client2, V4.host, 8081)
    assert topo.silent(topo.client2, V4.host, 8080)
    topo.testbed.stop("web")
    assert topo.silent(topo.client, V4.host, 8080)


@both
def test_wildcards_serve_the_families_that_the_guest_has(family: Family) -> None:
    """A guest of one family has forwards in that family only; nothing of the other is caught."""
    with netns.lab() as lab:
        testbed = Testbed(lab)
        guest = testbed.guest("one", 210, v4=family is V4, v6=family is not V4)
        testbed.start("one", *(port_forward("8090:80", proto=proto) for proto in PROTOS))
        for proto in PROTOS:
            guest.serve(proto, 80, name="one")
            for other in FAMILIES:
                with lab.host.serve(proto, 8090, name="host", address=other.host):
                    expected = "one" if other is family else "host"
                    assert who(lab.client, other.host, 8090, proto) == expected
