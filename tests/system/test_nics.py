"""A guest with several NICs, which are plugged in and out, lose their link and change their MAC address."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from support import host as hosts
from support.guest import Guest
from support.host import Host
from support.netns import GUEST4, GUEST_MAC
from support.proc import Background, eventually
from support.xml import forwards, port_forward

pytestmark = pytest.mark.system

SECOND, THIRD = "52:54:00:00:02:02", "52:54:00:00:02:03"
FILES = {
    "etc/systemd/network/99-virbr1.netdev": "[NetDev]\nName=virbr1\nKind=bridge\n",
    "etc/systemd/network/99-virbr1.network": (
        "[Match]\nName=virbr1\n[Network]\nAddress=10.20.0.1/24\nDHCPServer=yes\nIPForward=yes\n"
        "ConfigureWithoutCarrier=yes\n"
    ),
}
ON_SECOND = (
    f"<interface type='bridge'><mac address='{SECOND}'/><source bridge='virbr1'/>"
    "<model type='virtio'/></interface>"
)


def declared(second: str) -> str:
    """Write forwards to either NIC, and one to whichever is the first."""
    return forwards(
        port_forward("8080:80", attributes=f'mac="{GUEST_MAC}"'),
        port_forward("8081:80", attributes=f'mac="{second}"'),
        port_forward("8082:80"),
    )


TWO = Guest(
    "two",
    declared(SECOND),
    ip6=None,
    interface=f"<interface type='bridge'>@<source bridge='virbr0'/></interface>{ON_SECOND}",
)


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with hosts.host(FILES) as made:
        yield made


def shows(host: Host, *pages: str | None) -> bool:
    return host.shows(pages, (8080, 8081, 8082))


def row(host: Host, port: int) -> dict[str, object]:
    (found,) = [row for row in host.forwards() if row["start"] == port]
    return found


def plug(host: Host, verb: str, mac: str) -> None:
    more = ["virbr1", "--model", "virtio"] if verb == "attach" else []
    host.virsh(f"{verb}-interface", TWO.name, "bridge", *more, "--mac", mac, "--live")


def test_life_of_two_nics(service: Background, empty: Host) -> None:
    """One guest that boots once: every step starts from what the one before has left."""
    all_three = [TWO.page] * 3
    empty.start(TWO)
    eventually(lambda: shows(empty, *all_three), "each NIC is reached", 40, 0.1)
    assert [row(empty, port)["guest"] for port in (8080, 8082)] == [[GUEST4]] * 2
    assert str(row(empty, 8081)["guest"]).startswith("['10.20.0.")

    plug(empty, "detach", SECOND)
    eventually(lambda: row(empty, 8081)["state"] == "waiting", "what was for the NIC waits")
    assert row(empty, 8081)["reason"] == f"the guest has no NIC with the MAC address {SECOND}"
    assert shows(empty, TWO.page, None, TWO.page)
    plug(empty, "attach", SECOND)
    eventually(lambda: shows(empty, *all_three), "plugged in again, it is reached")

    empty.virsh("domif-setlink", TWO.name, GUEST_MAC, "down")
    # The guest's way out is by that NIC, so that neither answers; the rules are as they were.
    assert empty.closed(8080)
    empty.command("sync")
    assert [row(empty, port)["state"] for port in (8080, 8081, 8082)] == ["active"] * 3
    empty.virsh("domif-setlink", TWO.name, GUEST_MAC, "up")
    eventually(lambda: shows(empty, *all_three), "reached again with its link")

    plug(empty, "detach", SECOND)
    plug(empty, "attach", THIRD)
    words = ("--uri", "urn:virt-forward:1", "--key", "vf", "--live", "--set", declared(THIRD))
    empty.virsh("metadata", TWO.name, *words)
    eventually(lambda: shows(empty, *all_three), "the NIC with another address is reached")
    assert SECOND not in empty.sql("SELECT record FROM guest")
    assert len(set(re.findall(r"dnat ip to 10\.20\.[\d.]+", empty.our_table()))) == 1
