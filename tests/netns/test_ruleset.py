"""Beside a person's own ruleset: never a byte of it changed, and our table back after any flush."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import pytest

from netns.support import FAMILIES, V4, V6, Cast, told, who
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
def ruleset(cast: Cast, text: str, admit: str = "") -> Iterator[None]:
    cast.host.nft(text.replace("ADMIT", admit))
    try:
        with cast.web.serve("sctp", 80, name="web"), cast.db.serve("sctp", 80, name="db"):
            yield
    finally:
        cast.host.run(["nft", "flush", "ruleset"])


def test_never_a_byte_of_theirs_changes(cast: Cast) -> None:
    with ruleset(cast, SECTION_1, LABEL):
        before = theirs(cast.host)
        whole = cast.host.ruleset()
        declared = [*FORWARDS, port_forward("20000-29999", attributes='source="192.0.2.0/24"')]
        for operation in ("prepare", "started", "reconnect"):
            cast.scene.event("web", operation, *declared, attributes='isolate="yes"')
            assert theirs(cast.host) == before
        cast.scene.start("db", port_forward("8081:80"))
        assert theirs(cast.host) == before
        cast.host.run(["nft", "delete", "table", "inet", "virt-forward"])
        for name in ("db", "web"):
            cast.scene.stop(name)
            assert theirs(cast.host) == before
        assert cast.host.ruleset() == whole


def test_the_layout_of_the_readme_works_as_it_stands(cast: Cast) -> None:
    with ruleset(cast, SECTION_1):
        cast.scene.start("web", *FORWARDS)
        for proto in ("tcp", "udp", "sctp"):
            assert told(cast.client, V4.host, 8080, proto) == ("web", V4.client, 80)
            assert told(cast.host, V4.host, 8080, proto) == ("web", V4.host, 80)
        with cast.client.serve("tcp", 8080, name="client"):
            assert told(cast.web, V4.client, 8080) == ("client", V4.host, 8080)


@pytest.mark.parametrize("text", [SECTION_1, STRICT], ids=["section-1", "strict"])
def test_the_label_admits_our_connections_replies_and_hairpin(cast: Cast, text: str) -> None:
    with ruleset(cast, text, LABEL):
        cast.scene.start("web", *FORWARDS)
        for family, proto in KINDS:
            assert told(cast.client, family.host, 8080, proto) == ("web", family.client, 80)
            assert told(cast.client2, family.host, 8080, proto) == ("web", family.second_client, 80)
            for place in (cast.web, cast.db):
                assert told(place, family.host, 8080, proto) == ("web", family.gateway, 80)


def test_the_label_admits_nothing_else(cast: Cast) -> None:
    with ruleset(cast, STRICT, LABEL):
        cast.scene.start("web", *FORWARDS)
        for family in FAMILIES:
            assert who(cast.client, family.host, 8080) == "web"
            assert cast.silent(cast.client, family.guest(200), 80)
            assert cast.silent(cast.client, family.guest(201), 80)
            assert cast.silent(cast.web, {4: "10.20.0.5", 6: "fd20:20::5"}[family.version], 80)


def test_an_accept_of_ours_cannot_override_their_drop(cast: Cast) -> None:
    with ruleset(cast, STRICT):
        cast.scene.start("web", *FORWARDS)
        for family in FAMILIES:
            assert cast.silent(cast.client, family.host, 8080)
            assert who(cast.host, family.host, 8080) == "web"


def test_the_label_admits_errors_on_our_connections(cast: Cast) -> None:
    """A refusal by the guest comes back as one: the client need not wait for silence."""
    with ruleset(cast, STRICT, LABEL):
        cast.scene.start("web", port_forward("8080:4444", proto="udp"))
        for family in FAMILIES:
            talk = cast.client.conversation(family.host, 8080, "udp")
            talk.socket.settimeout(2)
            talk.socket.send(b"anybody?")
            with pytest.raises(ConnectionRefusedError):
                talk.socket.recv(100)


def test_their_own_dnat_wins(cast: Cast) -> None:
    rule = f"tcp dport 8080 dnat ip to {V4.guest(201)}:80"
    own = f"""table inet nat {{
      chain prerouting {{ type nat hook prerouting priority dstnat; {rule}; }}
      chain output {{ type nat hook output priority -100; {rule}; }}
    }}"""
    with ruleset(cast, own):
        cast.scene.start("web", *FORWARDS)
        for place in (cast.client, cast.host):
            assert who(place, V4.host, 8080) == "db"
            assert who(place, V6.host, 8080) == "web"
            assert who(place, V4.host, 8080, "udp") == "web"


def conf(cast: Cast, admit: str = LABEL) -> str:
    """Write their nftables.conf with the one line that we ask for, and return its path."""
    path = cast.scene.lab.dir / "nftables.conf"
    path.write_text(f'{SECTION_1.replace("ADMIT", admit)}include "{cast.scene.lab.run_dir}/*.nft"\n')
    return str(path)


def test_a_reload_with_the_include_brings_our_table_back(cast: Cast) -> None:
    path = conf(cast)
    with ruleset(cast, "flush ruleset"):
        cast.host.run(["nft", "-f", path])
        cast.scene.start("web", *FORWARDS)
        cast.scene.start("db", port_forward("8081:80"), port_forward("9000-9999", proto="udp"))
        before = listing.parse(cast.scene.table())
        talk = cast.client.conversation(V4.host, 8080)
        assert talk.ask() is not None
        for _ in range(2):
            cast.host.run(["nft", "-f", path])
            assert listing.parse(cast.scene.table()) == before
            assert talk.ask() is not None
            for family in FAMILIES:
                assert told(cast.client, family.host, 8080) == ("web", family.client, 80)
        # The table that came back is one that the next event knows as its own.
        cast.scene.stop("db")
        assert who(cast.client, V4.host, 8080) == "web"
        assert cast.silent(cast.client, V4.host, 8081)


def test_the_include_loads_before_the_first_guest_and_after_the_last(cast: Cast) -> None:
    path = conf(cast)
    with ruleset(cast, "flush ruleset"):
        cast.host.run(["nft", "-f", path])
        before = cast.host.ruleset()
        cast.scene.start("web", *FORWARDS)
        cast.scene.stop("web")
        for _ in range(2):
            cast.host.run(["nft", "-f", path])
            assert cast.host.ruleset() == before


def test_the_include_loads_on_its_own_any_number_of_times(cast: Cast) -> None:
    cast.scene.start("web", *FORWARDS, attributes='isolate="yes"')
    cast.scene.start("db", port_forward("8080:81", "20000-29999", attributes='dev="enp1s0"'))
    before = listing.parse(cast.scene.table())
    for _ in range(3):
        cast.host.run(["nft", "-f", cast.scene.lab.run_dir / "ruleset.nft"])
        assert listing.parse(cast.scene.table()) == before


FLUSHES = {
    "flush ruleset": ["flush", "ruleset"],
    "delete table": ["delete", "table", "inet", "virt-forward"],
}


@pytest.mark.parametrize("event", ["start", "stop", "reconnect"])
@pytest.mark.parametrize("flush", FLUSHES)
def test_a_flushed_table_is_rebuilt_at_the_next_event(cast: Cast, flush: str, event: str) -> None:
    cast.scene.start("web", *FORWARDS)
    if event != "start":
        cast.scene.start("db", port_forward("8081:80"))
    cast.host.run(["nft", *FLUSHES[flush]])
    assert cast.silent(cast.client, V4.host, 8080)
    if event == "stop":
        cast.scene.stop("db")
    else:
        cast.scene.event("db", {"start": "started"}.get(event, event), port_forward("8081:80"))
    for family in FAMILIES:
        assert who(cast.client, family.host, 8080) == "web"
        if event == "stop":
            assert cast.silent(cast.client, family.host, 8081)
        else:
            assert who(cast.client, family.host, 8081) == "db"


def test_a_reload_with_the_include_never_leaves_loopback_unguarded(cast: Cast) -> None:
    """route_localnet outlives a flush: the guard has to be back in the same transaction."""
    cast.scene.lab.configure("[forward]\nlocalhost = true\n")
    path = conf(cast)
    with ruleset(cast, "flush ruleset"):
        cast.scene.start("web", *FORWARDS)
        before = cast.host.ruleset("chain", "inet", "virt-forward", "guard")
        assert 'iifname != "lo" ip daddr 127.0.0.0/8 drop' in before
        cast.host.run(["nft", "-f", path])
        assert cast.host.ruleset("chain", "inet", "virt-forward", "guard") == before
        assert who(cast.host, "127.0.0.1", 8080) == "web"
