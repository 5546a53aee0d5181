"""What is refused at the start, in which words, and what a refused or failed start leaves: nothing."""

from __future__ import annotations

import pytest

from support import host as hosts
from support.guest import Guest
from support.host import Host
from support.netns import HOST4
from support.xml import forwards, host_ip, port_forward

pytestmark = pytest.mark.system


def refused(host: Host, guest: Guest) -> str:
    """Start a guest that must not start; return what virsh said."""
    host.define(guest)
    done = host.virsh("start", guest.name, check=False)
    assert done.status != 0, f"started although it must not:\n{done}"
    assert host.state(guest) == "shut off"
    return done.err


def second(name: str, *children: str) -> Guest:
    return Guest(name, forwards(*children), mac="52:54:00:00:00:02", ip4="10.10.0.30/24", ip6=None)


def test_broken_metadata_is_refused_with_every_error_told(empty: Host) -> None:
    wrong = second("wrong", port_forward("0"), port_forward("80", proto="icmp"), "<portForwad proto='tcp'/>")
    said = refused(empty, wrong)
    assert "virt-forward" in said
    for words in (
        '<range>: start="0" is wrong: use a port number from 1 to 65535',
        '<portForward>: proto="icmp" is wrong: use tcp, udp or sctp',
        "<portForwad>: unknown element inside <forwards>",
    ):
        assert words in said


def test_port_that_a_running_guest_has_is_refused_naming_that_guest(empty: Host) -> None:
    first = Guest("first", forwards(host_ip("10.10.0.29"), port_forward("9000:80", "443")))
    empty.start(first)
    said = refused(empty, second("other", host_ip("10.10.0.30"), port_forward("443:8443")))
    assert "host port tcp/443 is taken by guest first" in said
    assert empty.state(first) == "running"
    empty.virsh("destroy", "first")
    empty.virsh("start", "other")
    assert empty.state(second("other")) == "running"


def test_port_the_host_listens_on_is_refused(empty: Host) -> None:
    with empty.lab.host.serve("tcp", 8443, name="own"):
        said = refused(empty, second("greedy", host_ip("10.10.0.30"), port_forward("8443")))
        assert "8443" in said
        assert empty.client.unanswered(HOST4, 8443), "the hand-written input chain drops it"
    empty.virsh("start", "greedy")


def test_failed_start_leaves_no_rule_and_no_claim(empty: Host) -> None:
    broken = second("broken", host_ip("10.10.0.30"), port_forward("9443"))
    text = empty.domain(broken).replace(
        "<devices>", "<devices><input type='evdev'><source dev='/none'/></input>"
    )
    empty.run(["virsh", "-q", "define", "/dev/stdin"], stdin=text)
    done = empty.virsh("start", "broken", check=False)
    assert done.status != 0
    assert "/none" in done.err, "it is qemu that failed"
    assert empty.traces_of_guests() == []
    empty.start(second("next", host_ip("10.10.0.30"), port_forward("9443")))


def test_guest_without_forwards_leaves_no_trace_at_all() -> None:
    plain = Guest("plain", mac="52:54:00:00:00:77", ip4="10.10.0.77/24", ip6=None)
    with hosts.host() as host:
        before = host.run(["nft", "-s", "list", "ruleset"]).out
        host.start(plain)
        assert host.run(["nft", "-s", "list", "ruleset"]).out == before
        host.restart_libvirtd()
        host.virsh("destroy", "plain")
        assert host.run(["nft", "-s", "list", "ruleset"]).out == before
        assert host.run(["test", "-e", "/run/virt-forward"], check=False).status == 1


def test_foreign_hook_and_ours_beside_it_both_run() -> None:
    guest = second("both", host_ip("10.10.0.30"), port_forward("9080:80"))
    with hosts.host() as host:
        host.run(["mkdir", "/etc/libvirt/hooks/qemu.d"])
        host.run(["mv", "/etc/libvirt/hooks/qemu", "/etc/libvirt/hooks/qemu.d/virt-forward"])
        host.write("/etc/libvirt/hooks/qemu", '#!/bin/sh\necho "$1 $2" >>/run/lab/foreign\n', mode="0755")
        host.restart_libvirtd()
        host.start(guest)
        assert "9080" in host.our_table()
        host.virsh("destroy", "both")
        assert "9080" not in host.our_table()
        assert host.read("/run/lab/foreign").splitlines()[:3] == [
            "both prepare",
            "both start",
            "both started",
        ]
