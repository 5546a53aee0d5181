"""The main job, on a real host: a forward opens as its guest starts, follows it, and closes as it ends."""

from __future__ import annotations

import pytest

from support import guest as guests
from support.guest import Guest
from support.host import Host
from support.netns import CLIENT4, HOST4, HOST6
from support.proc import eventually
from system.conftest import WEB

pytestmark = pytest.mark.system


def closed(host: Host) -> bool:
    """Tell whether no rule is left: a guest that is off answers nobody anyway."""
    return host.our_table() == ""


def test_start_opens_and_destroy_closes_and_nothing_else_changes(empty: Host) -> None:
    before = empty.ruleset_but_ours()
    assert closed(empty)
    empty.start(WEB)
    empty.wait_booted(WEB)
    assert empty.fetch(8080) == WEB.page, empty.explain()
    assert empty.fetch6(8080) == WEB.page, empty.explain()
    assert empty.fetch(8080, path="/cgi-bin/who") == f"web {CLIENT4}", "the guest sees who asks"
    assert guests.fetch(empty.ns.path, HOST4, 8080) == WEB.page, (
        "the host's own connection to its uplink address"
    )
    assert empty.ruleset_but_ours() == before
    empty.virsh("destroy", WEB.name)
    assert closed(empty)
    assert empty.ruleset_but_ours() == before


def test_guest_that_powers_itself_off_closes_its_forward(empty: Host, web: Guest) -> None:
    assert empty.fetch(8080, path="/cgi-bin/poweroff") == "bye"
    eventually(lambda: empty.state(web) == "shut off", "guest powers off")
    eventually(lambda: closed(empty), "forward closes")


def test_qemu_that_is_killed_closes_its_forward(empty: Host, web: Guest) -> None:
    empty.run(["kill", "-9", empty.qemu_pid(web)])
    eventually(lambda: empty.state(web) == "shut off", "libvirt notices")
    eventually(lambda: closed(empty), "forward closes")


def test_managedsave_closes_and_the_next_start_opens_again(empty: Host, web: Guest) -> None:
    empty.virsh("managedsave", web.name)
    assert closed(empty)
    empty.virsh("start", web.name)
    empty.wait_page(8080, web.page, "open again")
    empty.wait_page(8080, web.page, "open again by IPv6", host=HOST6)


def test_reset_leaves_the_forward_as_it_is(empty: Host, web: Guest) -> None:
    pid = empty.qemu_pid(web)
    empty.virsh("reset", web.name)
    empty.wait_page(8080, web.page, "the guest boots anew")
    assert empty.qemu_pid(web) == pid


def test_reload_of_nftables_conf_keeps_the_forward(empty: Host, web: Guest) -> None:
    empty.nft_reload()
    assert empty.fetch(8080) == web.page, empty.explain()
    empty.virsh("destroy", web.name)
    empty.nft_reload()
    assert closed(empty)


def test_pausing_and_resuming_keeps_the_forward(empty: Host, web: Guest) -> None:
    empty.virsh("suspend", web.name)
    empty.virsh("resume", web.name)
    empty.wait_page(8080, web.page, "answers again")
