"""Packets to guests on libvirt networks, past the rules that libvirt 9.0 and 11.3 have made for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from netns.libvirtnet.scene import HOUSE, INNER, SECOND, WEB, Scene
from support import netns, xml
from support.netns import HOST6
from support.proc import REPO, Background
from virt_forward.effects.libvirt_accept.plan import chain_changed
from virt_forward.state.store import Store

pytestmark = pytest.mark.root


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


def test_a_rule_that_libvirt_put_its_own_above_is_put_back_on_top(scene: Scene) -> None:
    scene.start()
    for event in ("reconnect", "updated", "started"):
        scene.push_down()
        assert scene.asks() is None
        if event == "reconnect":
            scene.event(event)
        else:
            scene.network("started", event)
        assert scene.asks() == INNER
        assert scene.asks(host=HOST6) == INNER
        assert scene.rules("ip") == scene.rules("ip6") == ["virbr5"]
        assert "virt-forward" in scene.admitting()[0]


PUT_BACK = (
    "from virt_forward.reconcile import refresh; from virt_forward.state import store;"
    " refresh.readmit(store.Store())"
)


def heard(scene: Scene, log: Path) -> bool:
    """Do something to be told of: the monitor does not say when it is ready."""
    scene.host.nft("add table ip ready\ndelete table ip ready\n")
    return "ready" in log.read_text()


def test_a_reload_that_no_hook_tells_of(scene: Scene) -> None:
    """nft monitor does, and the service has the rule put back."""
    scene.start()
    log = scene.lab.dir / "monitor"
    log.unlink(missing_ok=True)
    with Background(["ip", "netns", "exec", scene.host.name, "nft", "monitor"], log) as monitor:
        monitor.wait_for(lambda: heard(scene, log), "the monitor listens")
        scene.push_down()
        monitor.wait_for(lambda: chain_changed(log.read_bytes()), "libvirt's chain is told of")
    env = {**netns.HOOK_ENV, **scene.lab.env, "PYTHONPATH": str(REPO / "lib")}
    assert scene.asks() is None
    scene.host.run(["/usr/bin/python3", "-c", PUT_BACK], env=env)
    assert scene.asks() == INNER


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
    store = Store(str(scene.lab.run_dir))
    counter = store.change_counter()
    scene.event("reconnect")
    scene.network("started", "updated")
    assert [scene.admitting(family) for family in ("ip", "ip6")] == before
    assert store.change_counter() == counter


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
