"""What the network hook is told: networks and NICs that come, change and go under running guests.

None of it depends on libvirt's firewall backend, so that one is enough.
"""

from __future__ import annotations

import pytest

from netns.libvirtnet.scene import ADDRESS6, HOUSE, INNER, MAC, NETWORKS, WEB, Scene, mac_on
from support import netns, state, xml
from support.netns import HOST4
from support.xml import Network, network_hook

pytestmark = [pytest.mark.root, pytest.mark.parametrize("built", ["nftables"], indirect=True)]


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
        assert state.rows(scene.lab.run_dir, "SELECT name FROM network") == []
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


def record(scene: Scene) -> str:
    """Return the record of the only guest."""
    ((found,),) = state.rows(scene.lab.run_dir, "SELECT record FROM guest")
    return str(found)


def test_a_nic_plugged_into_a_running_guest_and_out_again(scene: Scene) -> None:
    lan = xml.Nic("virbr0", "52:54:00:00:01:99")
    scene.start(xml.port_forward("8080:80", attributes=f'mac="{lan.mac}"'), nics=(lan, HOUSE))
    scene.network("port-deleted", "port-deleted")
    assert MAC not in record(scene)
    scene.network("port-created", "port-created")
    assert MAC in record(scene)
    assert '"virbr5"' in record(scene)


def test_a_nic_unplugged_from_a_network_in_bridge_mode(scene: Scene) -> None:
    """A running guest's XML says type bridge for it, with the name of the bridge."""
    lan = Network("lan", "virbr0", "bridge")
    nic = xml.Nic("virbr0", MAC)
    scene.start(WEB, nics=(nic, xml.Nic("virbr6", mac_on("virbr6"))))
    assert MAC in record(scene)
    scene.lab.hook("network", "lan", "port-deleted", xml=network_hook(lan, "inner", MAC))
    assert MAC not in record(scene)
    assert mac_on("virbr6") in record(scene)


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
