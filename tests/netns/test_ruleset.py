"""Beside a person's own ruleset: never a byte of it changed, and our table back after any flush."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import pytest

from netns.support import FAMILIES, V4, V6, Topology, told, who
from support.netns import Ns
from support.xml import port_forward
from virt_forward.check import listing

pytestmark = pytest.mark.root

SECTION_1 = """flush ruleset
table inet nat {
  chain postrouting {
    type nat hook postrouting priority srcnat
    iifname virbr0 ip saddr 10.10.0.0/24 oifname { wlan0, enp1s0 } masquerade
  }
}
table inet filter {
  chain input {
    type filter hook input priority filter; policy drop
    ct state established,related accept
    iifname { lo, virbr0 } accept
    meta l4proto { icmp, ipv6-icmp } accept
    tcp dport 22 accept
  }
  chain forward {
    type filter hook forward priority filter; policy drop
    ADMIT
    iifname virbr0 ip saddr 10.10.0.0/24 oifname { wlan0, enp1s0 } accept
    oifname virbr0 ip daddr 10.10.0.0/24 iifname { wlan0, enp1s0 } accept
  }
}
"""
STRICT = """flush ruleset
table inet filter {
  chain forward {
    type filter hook forward priority filter; policy drop
    ADMIT
  }
}
"""
LABEL = "ct label 100 accept"
KINDS = [(family, proto) for family in FAMILIES for proto in ("tcp", "udp", "sctp")]
FORWARDS = [port_forward("8080:80", proto=proto) for proto in ("tcp", "udp", "sctp")]
OURS = re.compile(r"table inet virt-forward \{.*?\n\}\n(# handle \d+\n)?", re.DOTALL)


def theirs(host: Ns) -> str:
    """List everything but our table, counters left out, handles and order as they are."""
    return OURS.sub("", host.run(["nft", "-s", "-a", "list", "ruleset"]).out)


@contextlib.contextmanager
def ruleset(topo: Topology, text: str, admit: str = "") -> Iterator[None]:
    topo.host.nft(text.replace("ADMIT", admit))
    try:
        with topo.web.serve("sctp", 80, name="web"), topo.db.serve("sctp", 80, name="db"):
            yield
    finally:
        topo.host.run(["nft", "flush", "ruleset"])


def test_never_a_byte_of_theirs_changes(topo: Topology) -> None:
    with ruleset(topo, SECTION_1, LABEL):
        before = theirs(topo.host)
        whole = topo.host.ruleset()
        declared = [*FORWARDS, port_forward("20000-29999", attributes='source="192.0.2.0/24"')]
        for operation in ("prepare", "started", "reconnect"):
            topo.testbed.event("web", operation, *declared, attributes='isolate="yes"')
            assert theirs(topo.host) == before
        topo.testbed.start("db", port_forward("8081:80"))
        assert theirs(topo.host) == before
        topo.host.run(["nft", "delete", "table", "inet", "virt-forward"])
        for name in ("db", "web"):
            topo.testbed.stop(name)
            assert theirs(topo.host) == before
        assert topo.host.ruleset() == whole


def test_layout_of_the_readme_works_as_it_stands(topo: Topology) -> None:
    with ruleset(topo, SECTION_1):
        topo.testbed.start("web", *FORWARDS)
        for proto in ("tcp", "udp", "sctp"):
            assert told(topo.client, V4.host, 8080, proto) == ("web", V4.client, 80)
            assert told(topo.host, V4.host, 8080, proto) == ("web", V4.host, 80)
        with topo.client.serve("tcp", 8080, name="client"):
            assert told(topo.web, V4.client, 8080) == ("client", V4.host, 8080)


@pytest.mark.parametrize("text", [SECTION_1, STRICT], ids=["section-1", "strict"])
def test_label_admits_our_connections_replies_and_hairpin(topo: Topology, text: str) -> None:
    with ruleset(topo, text, LABEL):
        topo.testbed.start("web", *FORWARDS)
        for family, proto in KINDS:
            assert told(topo.client, family.host, 8080, proto) == ("web", family.client, 80)
            assert told(topo.client2, family.host, 8080, proto) == ("web", family.second_client, 80)
            for ns in (topo.web, topo.db):
                assert told(ns, family.host, 8080, proto) == ("web", family.gateway, 80)


def test_label_admits_nothing_else(topo: Topology) -> None:
    with ruleset(topo, STRICT, LABEL):
        topo.testbed.start("web", *FORWARDS)
        for family in FAMILIES:
            assert who(topo.client, family.host, 8080) == "web"
            assert topo.silent(topo.client, family.guest(200), 80)
            assert topo.silent(topo.client, family.guest(201), 80)
            assert topo.silent(topo.web, {4: "10.20.0.5", 6: "fd20:20::5"}[family.version], 80)


def test_accept_of_ours_cannot_override_their_drop(topo: Topology) -> None:
    with ruleset(topo, STRICT):
        topo.testbed.start("web", *FORWARDS)
        for family in FAMILIES:
            assert topo.silent(topo.client, family.host, 8080)
            assert who(topo.host, family.host, 8080) == "web"


def test_label_admits_errors_on_our_connections(topo: Topology) -> None:
    """A refusal by the guest comes back as one: the client need not wait for silence."""
    with ruleset(topo, STRICT, LABEL):
        topo.testbed.start("web", port_forward("8080:4444", proto="udp"))
        for family in FAMILIES:
            talk = topo.client.conversation(family.host, 8080, "udp")
            talk.socket.settimeout(2)
            talk.socket.send(b"anybody?")
            with pytest.raises(ConnectionRefusedError):
                talk.socket.recv(100)


def test_their_own_dnat_wins(topo: Topology) -> None:
    rule = f"tcp dport 8080 dnat ip to {V4.guest(201)}:80"
    own = f"""table inet nat {{
      chain prerouting {{ type nat hook prerouting priority dstnat; {rule}; }}
      chain output {{ type nat hook output priority -100; {rule}; }}
    }}"""
    with ruleset(topo, own):
        topo.testbed.start("web", *FORWARDS)
        for ns in (topo.client, topo.host):
            assert who(ns, V4.host, 8080) == "db"
            assert who(ns, V6.host, 8080) == "web"
            assert who(ns, V4.host, 8080, "udp") == "web"


def conf(topo: Topology, admit: str = LABEL) -> str:
    """Write their nftables.conf with the one line that we ask for, and return its path."""
    path = topo.testbed.lab.dir / "nftables.conf"
    path.write_text(f'{SECTION_1.replace("ADMIT", admit)}include "{topo.testbed.lab.run_dir}/*.nft"\n')
    return str(path)


def test_reload_with_the_include_brings_our_table_back(topo: Topology) -> None:
    path = conf(topo)
    with ruleset(topo, "flush ruleset"):
        topo.host.run(["nft", "-f", path])
        topo.testbed.start("web", *FORWARDS)
        topo.testbed.start("db", port_forward("8081:80"), port_forward("9000-9999", proto="udp"))
        before = listing.parse(topo.testbed.table())
        talk = topo.client.conversation(V4.host, 8080)
        assert talk.ask() is not None
        for _ in range(2):
            topo.host.run(["nft", "-f", path])
            assert listing.parse(topo.testbed.table()) == before
            assert talk.ask() is not None
            for family in FAMILIES:
                assert told(topo.client, family.host, 8080) == ("web", family.client, 80)
        # The table that came back is one that the next event knows as its own.
        topo.testbed.stop("db")
        assert who(topo.client, V4.host, 8080) == "web"
        assert topo.silent(topo.client, V4.host, 8081)


def test_include_loads_before_the_first_guest_and_after_the_last(topo: Topology) -> None:
    path = conf(topo)
    with ruleset(topo, "flush ruleset"):
        topo.host.run(["nft", "-f", path])
        before = topo.host.ruleset()
        topo.testbed.start("web", *FORWARDS)
        topo.testbed.stop("web")
        for _ in range(2):
            topo.host.run(["nft", "-f", path])
            assert topo.host.ruleset() == before


def test_include_loads_on_its_own_any_number_of_times(topo: Topology) -> None:
    topo.testbed.start("web", *FORWARDS, attributes='isolate="yes"')
    topo.testbed.start("db", port_forward("8080:81", "20000-29999", attributes='dev="enp1s0"'))
    before = listing.parse(topo.testbed.table())
    for _ in range(3):
        topo.host.run(["nft", "-f", topo.testbed.lab.run_dir / "ruleset.nft"])
        assert listing.parse(topo.testbed.table()) == before


FLUSHES = {
    "flush ruleset": ["flush", "ruleset"],
    "delete table": ["delete", "table", "inet", "virt-forward"],
}


@pytest.mark.parametrize("event", ["start", "stop", "reconnect"])
@pytest.mark.parametrize("flush", FLUSHES)
def test_flushed_table_is_rebuilt_at_the_next_event(topo: Topology, flush: str, event: str) -> None:
    topo.testbed.start("web", *FORWARDS)
    if event != "start":
        topo.testbed.start("db", port_forward("8081:80"))
    topo.host.run(["nft", *FLUSHES[flush]])
    assert topo.silent(topo.client, V4.host, 8080)
    if event == "stop":
        topo.testbed.stop("db")
    else:
        topo.testbed.event("db", {"start": "started"}.get(event, event), port_forward("8081:80"))
    for family in FAMILIES:
        assert who(topo.client, family.host, 8080) == "web"
        if event == "stop":
            assert topo.silent(topo.client, family.host, 8081)
        else:
            assert who(topo.client, family.host, 8081) == "db"


def test_reload_with_the_include_never_leaves_loopback_unguarded(topo: Topology) -> None:
    """route_localnet outlives a flush: the guard has to be back in the same transaction."""
    topo.testbed.lab.configure("[forward]\nlocalhost = true\n")
    path = conf(topo)
    with ruleset(topo, "flush ruleset"):
        topo.testbed.start("web", *FORWARDS)
        before = topo.host.ruleset("chain", "inet", "virt-forward", "guard")
        assert 'iifname != "lo" ip daddr 127.0.0.0/8 drop' in before
        topo.host.run(["nft", "-f", path])
        assert topo.host.ruleset("chain", "inet", "virt-forward", "guard") == before
        assert who(topo.host, "127.0.0.1", 8080) == "web"
