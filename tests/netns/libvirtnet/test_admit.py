"""Packets to guests on libvirt networks, past the rules that libvirt 9.0 and 11.3 have made for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from netns.libvirtnet.testbed import HOUSE, INNER, SECOND, WEB, LibvirtTestbed
from support import netns, xml
from support.netns import HOST6
from support.proc import REPO, Background
from virt_forward.effects.libvirt_accept.plan import chain_changed
from virt_forward.state.store import Store

pytestmark = pytest.mark.root


def test_guest_on_a_nat_network_is_reached_and_nothing_of_ours_stays(testbed: LibvirtTestbed) -> None:
    before = testbed.host.ruleset()
    testbed.event("prepare")
    assert testbed.host.ruleset() == before, "a guest that does not run yet needs no rule"
    testbed.start()
    assert testbed.asks() == INNER
    assert testbed.asks(host=HOST6) == INNER
    assert testbed.rules("ip") == testbed.rules("ip6") == ["virbr5"]
    testbed.stop()
    assert testbed.asks() is None
    assert testbed.host.ruleset() == before


def test_without_us_libvirt_rejects(testbed: LibvirtTestbed) -> None:
    testbed.lab.configure("[libvirt]\nadmit = false\n")
    testbed.start()
    assert testbed.asks() is None
    assert testbed.asks(host=HOST6) is None
    assert testbed.rules() == []


def test_admit_switched_off_takes_effect_with_the_next_event(testbed: LibvirtTestbed) -> None:
    testbed.start()
    assert testbed.rules() == ["virbr5"]
    testbed.lab.configure("[libvirt]\nadmit = false\n")
    testbed.event("reconnect")
    assert testbed.rules("ip") == testbed.rules("ip6") == []


def test_one_rule_for_any_number_of_guests_until_the_last_is_gone(testbed: LibvirtTestbed) -> None:
    testbed.start()
    testbed.start(xml.host_ip("10.50.0.6"), xml.port_forward("8081:80"), name="second", nics=(SECOND,))
    assert testbed.rules() == ["virbr5"]
    assert testbed.asks(port=8081) == "second"
    testbed.stop("inner")
    assert testbed.rules("ip") == ["virbr5"]
    assert testbed.rules("ip6") == [], "nobody there has an IPv6 address of ours any more"
    testbed.stop("second")
    assert testbed.rules("ip") == []


def test_rule_that_libvirt_put_its_own_above_is_put_back_on_top(testbed: LibvirtTestbed) -> None:
    testbed.start()
    for event in ("reconnect", "updated", "started"):
        testbed.push_down()
        assert testbed.asks() is None
        if event == "reconnect":
            testbed.event(event)
        else:
            testbed.network("started", event)
        assert testbed.asks() == INNER
        assert testbed.asks(host=HOST6) == INNER
        assert testbed.rules("ip") == testbed.rules("ip6") == ["virbr5"]
        assert "virt-forward" in testbed.admitting()[0]


PUT_BACK = (
    "from virt_forward.reconcile import refresh; from virt_forward.state import store;"
    " refresh.readmit(store.Store())"
)


def heard(testbed: LibvirtTestbed, log: Path) -> bool:
    """Do something to be told of: the monitor does not say when it is ready."""
    testbed.host.nft("add table ip ready\ndelete table ip ready\n")
    return "ready" in log.read_text()


def test_reload_that_no_hook_tells_of(testbed: LibvirtTestbed) -> None:
    """nft monitor does, and the service has the rule put back."""
    testbed.start()
    log = testbed.lab.dir / "monitor"
    log.unlink(missing_ok=True)
    with Background(["ip", "netns", "exec", testbed.host.name, "nft", "monitor"], log) as monitor:
        monitor.wait_for(lambda: heard(testbed, log), "the monitor listens")
        testbed.push_down()
        monitor.wait_for(lambda: chain_changed(log.read_bytes()), "libvirt's chain is told of")
    env = {**netns.HOOK_ENV, **testbed.lab.env, "PYTHONPATH": str(REPO / "lib")}
    assert testbed.asks() is None
    testbed.host.run(["/usr/bin/python3", "-c", PUT_BACK], env=env)
    assert testbed.asks() == INNER


def test_rule_that_is_gone_comes_back(testbed: LibvirtTestbed) -> None:
    testbed.start()
    testbed.rebuild(updated=True)
    assert testbed.rules() == []
    testbed.event("reconnect")
    assert testbed.rules() == ["virbr5"]
    assert testbed.asks() == INNER


def test_look_that_finds_all_in_order_changes_nothing(testbed: LibvirtTestbed) -> None:
    testbed.start()
    before = [testbed.admitting(family) for family in ("ip", "ip6")]
    store = Store(str(testbed.lab.run_dir))
    counter = store.change_counter()
    testbed.event("reconnect")
    testbed.network("started", "updated")
    assert [testbed.admitting(family) for family in ("ip", "ip6")] == before
    assert store.change_counter() == counter


def test_only_our_connections_are_admitted(testbed: LibvirtTestbed) -> None:
    """Whoever's own DNAT libvirt has rejected before is rejected still."""
    testbed.start()
    testbed.host.nft(
        "table ip mine {\n chain prerouting {\n type nat hook prerouting priority -100\n"
        "tcp dport 9090 dnat to 10.50.0.6:80\n}\n}\n"
    )
    try:
        assert testbed.asks(port=9090) is None
        assert testbed.asks() == INNER
    finally:
        testbed.host.nft("delete table ip mine\n")


