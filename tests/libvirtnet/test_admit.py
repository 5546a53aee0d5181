"""Packets to guests on libvirt networks, past the rules that libvirt 9.0 and 11.3 have made for them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab import netns, xml
from lab.netns import HOST4, HOST6
from lab.xml import Network, network_hook
from libvirtnet.scene import ADDRESS6, BACKENDS, HOUSE, INNER, MAC, NETWORKS, SECOND, WEB, Scene, mac_on

pytestmark = pytest.mark.root


@pytest.fixture(scope="module", params=BACKENDS)
def built(request: pytest.FixtureRequest) -> Iterator[Scene]:
    """The networks as libvirt has started them, known to us."""
    with netns.lab() as lab:
        scene = Scene(lab, request.param)
        scene.reset()
        yield scene


@pytest.fixture
def scene(built: Scene) -> Iterator[Scene]:
    """The same with no guest running, before and after; then nothing of ours is left in libvirt's chains."""
    before = built.host.ruleset()
    yield built
    built.reset()
    built.lab.config.unlink(missing_ok=True)
    assert built.rules("ip") == built.rules("ip6") == []
    assert not (built.lab.run_dir / "admitted").read_text()
    built.rebuild()
    assert built.host.ruleset() == before


def test_a_guest_on_a_nat_network_is_reached_and_nothing_of_ours_stays(scene: Scene) -> None:
    before = scene.host.ruleset()
    scene.event("prepare")
    assert scene.host.ruleset() == before, "a guest that does not run yet needs no rule"
    scene.start()
    assert scene.asks() == INNER
    assert scene.asks(host=HOST6) == INNER
    assert scene.rules("ip") == scene.rules("ip6") == ["virbr5"]
    scene.stop()
    assert scene.asks() is None
    assert scene.host.ruleset() == before


def test_without_us_libvirt_rejects(scene: Scene) -> None:
    scene.lab.configure("[libvirt]\nadmit = false\n")
    scene.start()
    assert scene.asks() is None
    assert scene.asks(host=HOST6) is None
    assert scene.rules() == []


def test_admit_switched_off_takes_effect_with_the_next_event(scene: Scene) -> None:
    scene.start()
    assert scene.rules() == ["virbr5"]
    scene.lab.configure("[libvirt]\nadmit = false\n")
    scene.event("reconnect")
    assert scene.rules("ip") == scene.rules("ip6") == []


def test_one_rule_for_any_number_of_guests_until_the_last_is_gone(scene: Scene) -> None:
    scene.start()
    scene.start(xml.host_ip("10.50.0.6"), xml.port_forward("8081:80"), name="second", nics=(SECOND,))
    assert scene.rules() == ["virbr5"]
    assert scene.asks(port=8081) == "second"
    scene.stop("inner")
    assert scene.rules("ip") == ["virbr5"]
    assert scene.rules("ip6") == [], "nobody there has an IPv6 address of ours any more"
    scene.stop("second")
    assert scene.rules("ip") == []


@pytest.mark.parametrize("event", ["reconnect", "updated", "started"])
def test_a_rule_that_libvirt_put_its_own_above_is_put_back_on_top(scene: Scene, event: str) -> None:
    scene.start()
    scene.push_down()
    assert scene.asks() is None
    if event == "reconnect":
        scene.event("reconnect")
    else:
        scene.network("started", event)
    assert scene.asks() == INNER
    assert scene.asks(host=HOST6) == INNER
    assert scene.rules("ip") == scene.rules("ip6") == ["virbr5"]
    assert "virt-forward" in scene.admitting()[0]


def test_a_rule_that_is_gone_comes_back(scene: Scene) -> None:
    scene.start()
    scene.rebuild(updated=True)
    assert scene.rules() == []
    scene.event("reconnect")
    assert scene.rules() == ["virbr5"]
    assert scene.asks() == INNER


def test_a_look_that_finds_all_in_order_changes_nothing(scene: Scene) -> None:
    scene.start()
    before = [scene.admitting(family) for family in ("ip", "ip6")]
    record = (scene.lab.run_dir / "admitted").stat()
    scene.event("reconnect")
    scene.network("started", "updated")
    assert [scene.admitting(family) for family in ("ip", "ip6")] == before
    assert (scene.lab.run_dir / "admitted").stat() == record


