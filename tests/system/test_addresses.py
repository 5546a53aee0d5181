"""Guests whose address nobody knows before they have it: the forward waits, and then it is there."""

from __future__ import annotations

import pytest

from support.guest import Guest
from support.host import SYSTEMD, Host
from support.netns import UPLINK
from support.xml import forwards, port_forward

pytestmark = pytest.mark.system

# networkd's static lease is for another MAC: this guest gets an address of the pool.
ANY = Guest("any", forwards(port_forward("8080:80")), mac="52:54:00:00:00:99", ip6=None)


def states(host: Host) -> list[object]:
    return [row["state"] for row in host.forwards()]


def test_forward_waits_for_its_guests_lease_and_sync_completes_it(empty: Host) -> None:
    empty.start(ANY)
    (row,) = empty.forwards()
    assert row["state"] == "waiting"
    assert f"the address of {ANY.mac} on virbr0 is not known yet; searched: <host>" in str(row["reason"])
    assert empty.closed(8080)
    lease = empty.wait_lease(ANY)
    # systemd before 257 keeps no lease file, and the guest has not spoken with its host: it is asked.
    origin = "leased" if SYSTEMD >= 257 else "probed"
    empty.command("sync")
    (row,) = empty.forwards()
    assert (row["state"], row["guest"], row["origins"]) == ("active", [lease], [origin])
    told = empty.command("check", ANY.name, check=False).out.splitlines()
    assert f"  endpoint  {lease} on virbr0, {ANY.mac}, {origin}" in told
    empty.wait_page(8080, ANY.page, "reached at its lease")
    empty.virsh("destroy", ANY.name)
    assert states(empty) == ["inactive"]
    assert empty.our_table() == ""


def test_host_keeps_its_forwards_without_its_uplink(empty: Host) -> None:
    """A cable that is out while a guest starts is no reason for a forward not to be there when it is back."""
    fixed = Guest(
        "fixed",
        forwards("<host ip='10.10.0.31'/>", port_forward("8080:80")),
        mac=ANY.mac,
        ip4="10.10.0.31/24",
        ip6=None,
    )
    empty.run(["ip", "link", "set", UPLINK, "down"])
    empty.start(fixed)
    empty.wait_booted(fixed)
    empty.run(["ip", "link", "set", UPLINK, "up"])
    empty.wait_page(8080, fixed.page, "reached once the uplink is back")
