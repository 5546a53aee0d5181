"""Beside every forward: what was not declared stays as it was, and nobody's traffic is caught on its way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from netns.support import FAMILIES, PROTOS, Crowd, Family, Scene, silent, told, who
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
class Stage:
    """Two uplinks with a client each, two guests on one bridge, one on another; only ``web`` has forwards."""

    host: Ns
    client: Ns
    client2: Ns
    web: Ns
    db: Ns
    far: Ns
    crowd: Crowd


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
def stage() -> Iterator[Stage]:
    with netns.lab() as lab:
        scene = Scene(lab)
        scene.second_addresses()
        client2 = scene.routed()
        web, db, far = scene.guest("web", 200), scene.guest("db", 201), scene.far_guest("far", 5)
        scene.start("web", *declared())
        crowd = Crowd()
        crowd.serve(web, (80, PLAIN, DNS, SOURCE, SOURCE_RANGE, 9333, DEV, ADDRESS))
        for place in (far, lab.client, client2):
            crowd.serve(place, (PLAIN, 9999))
        for family in FAMILIES:
            crowd.serve(lab.host, (PLAIN,), name="loopback", address=family.loopback)
            crowd.serve(lab.host, (DNS,), name="gateway", address=family.gateway)
        yield Stage(lab.host, lab.client, client2, web, db, far, crowd)


def test_wrong_source(stage: Stage, family: Family, proto: str) -> None:
    for port in (SOURCE, SOURCE_RANGE, 9333):
        assert silent(stage.client, family.host, port, proto, stage.crowd)
        assert silent(stage.client, family.host, port, proto, stage.crowd, source=family.more(4))
        assert silent(stage.host, family.host, port, proto, stage.crowd)
    seen = ("web", family.more(3))
    assert told(stage.client, family.host, SOURCE, proto, source=family.more(3)) == (*seen, 80)
    assert told(stage.client, family.host, 9333, proto, source=family.more(3)) == (*seen, 9333)


def test_wrong_device(stage: Stage, family: Family, proto: str) -> None:
    for address in (family.host, family.second_host):
        assert silent(stage.client, address, DEV, proto, stage.crowd)
        assert silent(stage.host, address, DEV, proto, stage.crowd)
        assert silent(stage.db, address, DEV, proto, stage.crowd)
        assert told(stage.client2, address, DEV, proto) == ("web", family.second_client, 80)


def test_wrong_address(stage: Stage, family: Family, proto: str) -> None:
    for place in (stage.client, stage.client2, stage.host, stage.db):
        assert silent(place, family.host, ADDRESS, proto, stage.crowd)
        assert told(place, family.second_host, ADDRESS, proto)[0] == "web"


def test_traffic_that_only_passes_through_is_never_caught(stage: Stage, family: Family, proto: str) -> None:
    own, far = family.guest(200), {4: "10.20.0.5", 6: "fd20:20::5"}[family.version]
    assert told(stage.web, family.client, PLAIN, proto) == ("client", own, PLAIN)
    assert told(stage.web, far, PLAIN, proto) == ("far", own, PLAIN)
    assert told(stage.client, family.second_client, PLAIN, proto) == ("client2", family.client, PLAIN)
    assert told(stage.client, far, PLAIN, proto) == ("far", family.client, PLAIN)
    assert told(stage.client, own, PLAIN, proto) == ("web", family.client, PLAIN)
    assert told(stage.db, own, PLAIN, proto) == ("web", family.guest(201), PLAIN)


def test_the_hosts_own_connections_from_a_forwarded_port_are_left_alone(
    stage: Stage, family: Family, proto: str
) -> None:
    answer = stage.host.ask(family.client, 9999, proto, sport=OWN, timeout=2)
    assert answer is not None
    assert (answer.name, answer.source, answer.sport) == ("client", family.host, OWN)


def test_a_service_on_the_hosts_loopback_keeps_its_port(stage: Stage, family: Family, proto: str) -> None:
    assert told(stage.host, family.loopback, PLAIN, proto) == ("loopback", family.loopback, PLAIN)
    assert told(stage.host, family.host, PLAIN, proto)[0] == "web"
    assert told(stage.client, family.host, PLAIN, proto)[0] == "web"


def test_guests_keep_the_gateways_dns(stage: Stage, family: Family, proto: str) -> None:
    for place in (stage.web, stage.db):
        assert told(place, family.gateway, DNS, proto)[0] == "gateway"
        assert told(place, family.host, DNS, proto) == ("web", family.gateway, DNS)
    assert told(stage.client, family.host, DNS, proto) == ("web", family.client, DNS)


@pytest.mark.parametrize("way", ["host", "client", "far"])
def test_nobody_loses_the_gateways_dns(stage: Stage, family: Family, proto: str, way: str) -> None:
    place = {"host": stage.host, "client": stage.client, "far": stage.far}[way]
    assert who(place, family.gateway, DNS, proto) == "gateway"


def test_no_forward_listens_on_the_gateway_address(stage: Stage, family: Family, proto: str) -> None:
    for place in (stage.host, stage.web, stage.db, stage.far, stage.client):
        assert silent(place, family.gateway, PLAIN, proto, stage.crowd)


def test_the_stage_itself(stage: Stage, family: Family, proto: str) -> None:
    """Silence proves nothing where the way is cut: the same ways do lead to the host."""
    for address in (family.host, family.gateway):
        with stage.host.serve(proto, 9876, name="host", address=address):
            for place in (stage.client, stage.client2, stage.host, stage.db, stage.far):
                assert who(place, address, 9876, proto) == "host"