def test_rules_that_a_person_put_above_ours_stay_above(testbed: LibvirtTestbed) -> None:
    if testbed.backend == "nftables":
        blocked = "ip saddr 192.0.2.2 oifname virbr5 counter drop"
        testbed.start()
        testbed.host.nft(f"insert rule ip libvirt_network guest_input {blocked}\n")
    else:
        testbed.start()
        words = ["-I", "LIBVIRT_FWI", "-s", "192.0.2.2", "-o", "virbr5", "-j", "DROP"]
        testbed.host.run(["iptables", *words])
    testbed.event("reconnect")
    assert testbed.client.unanswered("192.0.2.1", 8080)
    assert "192.0.2.2" in testbed.admitting()[0]


@pytest.mark.parametrize("built", ["iptables"], indirect=True)
def test_iptables_still_lists_and_restores_its_tables(testbed: LibvirtTestbed) -> None:
    testbed.start()
    saved = testbed.host.run(["iptables-save"]).out
    testbed.host.run(["iptables-restore"], stdin=saved)
    assert testbed.asks() == INNER


FAKES = {
    "no iptables at all": "exit 127",
    "iptables that fails": "echo broken >&2; exit 4",
    "no connlabel": 'case " $* " in *connlabel*) exit 2;; esac; exec /usr/sbin/$(basename "$0") "$@"',
}


@pytest.mark.parametrize("built", ["iptables"], indirect=True)
@pytest.mark.parametrize("what", FAKES)
def test_iptables_that_is_not_as_it_should_be_harms_no_guest(testbed: LibvirtTestbed, what: str) -> None:
    folder = testbed.lab.dir / f"bin-{len(what)}"
    folder.mkdir(exist_ok=True)
    for program in ("iptables", "ip6tables"):
        (folder / program).write_text(f"#!/bin/sh\n{FAKES[what]}\n")
        (folder / program).chmod(0o755)
    env = {"PATH": f"{folder}:{netns.PATH}"}
    text = xml.domain("inner", xml.forwards(WEB), (HOUSE,), "started")
    testbed.running["inner"] = None
    done = testbed.lab.hook("qemu", "inner", "started", xml=text, env=env)
    assert (done.out, done.err) == ("", "")
    admitted = what == "no connlabel"
    assert testbed.rules() == (["virbr5"] if admitted else [])
    assert testbed.asks() == (INNER if admitted else None)
    assert ("ctstate DNAT" in testbed.admitting()[0]) == admitted
    testbed.event("reconnect")
    assert testbed.asks() == INNER, "put right by the next event"
