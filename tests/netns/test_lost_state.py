"""A state that is damaged or deleted while guests run: the service asks libvirt what they have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from netns.trust import DB4, MACS, PAGE, WEB4, Guests, pages
from support.netns import BRIDGE
from support.xml import Nic, domain, forwards

pytestmark = pytest.mark.root


def garbage(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 64)


@pytest.mark.parametrize("lose", [garbage, Path.unlink], ids=["garbage", "deleted"])
def test_lost_state_costs_no_guest_its_forwards(watched: Guests, lose: Callable[[Path], None]) -> None:
    watched.address(watched.web, WEB4)
    watched.start("web", WEB4)
    watched.start("db", DB4)
    watched.settle()
    lose(watched.lab.run_dir / "state.db")
    # The hook knows nothing but its own guest now.
    watched.driver.forget("db")
    text = domain("db", forwards(PAGE["db"]), [Nic(BRIDGE, MACS["db"])])
    watched.lab.hook("qemu", "db", "stopped", "end", xml=text)
    watched.follow(lambda: watched.leads() == {WEB4}, "the forward of the other guest is back")
    assert pages(watched) == {"web"}
    assert "active" in watched.lab.command("list", "web").out
