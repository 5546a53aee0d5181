"""``virt-forward check`` on a table that somebody has changed."""

import json

import pytest

from lab.netns import Lab
from lab.xml import Nic, domain, forwards, host_ip, port_forward

pytestmark = pytest.mark.root


def found(lab: Lab) -> set[str]:
    told = json.loads(lab.command("check", "--json", check=False).out)
    assert told["version"] == 1
    return {problem["id"] for problem in told["problems"]} - {"hook-missing", "flush-unprotected"}


def test_a_table_changed_by_hand_is_found(lab: Lab) -> None:
    metadata = forwards(host_ip("10.10.0.200"), port_forward("8080:80", "9000-9020"))
    xml = domain("web", metadata, [Nic()])
    assert found(lab) == set()
    lab.hook("qemu", "web", "prepare", xml=xml)
    lab.hook("qemu", "web", "started", xml=xml)
    assert found(lab) == set()
    lab.host.nft("delete element inet virt-forward any { tcp . 8080 }")
    assert found(lab) == {"table-differs"}
    lab.host.nft("delete table inet virt-forward")
    assert found(lab) == {"table-missing"}
    lab.hook("qemu", "web", "reconnect", xml=xml)
    assert found(lab) == set()
