"""Guests that are not as they were: other MAC addresses, no NIC left, restores that libvirt turns down."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from support import host as hosts
from support.guest import Guest
from support.host import NETWORK, Host
from support.netns import GUEST4, GUEST6, GUEST_MAC, HOST4, HOST6
from support.proc import eventually
from support.xml import forwards, host_ip, port_forward

pytestmark = pytest.mark.system

OTHER_MAC, OTHER4 = "52:54:00:a0:8f:99", "10.10.0.201"
SECOND_MAC, SECOND4, SECOND6 = "52:54:00:00:02:02", "10.20.0.200", "fd10:20::5054:ff:fe00:202"
# The second bridge tells its guests their IPv6 network, in which they have the address that their MAC makes.
SECOND_NETWORK = f"""\
[Match]
Name=virbr1
[Network]
Address=10.20.0.1/24
Address=fd10:20::1/64
DHCPServer=yes
IPForward=yes
ConfigureWithoutCarrier=yes
IPv6SendRA=yes
[IPv6Prefix]
Prefix=fd10:20::/64
[DHCPServerStaticLease]
MACAddress={SECOND_MAC}
Address={SECOND4}
"""
FILES = {
    "etc/systemd/network/98-virbr0.network": (
        f"{NETWORK}[DHCPServerStaticLease]\nMACAddress={OTHER_MAC}\nAddress={OTHER4}\n"
    ),
    "etc/systemd/network/99-virbr1.netdev": "[NetDev]\nName=virbr1\nKind=bridge\n",
    "etc/systemd/network/99-virbr1.network": SECOND_NETWORK,
}
UNPLUGGED = (
    f"<interface type='bridge'><mac address='{SECOND_MAC}'/><source bridge='virbr1'/>"
    "<model type='virtio'/><link state='down'/></interface>"
)


def two_nics(mac: str, ip4: str) -> Guest:
    """Return a guest on both bridges, whose second NIC has no link yet."""
    declared = forwards(
        host_ip(GUEST6, mac),
        host_ip(SECOND6, SECOND_MAC),
        port_forward("8080:80", attributes=f'mac="{mac}"'),
        port_forward("8081:80", attributes=f'mac="{SECOND_MAC}"'),
        port_forward("8082:80"),
    )
    return replace(Guest("two", declared), mac=mac, lease4=ip4, interface=Guest.interface + UNPLUGGED)


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with hosts.host(FILES) as made:
        yield made


def shows(host: Host, *pages: str | None) -> bool:
    """Tell whether each port has its page in both families."""
    return all(host.shows(pages, (8080, 8081, 8082), host=address) for address in (HOST4, HOST6))


def plug(host: Host, verb: str, guest: Guest, *, mac: str = SECOND_MAC, bridge: str = "virbr1") -> None:
    """Plug a NIC in or out, and wait until the guest has let go of it."""
    more = [bridge, "--model", "virtio"] if verb == "attach" else []
    host.virsh(f"{verb}-interface", guest.name, "bridge", *more, "--mac", mac, "--live")
    there = verb == "attach"
    eventually(lambda: (mac in host.virsh("domiflist", guest.name).out) == there, f"{verb}ed")


def test_both_families_of_two_nics_after_the_first_became_another(empty: Host) -> None:
    before = empty.ruleset_but_ours()
    empty.define(two_nics(GUEST_MAC, GUEST4))
    empty.virsh("start", "--paused", "two")
    assert f"dnat ip to {GUEST4}:" in empty.our_table()
    empty.virsh("destroy", "two")
    assert empty.our_table() == ""

    now = two_nics(OTHER_MAC, OTHER4)
    empty.start(now)
    empty.wait_booted(now)
    page = now.page
    assert shows(empty, page, None, page), "without its link, the second NIC cannot answer"
    assert {str(row["guest"]) for row in empty.forwards()} == {
        str([OTHER4, GUEST6]),
        str([SECOND4, SECOND6]),
    }
    assert f"{GUEST4}:" not in empty.our_table()
    assert GUEST_MAC not in empty.sql("SELECT record FROM guest")

    empty.virsh("domif-setlink", "two", SECOND_MAC, "up")
    eventually(lambda: shows(empty, page, page, page), "each port answers in both families")
    plug(empty, "detach", now)
    empty.command("sync")
    assert "virbr1" not in empty.our_table()
    assert shows(empty, page, None, page)
    plug(empty, "attach", now)
    empty.command("sync")
    eventually(lambda: shows(empty, page, page, page), "sync alone follows the NIC")

    empty.virsh("destroy", "two")
    assert empty.our_table() == ""
    assert empty.ruleset_but_ours() == before


def test_restore_that_libvirt_turns_down_harms_nobody(empty: Host, web: Guest, image: str) -> None:
    table, others = empty.our_table(), empty.ruleset_but_ours()
    running = empty.virsh("restore", image, check=False)
    assert "already active" in running.err
    assert (empty.our_table(), empty.ruleset_but_ours()) == (table, others)
    assert empty.fetch(8080) == web.page

    empty.virsh("destroy", web.name)
    empty.virsh("domrename", web.name, "shop")
    renamed = empty.virsh("restore", image, check=False)
    assert "shop" in renamed.err
    assert empty.our_table() == ""
    rival = Guest("rival", web.metadata.replace("::200", "::31"), mac=OTHER_MAC)
    empty.define(rival)
    empty.virsh("start", "--paused", rival.name)
    assert "is taken by guest rival" in empty.virsh("start", "shop", check=False).err
    empty.virsh("destroy", rival.name)

    empty.virsh("domrename", "shop", web.name)
    empty.virsh("restore", image)
    empty.wait_page(8080, web.page, "the same file restores it all the same")
    empty.virsh("destroy", web.name)
    assert empty.our_table() == ""
    assert empty.ruleset_but_ours() == others


def test_guest_without_any_nic_has_no_rules(empty: Host, web: Guest) -> None:
    plug(empty, "detach", web, mac=web.mac)
    empty.command("sync", check=False)
    assert GUEST4 not in empty.our_table()
    plug(empty, "attach", web, mac=web.mac, bridge="virbr0")
    empty.command("sync")
    empty.wait_page(8080, web.page, "plugged in again, it is reached")
