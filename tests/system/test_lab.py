"""The lab's own: without us, a hand-written rule brings the client to a guest that boots."""

from __future__ import annotations

import pytest

from support import host as hosts
from support.guest import Guest
from support.netns import BRIDGE, GUEST6

pytestmark = pytest.mark.system

BY_HAND = """\
table inet hand {
  chain prerouting { type nat hook prerouting priority dstnat;
    iifname enp1s0 tcp dport 8080 ct label set 100 dnat ip to 10.10.0.200:80
  }
}
"""


# What the kernel believes where another guest with this address has just gone; here it does so for minutes.
STALE = f"""\
echo 600000 >/proc/sys/net/ipv6/neigh/{BRIDGE}/base_reachable_time_ms
ip neighbour replace {GUEST6} lladdr 52:54:00:a0:8f:99 dev {BRIDGE} nud reachable
"""


def test_guest_boots_gets_its_static_lease_and_is_reached_through_a_hand_written_rule() -> None:
    guest = Guest("plain")
    with hosts.host(installed=False) as host:
        host.start(guest)
        host.run(["sh", "-c", STALE])
        host.wait_booted(guest)
        assert "vf: address 10.10.0.200" in host.console(guest)
        assert host.closed(8080)
        host.run(["nft", "-f", "-"], stdin=BY_HAND)
        assert host.fetch(8080) == "guest plain"
        assert host.fetch(8080, path="/cgi-bin/who") == "plain 192.0.2.2"
        host.virsh("destroy", "plain")
        assert host.closed(8080)