def test_only_our_connections_are_admitted(scene: Scene) -> None:
    """Whoever's own DNAT libvirt has rejected before is rejected still."""
    scene.start()
    scene.host.nft(
        "table ip mine {\n chain prerouting {\n type nat hook prerouting priority -100\n"
        "tcp dport 9090 dnat to 10.50.0.6:80\n}\n}\n"
    )
    try:
        assert scene.asks(port=9090) is None
        assert scene.asks() == INNER
    finally:
        scene.host.nft("delete table ip mine\n")


def test_what_a_person_put_above_our_rule_stays_above(scene: Scene) -> None:
    if scene.backend == "nftables":
        blocked = "ip saddr 192.0.2.2 oifname virbr5 counter drop"
        scene.start()
        scene.host.nft(f"insert rule ip libvirt_network guest_input {blocked}\n")
    else:
        scene.start()
        words = ["-I", "LIBVIRT_FWI", "-s", "192.0.2.2", "-o", "virbr5", "-j", "DROP"]
        scene.host.run(["iptables", *words])
    scene.event("reconnect")
    assert scene.asks() is None
    assert "192.0.2.2" in scene.admitting()[0]


@pytest.mark.parametrize("built", ["iptables"], indirect=True)
def test_iptables_still_lists_and_restores_its_tables(scene: Scene) -> None:
    scene.start()
    saved = scene.host.run(["iptables-save"]).out
    scene.host.run(["iptables-restore"], stdin=saved)
    assert scene.asks() == INNER


def test_a_network_that_stops_under_its_guest_and_starts_again(scene: Scene) -> None:
    scene.start()
    scene.network("started", "stopped")
    assert scene.asks() is None
    assert scene.rules("ip") == scene.rules("ip6") == []
    scene.network("updated-inactive", "updated")
    scene.network("started", "started")
    assert scene.asks() == INNER
    assert scene.rules("ip") == ["virbr5"]


def test_a_network_that_is_only_edited_is_not_taken_for_one_that_runs(scene: Scene) -> None:
    scene.start()
    scene.network("started", "stopped")
    scene.host.ip("link set virbr5 name away")
    try:
        scene.network("updated-inactive", "updated")
        assert scene.asks() is None
        assert list((scene.lab.run_dir / "networks").iterdir()) == []
    finally:
        scene.host.ip("link set away name virbr5")


def test_a_reservation_that_moves_takes_the_forward_along(scene: Scene) -> None:
    scene.start(WEB)
    assert "10.50.0.5:80" in scene.host.ruleset("table", "inet", "virt-forward")
    scene.rebuild(updated=True)
    scene.network("updated", "updated")
    ours = scene.host.ruleset("table", "inet", "virt-forward")
    assert "10.50.0.9:80" in ours
    assert "10.50.0.5" not in ours
    assert scene.rules() == ["virbr5"]


WIDE = Network("wide", "virbr6", "route", "10.60.0.1", "fd60::1")
OPEN = Network("open one", "virbr7", "open", "10.70.0.1")
ALONE = Network("alone", "virbr8", "", "10.80.0.1")


@pytest.mark.parametrize(
    ("network", "reached", "rules"),
    [(WIDE, True, ["virbr6"]), (OPEN, True, []), (ALONE, False, [])],
    ids=["route", "open", "isolated"],
)
def test_other_forward_modes(scene: Scene, network: Network, reached: bool, rules: list[str]) -> None:
    here = f"on-{network.bridge}"
    scene.lab.hook("network", network.name, "started", xml=network_hook(network))
    nic = xml.Nic(network.name, mac_on(network.bridge), "network", network.bridge)
    address = f"10.{NETWORKS[network.bridge]}.0.5"
    scene.start(xml.host_ip(address), xml.port_forward("8085:80"), name="other", nics=(nic,))
    assert scene.rules() == rules
    assert scene.asks(port=8085) == (here if reached else None)
    # The host's own connections pass no forward chain.
    assert scene.asks(scene.host, HOST4, 8085) == here
    scene.lab.hook("network", network.name, "stopped", "end", xml=network_hook(network))
    assert scene.rules() == []


def test_guests_reach_each_other_through_the_host(scene: Scene) -> None:
    scene.start()
    for name in (INNER, "second", "on-virbr6", "on-virbr7"):
        assert scene.asks(scene.lab.guests[name], HOST4) == INNER


def test_a_nic_plugged_into_a_running_guest_and_out_again(scene: Scene) -> None:
    lan = xml.Nic("virbr0", "52:54:00:00:01:99")
    scene.start(xml.port_forward("8080:80", attributes=f'mac="{lan.mac}"'), nics=(lan, HOUSE))
    record = next((scene.lab.run_dir / "guests").iterdir())
    scene.network("port-deleted", "port-deleted")
    assert MAC not in record.read_text()
    scene.network("port-created", "port-created")
    assert MAC in record.read_text()
    assert '"virbr5"' in record.read_text()


