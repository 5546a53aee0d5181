"""libvirtd restarts, and things of ours are broken meanwhile: a guest that runs is never harmed."""

from __future__ import annotations

import pytest

from support.guest import Guest
from support.host import Host
from support.proc import eventually

pytestmark = pytest.mark.system


def survives_restart(host: Host, web: Guest) -> None:
    pid = host.qemu_pid(web)
    host.restart_libvirtd()
    eventually(lambda: host.state(web) == "running", "libvirtd finds the guest again")
    assert host.qemu_pid(web) == pid
    host.run(["kill", "-0", pid])


def test_restart_of_libvirtd_keeps_the_forward(empty: Host, web: Guest) -> None:
    survives_restart(empty, web)
    assert empty.fetch(8080) == web.page, empty.explain()
    empty.virsh("destroy", web.name)
    assert empty.our_table() == ""


def test_restart_makes_a_lost_table_again(empty: Host, web: Guest) -> None:
    empty.run(["nft", "delete", "table", "inet", "virt-forward"])
    assert empty.closed(8080)
    survives_restart(empty, web)
    assert empty.fetch(8080) == web.page, empty.explain()


def test_guest_that_died_while_libvirtd_was_down_is_closed(empty: Host, web: Guest) -> None:
    pid = empty.qemu_pid(web)
    empty.stop_libvirtd()
    empty.run(["kill", "-9", pid])
    empty.start_libvirtd()
    eventually(lambda: empty.state(web) == "shut off", "libvirtd finds the guest dead")
    eventually(lambda: empty.our_table() == "", "its rules are removed")


def test_host_that_boots_again_starts_its_guests_with_their_forwards(empty: Host, web: Guest) -> None:
    """Nothing of the boot before is left, in /run or in the kernel; libvirt starts what is marked so."""
    empty.virsh("autostart", web.name)
    pid = empty.qemu_pid(web)
    empty.stop_libvirtd()
    empty.run(["kill", "-9", pid])
    empty.run(["sh", "-c", "rm -rf /run/virt-forward /run/libvirt/*; nft flush ruleset; conntrack -F"])
    empty.nft_reload()
    assert empty.our_table() == ""
    empty.start_libvirtd()
    empty.wait_page(8080, web.page, "the guest boots and is reached")


SABOTAGE = {
    "configuration": "mkdir -p /etc/virt-forward; echo '[forward' >/etc/virt-forward/config.toml",
    "package gone": "mv /usr/local/lib/virt-forward /usr/local/lib/virt-forward.away",
    "package broken": "mv /usr/local/lib/virt-forward/virt_forward/hooks/dispatch.py /root/; "
    "echo 'syntax error' >/usr/local/lib/virt-forward/virt_forward/hooks/dispatch.py",
    "records broken": "for f in $(find /run/virt-forward -type f); do echo '{' >$f; done",
    "records gone": "rm -r /run/virt-forward",
    "run full": "mount -t tmpfs -o size=4k,mode=0700 full /run/virt-forward; "
    "head -c 8192 /dev/zero >/run/virt-forward/fill || true",
    "nft gone": "mount --bind /dev/null /usr/sbin/nft",
    "foreign table": "nft delete table inet virt-forward; nft add table inet virt-forward; "
    "nft add chain inet virt-forward ports",
}
REPAIR = """\
umount /run/virt-forward 2>/dev/null
rm -rf /etc/virt-forward
back() { if test -e $1; then mv $1 $2; fi; }
back /usr/local/lib/virt-forward.away /usr/local/lib/virt-forward
back /root/dispatch.py /usr/local/lib/virt-forward/virt_forward/hooks/dispatch.py
if mountpoint -q /usr/sbin/nft; then umount /usr/sbin/nft; fi
"""


@pytest.mark.parametrize("what", SABOTAGE)
def test_nothing_broken_of_ours_harms_a_guest_that_runs(empty: Host, web: Guest, what: str) -> None:
    empty.run(["sh", "-c", SABOTAGE[what]])
    try:
        survives_restart(empty, web)
    finally:
        empty.run(["sh", "-c", REPAIR])
    survives_restart(empty, web)
    assert empty.fetch(8080) == web.page, f"not true again after the repair\n{empty.explain()}"


@pytest.mark.parametrize("what", ["package gone", "package broken", "nft gone"])
def test_nothing_broken_of_ours_keeps_a_guest_without_forwards_from_starting(empty: Host, what: str) -> None:
    plain = Guest("plain", mac="52:54:00:00:00:77", ip4="10.10.0.77/24", ip6=None)
    empty.run(["sh", "-c", SABOTAGE[what]])
    try:
        empty.start(plain)
        assert empty.state(plain) == "running"
        empty.virsh("destroy", plain.name)
    finally:
        empty.run(["sh", "-c", REPAIR])
