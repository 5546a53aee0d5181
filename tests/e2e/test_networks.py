"""Guests on libvirt's own networks, whose rules reject what comes from outside."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lab.guest import Guest
from lab.host import Host
from lab.proc import eventually
from lab.xml import Mode, Network, forwards, port_forward

pytestmark = pytest.mark.e2e

MAC = "52:54:00:00:01:05"
NETWORK = Network("house", "virbr5", "nat", "10.50.0.1", reservations=((MAC, "10.50.0.5", "inner"),))
INNER = Guest(
    "inner",
    forwards(port_forward("8080:80")),
    mac=MAC,
    ip6=None,
    interface="<interface type='network'>@<source network='house'/></interface>",
    lease4="10.50.0.5",
)


@pytest.mark.parametrize("mode", ["nat", "route", "open"])
def test_a_guest_on_a_libvirt_network_is_reached_and_nothing_stays(empty: Host, mode: Mode) -> None:
    network = replace(NETWORK, mode=mode)
    empty.run(["virsh", "-q", "net-create", "/dev/stdin"], stdin=network.xml())
    with_network = empty.ruleset_but_ours()
    empty.start(INNER)
    empty.wait_booted(INNER)
    assert empty.fetch(8080) == INNER.page, empty.explain()
    empty.restart_libvirtd()
    eventually(lambda: empty.fetch(8080) == INNER.page, "reached again after libvirtd made its chains anew")
    empty.virsh("destroy", INNER.name)
    assert empty.fetch(8080) is None
    assert empty.ruleset_but_ours() == with_network
    empty.virsh("net-destroy", "house")
    left = empty.ruleset_but_ours()
    assert "virbr5" not in left
    assert "virt-forward" not in left.replace("/run/virt-forward", "")
