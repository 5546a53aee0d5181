"""A guest that boots on a libvirt NAT network, with libvirt 9.0's iptables and 11.3's nftables backend."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from support import host as hosts
from support import machine as machines
from support.base_host import BaseHost
from support.guest import Guest
from support.host import Host
from support.netns import GUEST4, HOST6
from support.proc import eventually
from support.xml import Network, forwards, host_ip, port_forward, uuid_of

pytestmark = pytest.mark.system

MAC = "52:54:00:00:01:05"
NAME = "B\N{LATIN SMALL LETTER U WITH DIAERESIS}ro &amp; &lt;1&gt;"
NETWORK = Network(NAME, "virbr5", "nat", "10.50.0.1", "fd50::1", ((MAC, "10.50.0.5", "inner"),))
ID = uuid_of(f"network {NAME}")
INNER = Guest(
    "inner",
    forwards(host_ip("fd50::5"), port_forward("8080:80")),
    mac=MAC,
    ip6="fd50::5/64",
    interface=f"<interface type='network'>@<source network='{NAME}'/></interface>",
    lease4="10.50.0.5",
)
TC = """\
#!/bin/sh
# A kernel without the action csum refuses libvirt's rule for DHCP replies, which no packet here needs.
case " $* " in *" csum "*) exit 0 ;; esac
exec /usr/sbin/tc "$@"
"""
BACKEND = {"etc/libvirt/network.conf": 'firewall_backend = "nftables"\n'}


class NetworkHost:
    """A host on which the network is there, and the words that its backend has for it."""

    def __init__(self, host: BaseHost, restart: Callable[[], object], listing: list[str]) -> None:
        self.host, self._restart, self.listing = host, restart, listing

    def restart(self) -> None:
        self._restart()
        eventually(lambda: self.host.state(INNER) == "running", "libvirtd finds the guest again")

    def chain(self) -> str:
        return self.host.run(self.listing).out

    def admits(self) -> bool:
        """Tell whether a rule of ours stands above what rejects."""
        ours, rejects = self.chain().find("virt-forward"), self.chain().lower().find("reject")
        return 0 <= ours < rejects


def on_host() -> Iterator[NetworkHost]:
    with hosts.host() as made:
        yield NetworkHost(made, made.restart_libvirtd, ["iptables", "-w", "5", "-S", "LIBVIRT_FWI"])


def on_machine() -> Iterator[NetworkHost]:
    with machines.machine("trixie", BACKEND) as made:
        made.write("/usr/local/sbin/tc", TC, mode="0755")
        made.install()
        made.systemctl("stop", "virt-forward.service")
        listing = "nft -s list chain ip libvirt_network guest_input"
        yield NetworkHost(made, made.restart_libvirtd, listing.split())


@pytest.fixture(scope="module", params=[on_host, on_machine], ids=["iptables", "nftables"])
def libvirt(request: pytest.FixtureRequest) -> Iterator[NetworkHost]:
    for made in request.param():
        xml = NETWORK.xml().replace(
            "<forward mode='nat'/>", "<forward mode='nat'><nat ipv6='yes'/></forward>"
        )
        made.host.run(["virsh", "-q", "net-define", "/dev/stdin"], stdin=xml)
        made.host.virsh("net-start", ID)
        yield made


def move(libvirt: NetworkHost, address: str) -> None:
    text = f"<host mac='{MAC}' name='inner' ip='{address}'/>"
    libvirt.host.virsh("net-update", ID, "modify", "ip-dhcp-host", text, "--live")


def test_life_of_a_forward_on_a_nat_network(libvirt: NetworkHost) -> None:
    """One guest that boots once: every step starts from what the one before has left."""
    host = libvirt.host
    untouched = libvirt.chain()
    host.start(INNER)
    host.wait_booted(INNER)
    assert host.fetch(8080) == INNER.page, host.explain()
    host.wait_page(8080, INNER.page, "the guest has its IPv6 route from an advertisement", host=HOST6)
    assert libvirt.chain().count("virt-forward") == 1

    move(libvirt, "10.50.0.9")
    assert ["10.50.0.9", "fd50::5"] in [row["guest"] for row in host.forwards()]
    move(libvirt, "10.50.0.5")
    assert host.fetch(8080) == INNER.page, host.explain()

    # A reload makes libvirt insert its rules above ours, and no hook tells of it.
    host.run(["sh", "-c", "kill -HUP $(pidof libvirtd)"])
    eventually(lambda: not libvirt.admits(), "libvirtd has made its chain anew")
    eventually(lambda: host.virsh("net-info", ID, check=False).status == 0, "libvirtd is done with it")
    told = json.loads(host.command("check", "--json", check=False).out)["problems"]
    rejected = [problem for problem in told if problem["id"] == "libvirt-rejects"]
    assert rejected, told
    assert {problem["fix"] for problem in rejected} == {"virt-forward sync"}
    host.command("sync")
    host.wait_page(8080, INNER.page, "reached again after sync")

    host.virsh("net-destroy", ID)
    assert host.closed(8080)
    assert "virt-forward" not in libvirt.chain()
    host.virsh("net-start", ID)
    # Only a restart plugs running guests into the new bridge, and then libvirt's status file is all we have.
    host.run(["rm", "-r", "/run/virt-forward"])
    libvirt.restart()
    host.wait_page(8080, INNER.page, "reached on the network that was started again")
    assert libvirt.chain().count("virt-forward") == 1

    host.virsh("destroy", INNER.name)
    assert host.closed(8080)
    assert "virt-forward" not in libvirt.chain()
    # libvirt 11.3 leaves rules behind for the bridge that its net-destroy deleted.
    left = [line for line in libvirt.chain().splitlines() if "oif 4 " not in line]
    assert sorted(left) == sorted(untouched.splitlines())


LXML = "/usr/lib/python3/dist-packages/lxml"


@pytest.mark.parametrize("libvirt", [on_machine], ids=["nftables"], indirect=True)
def test_start_that_is_handed_over_to_the_unit_opens_and_admits(libvirt: NetworkHost) -> None:
    """All that a start and a stop do, within what the unit allows; without lxml a hook itself could not."""
    host = libvirt.host
    assert isinstance(host, machines.Machine)
    host.systemctl("start", "virt-forward.service")
    eventually(
        lambda: host.run(["test", "-S", "/run/virt-forward/socket"], check=False).status == 0, "served"
    )
    host.run(["mv", LXML, f"{LXML}.away"])
    try:
        host.start(INNER)
        host.wait_booted(INNER)
        assert libvirt.admits(), host.explain()
        assert host.fetch(8080) == INNER.page, host.explain()
        host.virsh("destroy", INNER.name)
        assert host.closed(8080)
        assert "virt-forward" not in libvirt.chain()
        host.systemctl("stop", "virt-forward.service")
        refused = host.virsh("start", INNER.name, check=False)
        assert "No module named 'lxml'" in refused.err, "the hook by itself"
    finally:
        host.run(["mv", f"{LXML}.away", LXML])
        host.systemctl("stop", "virt-forward.service")


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with hosts.host() as made:
        yield made


LAN = """\
<network><name>lan</name><forward mode='bridge'/><bridge name='virbr0'/></network>
"""
PLUGGED = Guest(
    "plugged",
    forwards(port_forward("8080:80")),
    interface="<interface type='network'>@<source network='lan'/></interface>",
)


def test_network_in_bridge_mode_is_the_bridge_it_names(host: Host) -> None:
    """The address is networkd's static lease on that bridge; nothing of it needs the guest's help."""
    host.run(["virsh", "-q", "net-create", "/dev/stdin"], stdin=LAN)
    host.start(PLUGGED)
    (row,) = host.forwards()
    assert (row["state"], row["guest"], row["origins"]) == ("active", [GUEST4], ["reserved"])
    assert "LIBVIRT_FWI" not in host.ruleset_but_ours()
    # The bridge is not libvirt's: it stays, and the guest on it.
    host.virsh("net-destroy", "lan")
    assert [row["state"] for row in host.forwards()] == ["active"]
    host.virsh("destroy", PLUGGED.name)


def test_sync_remembers_what_networks_libvirt_says_are_active(host: Host) -> None:
    """Records of networks that a hook never saw start, or end."""
    host.run(["virsh", "-q", "net-create", "/dev/stdin"], stdin=LAN)
    select = "SELECT * FROM network ORDER BY uuid"
    before = host.sql(select)
    assert "lan" in before
    gone = "11111111-2222-4333-8444-555555555555"
    host.sql(
        f"UPDATE network SET uuid = '{gone}', record = replace(record, uuid, '{gone}') WHERE name = 'lan'"
    )
    assert gone in host.sql(select)
    host.command("sync")
    assert host.sql(select) == before
    host.virsh("net-destroy", "lan")


def test_network_that_is_the_lan_itself_needs_no_forwards(host: Host) -> None:
    direct = LAN.replace("'bridge'/>", "'bridge'><interface dev='enp1s0'/></forward>", 1)
    direct = direct.replace("<bridge name='virbr0'/>", "")
    host.run(["virsh", "-q", "net-create", "/dev/stdin"], stdin=direct)
    host.define(PLUGGED)
    said = host.virsh("start", PLUGGED.name, check=False)
    assert said.status != 0
    assert 'its network "lan" puts it on the LAN directly, where it needs no forwards' in said.err
    host.virsh("net-destroy", "lan")


def test_nic_is_hot_plugged_into_a_nat_network(host: Host) -> None:
    """The forward is for a NIC that comes later, with the reservation that waits for it."""
    text = NETWORK.xml().replace(NAME, "libvirt")
    host.run(["virsh", "-q", "net-create", "/dev/stdin"], stdin=text)
    text = forwards(port_forward("8081:80"))
    bare = Guest("bare", text, interface="<interface type='network'>@<source network='other'/></interface>")
    other = replace(NETWORK, name="other", bridge="virbr6", ip4="10.60.0.1", ip6=None, reservations=())
    host.run(["virsh", "-q", "net-create", "/dev/stdin"], stdin=other.xml())
    host.start(bare)
    rows = [row for row in host.forwards() if row["domain"] == "bare"]
    assert [(row["state"], row["guest"]) for row in rows] == [("waiting", [])]
    host.virsh("attach-interface", "bare", "network", "libvirt", "--model", "virtio", "--live", "--mac", MAC)
    rows = [row for row in host.forwards() if row["domain"] == "bare"]
    assert [(row["state"], row["guest"]) for row in rows] == [("active", ["10.50.0.5"])]
    assert "virt-forward" in host.run(["iptables", "-w", "5", "-S", "LIBVIRT_FWI"]).out
    host.virsh("destroy", "bare")
    assert "virt-forward" not in host.run(["iptables", "-w", "5", "-S", "LIBVIRT_FWI"]).out
