"""What the network hook is told: networks and NICs that come, change and go under running guests.

None of it depends on libvirt's firewall backend, so that one is enough.
"""

from __future__ import annotations

import pytest

from netns.libvirtnet.testbed import ADDRESS6, HOUSE, INNER, MAC, NETWORKS, WEB, LibvirtTestbed, mac_on
from support import netns, state, xml
from support.netns import HOST4
from support.xml import Network, network_hook

pytestmark = [pytest.mark.root, pytest.mark.parametrize("built", ["nftables"], indirect=True)]


def test_network_that_stops_under_its_guest_and_starts_again(testbed: LibvirtTestbed) -> None:
    testbed.start()
    testbed.network("started", "stopped")
    assert testbed.asks() is None
    assert testbed.rules("ip") == testbed.rules("ip6") == []
    testbed.network("updated-inactive", "updated")
    testbed.network("started", "started")
    assert testbed.asks() == INNER
    assert testbed.rules("ip") == ["virbr5"]


def test_network_that_is_only_edited_is_not_taken_for_one_that_runs(testbed: LibvirtTestbed) -> None:
    testbed.start()
    testbed.network("started", "stopped")
    testbed.host.ip("link set virbr5 name away")
    try:
        testbed.network("updated-inactive", "updated")
        assert testbed.asks() is None
        assert state.rows(testbed.lab.run_dir, "SELECT name FROM network") == []
    finally:
        testbed.host.ip("link set away name virbr5")


def test_reservation_that_moves_takes_the_forward_along(testbed: LibvirtTestbed) -> None:
    testbed.start(WEB)
    assert "10.50.0.5:80" in testbed.host.ruleset("table", "inet", "virt-forward")
    testbed.rebuild(updated=True)
    testbed.network("updated", "updated")
    ours = testbed.host.ruleset("table", "inet", "virt-forward")
    assert "10.50.0.9:80" in ours
    assert "10.50.0.5" not in ours
    assert testbed.rules() == ["virbr5"]


WIDE = Network("wide", "virbr6", "route", "10.60.0.1", "fd60::1")
OPEN = Network("open one", "virbr7", "open", "10.70.0.1")
ALONE = Network("alone", "virbr8", "", "10.80.0.1")


@pytest.mark.parametrize(
    ("network", "reached", "rules"),
    [(WIDE, True, ["virbr6"]), (OPEN, True, []), (ALONE, False, [])],
    ids=["route", "open", "isolated"],
)
def test_other_forward_modes(
    testbed: LibvirtTestbed, network: Network, reached: bool, rules: list[str]
) -> None:
    here = f"on-{network.bridge}"
    testbed.lab.hook("network", network.name, "started", xml=network_hook(network))
    nic = xml.Nic(network.name, mac_on(network.bridge), "network", network.bridge)
    address = f"10.{NETWORKS[network.bridge]}.0.5"
    testbed.start(xml.host_ip(address), xml.port_forward("8085:80"), name="other", nics=(nic,))
    assert testbed.rules() == rules
    assert testbed.asks(port=8085) == (here if reached else None)
    # The host's own connections pass no forward chain.
    assert testbed.asks(testbed.host, HOST4, 8085) == here
    testbed.lab.hook("network", network.name, "stopped", "end", xml=network_hook(network))
    assert testbed.rules() == []


def test_guests_reach_each_other_through_the_host(testbed: LibvirtTestbed) -> None:
    testbed.start()
    for name in (INNER, "second", "on-virbr6", "on-virbr7"):
        assert testbed.asks(testbed.lab.guests[name], HOST4) == INNER


def record(testbed: LibvirtTestbed) -> str:
    """Return the record of the only guest."""
    ((found,),) = state.rows(testbed.lab.run_dir, "SELECT record FROM guest")
    return str(found)


def test_nic_plugged_into_a_running_guest_and_out_again(testbed: LibvirtTestbed) -> None:
    lan = xml.Nic("virbr0", "52:54:00:00:01:99")
    testbed.start(xml.port_forward("8080:80", attributes=f'mac="{lan.mac}"'), nics=(lan, HOUSE))
    testbed.network("port-deleted", "port-deleted")
    assert MAC not in record(testbed)
    testbed.network("port-created", "port-created")
    assert MAC in record(testbed)
    assert '"virbr5"' in record(testbed)


def test_nic_unplugged_from_a_network_in_bridge_mode(testbed: LibvirtTestbed) -> None:
    """A running guest's XML says type bridge for it, with the name of the bridge."""
    lan = Network("lan", "virbr0", "bridge")
    nic = xml.Nic("virbr0", MAC)
    testbed.start(WEB, nics=(nic, xml.Nic("virbr6", mac_on("virbr6"))))
    assert MAC in record(testbed)
    testbed.lab.hook("network", "lan", "port-deleted", xml=network_hook(lan, "inner", MAC))
    assert MAC not in record(testbed)
    assert mac_on("virbr6") in record(testbed)


def test_nic_that_moves_between_networks_is_where_its_new_port_is(testbed: LibvirtTestbed) -> None:
    nic = xml.Nic("old", MAC, "network", "virbr6")
    old = Network("old", "virbr6", "nat", "10.60.0.1", reservations=((MAC, "10.60.0.5", "inner"),))
    testbed.lab.hook("network", "old", "started", xml=network_hook(old))
    testbed.start(WEB, nics=(nic,))
    assert testbed.rules() == ["virbr6"]
    testbed.network("port-created", "port-created")
    testbed.lab.hook("network", "old", "port-deleted", xml=network_hook(old, "inner", MAC))
    assert testbed.rules() == ["virbr5"]
    assert testbed.asks() == INNER
    testbed.lab.hook("network", "old", "stopped", "end", xml=network_hook(old))


@pytest.mark.parametrize("name", ["Büro & <1>", "a'b\"c -w", " .. "])
def test_networks_of_any_name(testbed: LibvirtTestbed, name: str) -> None:
    from xml.sax.saxutils import escape, quoteattr

    text = (testbed.data / "started.xml").read_text().replace(">house<", f">{escape(name)}<")
    text = text.replace("b050cff1", "00000001")
    testbed.lab.hook("network", name, "started", xml=text)
    testbed.running["inner"] = None
    domain = xml.domain("inner", xml.forwards(xml.host_ip(ADDRESS6), WEB), (HOUSE,), "started")
    domain = domain.replace("network='house'", f"network={quoteattr(name)}")
    testbed.lab.hook("qemu", "inner", "started", xml=domain)
    assert testbed.asks() == INNER
    assert testbed.rules() == ["virbr5"]
    testbed.lab.hook("network", name, "stopped", "end", xml=text)
    assert testbed.asks() is None
    assert testbed.rules() == []


def test_guest_elsewhere_asks_nothing_of_libvirts_chains(testbed: LibvirtTestbed) -> None:
    """Most guests are on the person's own bridge: their events run neither iptables nor a listing."""
    log = testbed.lab.dir / "asked"
    folder = testbed.lab.dir / "bin-asked"
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
        testbed.lab.hook("qemu", "plain", operation, sub, xml=text, env=env)
    asked = log.read_text()
    assert "nft -f -" in asked
    assert "LIBVIRT_FWI" not in asked
    assert "guest_input" not in asked
