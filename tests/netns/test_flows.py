"""Connections that are older than a change: what leads nowhere ends, and nobody else's is touched."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from netns.support import FAMILIES, Family, Topology, mac_of, who
from support import xml
from support.netns import BRIDGE, Ns
from support.payload import Conversation
from support.proc import eventually
from support.xml import port_forward

pytestmark = pytest.mark.root

both = pytest.mark.parametrize("family", FAMILIES, ids=str)
protos = pytest.mark.parametrize("proto", ["tcp", "udp"])


def identities(topo: Topology, proto: str) -> set[str]:
    """Return the kernel's own numbers of all connections: one that ended and came again has another."""
    argv = ["conntrack", "-L", "-o", "id", "-p", proto]
    listed = [topo.host.run([*argv, "-f", f"ipv{family.version}"]).out for family in FAMILIES]
    return {word for text in listed for word in text.split() if word.startswith("id=")}


KINDS = [(family, proto) for family in FAMILIES for proto in ("tcp", "udp")]


def answers(talk: Conversation) -> str | None:
    answer = talk.ask()
    return answer.name if answer else None


def tracked(topo: Topology, family: Family, proto: str, *words: str) -> int:
    """Count the connections that conntrack knows of."""
    argv = ["conntrack", "-L", "-f", f"ipv{family.version}", "-p", proto, *words]
    return len(topo.host.run(argv).out.splitlines())


@contextlib.contextmanager
def stateful(topo: Topology) -> Iterator[None]:
    """Load what makes the kernel track connections before a guest of ours has started."""
    topo.host.nft(
        "table inet mine { chain input { type filter hook input priority 0; ct state new accept; }; }"
    )
    try:
        yield
    finally:
        topo.host.nft("delete table inet mine")


def declared(*ranges: str) -> list[str]:
    return [port_forward(*ranges, proto=proto) for proto in ("tcp", "udp")]


def opened(topo: Topology, ns: Ns) -> list[Conversation]:
    return [ns.conversation(family.host, 8080, proto) for family, proto in KINDS]


def test_flows_end_with_their_guest(topo: Topology) -> None:
    topo.testbed.start("web", *declared("8080:80"))
    places = (topo.client, topo.host, topo.web, topo.db)
    talks = [talk for ns in places for talk in opened(topo, ns)]
    for _ in range(2):
        assert [answers(talk) for talk in talks] == ["web"] * len(talks)
    mine = ("--orig-port-dst", "8080")
    assert [tracked(topo, *kind, *mine) for kind in KINDS] == [len(places)] * 4
    topo.testbed.event("web", "stopped")
    assert [tracked(topo, *kind, *mine) for kind in KINDS] == [0] * 4
    seen = topo.servers.requests()
    assert [talk.ask() for talk in talks[::4]] == [None] * 4
    assert topo.servers.requests() == seen


@protos
def test_nobody_elses_flows_are_touched(topo: Topology, proto: str) -> None:
    topo.testbed.start("web", port_forward("8080:80", "5000-5009", proto=proto))
    topo.testbed.start("db", port_forward("8081:80", proto=proto))
    with contextlib.ExitStack() as servers:
        talks: list[tuple[str, Conversation]] = []
        servers.enter_context(topo.client.serve(proto, 8080, name="client"))
        for family in FAMILIES:
            servers.enter_context(topo.host.serve(proto, 9999, name="host", address=family.host))
            talks += [
                ("db", topo.client.conversation(family.host, 8081, proto)),
                ("host", topo.client.conversation(family.host, 9999, proto)),
                ("client", topo.web.conversation(family.client, 8080, proto)),
                ("web", topo.client.conversation(family.guest(200), 80, proto)),
            ]
        everybody = [name for name, _ in talks]
        assert [answers(talk) for _, talk in talks] == everybody
        before = identities(topo, proto)
        assert len(before) == len(talks)
        topo.testbed.stop("web")
        topo.testbed.start("web", port_forward("8080:81", proto=proto))
        assert identities(topo, proto) == before
        assert [answers(talk) for _, talk in talks] == everybody


ZONES = ["--orig-zone 7", "--zone 9", ""]


@pytest.mark.parametrize("zone", ZONES, ids=lambda zone: zone or "no zone")
@both
def test_flows_in_a_zone_end_in_no_other_zone(topo: Topology, family: Family, zone: str) -> None:
    """A ruleset may track connections of the same addresses and ports in several zones (nft: ct zone set)."""
    topo.testbed.start("web", port_forward("8080:80"))
    web, db = family.guest(200), family.guest(201)
    for other in ZONES:
        words = f"-I -p tcp -s {family.client} -d {family.host} --sport 999 --dport 8080 -t 300 {other}"
        guest = web if other == zone else db
        nat = f"[{guest}]:80" if family.version == 6 else f"{guest}:80"
        topo.host.run(["conntrack", *words.split(), "--state", "ESTABLISHED", "--dst-nat", nat])
    assert tracked(topo, family, "tcp", "--orig-port-dst", "8080") == 3
    topo.testbed.stop("web")
    assert tracked(topo, family, "tcp", "--orig-port-dst", "8080") == 2
    assert tracked(topo, family, "tcp", "--orig-port-dst", "8080", "--reply-src", db) == 2
    topo.host.run(["conntrack", "-F"])


