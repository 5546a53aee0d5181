"""What a guest is called and where its definition went: renamed, undefined, transient, saved and restored."""

from __future__ import annotations

import pytest

from support.guest import Guest
from support.host import Host
from support.xml import forwards, port_forward
from system.conftest import WEB

pytestmark = pytest.mark.system

RIVAL = Guest("rival", forwards("<host ip='10.10.0.31'/>", port_forward("8080:80")), mac="52:54:00:00:00:31")
SAVED = "/run/lab/saved"
URI = ("--uri", "urn:virt-forward:1", "--key", "vf")


def states(host: Host) -> dict[object, object]:
    return {row["domain"]: row["state"] for row in host.forwards()}


def test_guest_that_is_undefined_while_it_runs(empty: Host, web: Guest) -> None:
    empty.virsh("undefine", web.name)
    assert empty.fetch(8080) == web.page
    empty.command("sync")
    empty.restart_libvirtd()
    assert states(empty) == {"web": "active"}
    assert empty.fetch(8080) == web.page
    empty.virsh("destroy", web.name)
    assert empty.our_table() == ""


def test_transient_guest(empty: Host) -> None:
    """The forward is there as ``virsh create`` returns, whether or not the guest has booted by then."""
    empty.run(["virsh", "-q", "create", "/dev/stdin"], stdin=empty.domain(WEB))
    assert states(empty) == {"web": "active"}
    empty.restart_libvirtd()
    assert states(empty) == {"web": "active"}
    assert "dnat ip to 10.10.0.200:80" in empty.our_table()
    empty.virsh("destroy", WEB.name)
    assert empty.our_table() == ""


def test_guest_that_gets_another_name(empty: Host) -> None:
    empty.start(WEB)
    assert "chain guest-web-" in empty.our_table()
    running = empty.virsh("domrename", WEB.name, "shop", check=False)
    assert running.status != 0, "libvirt renames no guest that runs"
    empty.virsh("destroy", WEB.name)
    empty.virsh("domrename", WEB.name, "shop")
    assert states(empty) == {"shop": "inactive"}
    empty.virsh("start", "shop")
    assert "chain guest-shop-" in empty.our_table()
    assert "chain guest-web-" not in empty.our_table()
    empty.define(RIVAL)
    assert "is taken by guest shop" in empty.virsh("start", RIVAL.name, check=False).err


def test_saved_metadata_counts_when_the_guest_is_restored(empty: Host, web: Guest) -> None:
    """The definition has other ports by now; they count from the next boot."""
    edited = f"<forwards>{port_forward('8090:80')}</forwards>"
    empty.virsh("metadata", web.name, *URI, "--config", "--set", edited)
    empty.virsh("save", web.name, SAVED)
    assert empty.our_table() == ""
    empty.virsh("restore", SAVED)
    empty.wait_booted(web)
    assert empty.shows([web.page, None], [8080, 8090])
    empty.virsh("destroy", web.name)
    empty.virsh("start", web.name)
    assert "8090" in empty.our_table()
    assert "8080" not in empty.our_table()


def test_port_that_was_taken_while_the_guest_was_saved(empty: Host, web: Guest) -> None:
    """A restored guest is not refused: it runs, without that port until it is free again."""
    empty.virsh("save", web.name, SAVED)
    empty.start(RIVAL)
    empty.virsh("restore", SAVED)
    assert states(empty) == {"rival": "active", "web": "conflict"}
    (row,) = [row for row in empty.forwards() if row["domain"] == "web"]
    assert "rival" in str(row["reason"])
    empty.virsh("destroy", RIVAL.name)
    assert states(empty) == {"rival": "inactive", "web": "active"}
    empty.wait_booted(web)
    assert empty.fetch(8080) == web.page
