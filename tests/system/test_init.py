"""What ``init`` writes, read by this machine's networkd: a guest gets a lease of it."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from support import host as hosts
from support.guest import Guest
from virt_forward.setup.facts import SetupFacts
from virt_forward.setup.options import Options
from virt_forward.setup.plan import plan

pytestmark = pytest.mark.system

NEW = Guest("new", mac="52:54:00:00:00:80", ip6=None)


def test_guest_has_a_lease_on_the_bridge_that_init_wrote() -> None:
    facts = SetupFacts(hosts.SYSTEMD, uplinks=("enp1s0",), random=bytes(range(16)))
    planned = plan(Options(bridge="virbr0", dns=(ip_address("9.9.9.9"),)), facts)
    files = {file.path.removeprefix("/"): file.text for file in planned.files}
    with hosts.host(files, installed=False) as host:
        log = host.read("/run/lab/networkd.log")
        assert not [line for line in log.splitlines() if "ignoring" in line and "98-virbr0" in line], log
        host.start(NEW)
        assert ip_address(host.wait_lease(NEW)) in ip_network("10.10.0.0/24")
        address = host.run(["ip", "-o", "-6", "addr", "show", "virbr0", "scope", "global"]).out
        assert "fd03:405:607::1/64" in address
        host.virsh("destroy", NEW.name)