def test_a_nic_that_moves_between_networks_is_where_its_new_port_is(scene: Scene) -> None:
    nic = xml.Nic("old", MAC, "network", "virbr6")
    old = Network("old", "virbr6", "nat", "10.60.0.1", reservations=((MAC, "10.60.0.5", "inner"),))
    scene.lab.hook("network", "old", "started", xml=network_hook(old))
    scene.start(WEB, nics=(nic,))
    assert scene.rules() == ["virbr6"]
    scene.network("port-created", "port-created")
    scene.lab.hook("network", "old", "port-deleted", xml=network_hook(old, "inner", MAC))
    assert scene.rules() == ["virbr5"]
    assert scene.asks() == INNER
    scene.lab.hook("network", "old", "stopped", "end", xml=network_hook(old))


@pytest.mark.parametrize("name", ["Büro & <1>", "a'b\"c -w", " .. "])
def test_networks_of_any_name(scene: Scene, name: str) -> None:
    from xml.sax.saxutils import escape, quoteattr

    text = (scene.data / "started.xml").read_text().replace(">house<", f">{escape(name)}<")
    text = text.replace("b050cff1", "00000001")
    scene.lab.hook("network", name, "started", xml=text)
    scene.running["inner"] = None
    domain = xml.domain("inner", xml.forwards(xml.host_ip(ADDRESS6), WEB), (HOUSE,), "started")
    domain = domain.replace("network='house'", f"network={quoteattr(name)}")
    scene.lab.hook("qemu", "inner", "started", xml=domain)
    assert scene.asks() == INNER
    assert scene.rules() == ["virbr5"]
    scene.lab.hook("network", name, "stopped", "end", xml=text)
    assert scene.asks() is None
    assert scene.rules() == []


FAKES = {
    "no iptables at all": "exit 127",
    "iptables that fails": "echo broken >&2; exit 4",
    "no connlabel": 'case " $* " in *connlabel*) exit 2;; esac; exec /usr/sbin/$(basename "$0") "$@"',
}


@pytest.mark.parametrize("built", ["iptables"], indirect=True)
@pytest.mark.parametrize("what", FAKES)
def test_an_iptables_that_is_not_as_it_should_be_harms_no_guest(scene: Scene, what: str) -> None:
    folder = scene.lab.dir / f"bin-{len(what)}"
    folder.mkdir(exist_ok=True)
    for program in ("iptables", "ip6tables"):
        (folder / program).write_text(f"#!/bin/sh\n{FAKES[what]}\n")
        (folder / program).chmod(0o755)
    env = {"PATH": f"{folder}:{netns.PATH}"}
    text = xml.domain("inner", xml.forwards(WEB), (HOUSE,), "started")
    scene.running["inner"] = None
    done = scene.lab.hook("qemu", "inner", "started", xml=text, env=env)
    assert (done.out, done.err) == ("", "")
    admitted = what == "no connlabel"
    assert scene.rules() == (["virbr5"] if admitted else [])
    assert scene.asks() == (INNER if admitted else None)
    assert ("ctstate DNAT" in scene.admitting()[0]) == admitted
    scene.event("reconnect")
    assert scene.asks() == INNER, "put right by the next event"


def test_a_guest_elsewhere_asks_nothing_of_libvirts_chains(scene: Scene) -> None:
    """Most guests are on the person's own bridge: their events run neither iptables nor a listing."""
    log = scene.lab.dir / "asked"
    folder = scene.lab.dir / "bin-asked"
    folder.mkdir(exist_ok=True)
    for program in ("iptables", "ip6tables", "nft"):
        text = f'#!/bin/sh\necho "{program} $*" >>{log}\nexec /usr/sbin/{program} "$@"\n'
        (folder / program).write_text(text)
        (folder / program).chmod(0o755)
    text = xml.domain("plain", xml.forwards(xml.host_ip("10.10.0.7"), xml.port_forward("8087:80")))
    env = {"PATH": f"{folder}:{netns.PATH}"}
    for operation, sub in (
        ("prepare", "begin"),
        ("started", "begin"),
        ("stopped", "end"),
        ("release", "end"),
    ):
        scene.lab.hook("qemu", "plain", operation, sub, xml=text, env=env)
    asked = log.read_text()
    assert "nft -f -" in asked
    assert "LIBVIRT_FWI" not in asked
    assert "guest_input" not in asked