@both
def test_flows_to_a_service_on_the_gateway_address_stay(topo: Topology, family: Family) -> None:
    with stateful(topo), topo.host.serve("udp", 53, name="gateway", address=family.gateway):
        talk = topo.db.conversation(family.gateway, 53, "udp")
        assert answers(talk) == "gateway"
        before = identities(topo, "udp")
        topo.testbed.start("web", port_forward("53:80", proto="udp"))
        assert identities(topo, "udp") == before


def test_repeated_event_cuts_nothing(topo: Topology) -> None:
    topo.testbed.start("web", *declared("8080:80", "5000-5009"))
    talks = opened(topo, topo.client)
    assert [answers(talk) for talk in talks] == ["web"] * 4
    for operation in ("started", "reconnect", "reconnect"):
        topo.testbed.event("web", operation, *declared("8080:80", "5000-5009"))
        assert [answers(talk) for talk in talks] == ["web"] * 4
    topo.testbed.event("web", "reconnect", *declared("8080:80", "9000:81"))
    assert [answers(talk) for talk in talks] == ["web"] * 4
    topo.host.run(["nft", "flush", "ruleset"])
    topo.testbed.event("web", "reconnect", *declared("8080:80"))
    assert [answers(talk) for talk in talks] == ["web"] * 4


def test_range_that_is_made_longer_or_loses_a_port_cuts_no_other_flow(topo: Topology) -> None:
    topo.testbed.start("web", *declared("5000-5020"))
    talks = [topo.client.conversation(family.host, 5005, proto) for family, proto in KINDS]
    assert [answers(talk) for talk in talks] == ["web"] * 4
    before = {proto: identities(topo, proto) for proto in ("tcp", "udp")}
    for ranges in (("5000-5030",), ("5000-5030", "!5010"), ("5004-5006",), ("5000-5004", "5005-5020")):
        topo.testbed.event("web", "reconnect", *declared(*ranges))
        assert {proto: identities(topo, proto) for proto in before} == before
    assert [answers(talk) for talk in talks] == ["web"] * 4
    topo.testbed.event("web", "reconnect", *declared("5000-5004"))
    assert {proto: identities(topo, proto) for proto in before} == {proto: set() for proto in before}


@both
def test_udp_client_that_knocked_before_the_start_gets_through_after(topo: Topology, family: Family) -> None:
    with stateful(topo):
        talk = topo.client.conversation(family.host, 5353, "udp")
        other = topo.client.conversation(family.host, 5354, "udp")
        transit = topo.client.conversation(family.second_client, 5353, "udp")
        assert [answers(knock) for knock in (talk, other, transit)] == [None, None, None]
        assert tracked(topo, family, "udp", "--orig-port-dst", "5353") == 2
        others = tracked(topo, family, "udp", "--orig-port-dst", "5354")
        topo.testbed.start("web", port_forward("5353:80", proto="udp"))
        assert tracked(topo, family, "udp", "--orig-port-dst", "5353", "-d", family.second_client) == 1
        assert tracked(topo, family, "udp", "--orig-port-dst", "5353") == 1
        assert tracked(topo, family, "udp", "--orig-port-dst", "5354") == others == 1
        # The first word may still meet the refusal of the last knock.
        eventually(lambda: answers(talk) == "web", "the guest answers the client that knocked")


@both
def test_udp_client_that_knocked_while_the_table_was_flushed_gets_through_after(
    topo: Topology, family: Family
) -> None:
    topo.testbed.start("web", port_forward("5353:80", proto="udp"))
    topo.testbed.start("db", port_forward("5354:80", proto="udp"))
    topo.host.run(["nft", "flush", "ruleset"])
    with stateful(topo):
        talks = [topo.client.conversation(family.host, port, "udp") for port in (5353, 5354)]
        assert [answers(talk) for talk in talks] == [None, None]
        # The event of one guest restores the table of all.
        topo.testbed.event("web", "reconnect", port_forward("5353:80", proto="udp"))
        for talk, name in zip(talks, ("web", "db"), strict=True):
            eventually(lambda talk=talk, name=name: answers(talk) == name, f"{name} answers")  # type: ignore[misc]


def test_forward_that_moves_takes_its_clients_along(topo: Topology) -> None:
    topo.testbed.start("web", *declared("8080:80"))
    talks = opened(topo, topo.client)
    assert [answers(talk) for talk in talks] == ["web"] * 4
    hosts = [xml.host_ip(family.guest(201)) for family in FAMILIES]
    text = xml.domain("web", xml.forwards(*hosts, *declared("8080:80")), [xml.Nic(BRIDGE, mac_of(200))])
    topo.testbed.lab.hook("qemu", "web", "reconnect", xml=text)
    assert [answers(talk) for talk in talks] == ["db" if proto == "udp" else None for _, proto in KINDS]
    assert [who(topo.client, family.host, 8080, proto) for family, proto in KINDS] == ["db"] * 4


@both
def test_port_that_changes_hands_is_the_new_guests_at_once(topo: Topology, family: Family) -> None:
    topo.testbed.lab.configure('[policy]\non_error = "warn"\n')
    for name in ("web", "db"):
        topo.testbed.start(name, port_forward("8080:80", proto="udp"))
    talk = topo.client.conversation(family.host, 8080, "udp")
    assert answers(talk) == "web"
    topo.testbed.stop("web")
    assert answers(talk) == "db"
