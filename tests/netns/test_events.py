"""Events in any order, any number of times, at the same time: the table is right after each of them."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from netns.support import FAMILIES, GUESTS, V4, Topology, who
from support.netns import PREFIX, Ns
from support.xml import port_forward

pytestmark = pytest.mark.root

DECLARED = {
    "web": [
        port_forward("8080:80", "5000-5009"),
        port_forward("9000-9999", proto="udp"),
        port_forward("8443:80", attributes='dev="enp1s0"'),
    ],
    "db": [
        port_forward("8081:80", proto="tcp"),
        port_forward("8443:81", attributes=f'source="{V4.lan}"'),
        port_forward("30000-30999:5000", attributes=f'source="{V4.lan}"'),
    ],
    "app": [port_forward("8080:81"), port_forward(attributes=f'address="{V4.extra}"')],
}
OPERATIONS = ("prepare", "started", "reconnect", "restore", "stopped", "release")


@pytest.fixture(scope="module")
def scratch() -> Iterator[Ns]:
    """A namespace in which to see what the include file makes of nothing."""
    made = Ns(f"{PREFIX}scratch")
    yield made
    made.remove()


def normal(listing: str) -> list[str]:
    """Return a table's blocks in an order of their own: chains and hash elements are listed in any."""
    flat = re.sub(r"elements = \{(.*?)\}", _sorted_elements, listing, flags=re.DOTALL)
    flat = re.sub(r"(set revision .*?elements = \{).*?(\})", r"\1\2", flat, flags=re.DOTALL)
    return sorted(re.split(r"\n\n(?=\t\w)", flat.strip().removesuffix("}").rstrip()))


def _sorted_elements(match: re.Match[str]) -> str:
    elements = re.sub(r"\s+", " ", match[1]).strip()
    return "elements = { " + ", ".join(sorted(elements.split(", "))) + " }"


def fresh(topo: Topology, scratch: Ns) -> list[str]:
    """Return the table that the include file makes in a namespace that has none."""
    scratch.run(["nft", "flush", "ruleset"])
    scratch.run(["nft", "-f", topo.testbed.lab.run_dir / "ruleset.nft"])
    done = scratch.run(["nft", "-s", "list", "table", "inet", "virt-forward"], check=False)
    return normal(done.out)


def table(topo: Topology) -> list[str]:
    return normal(topo.testbed.table())


def event(topo: Topology, name: str, operation: str) -> None:
    done = topo.testbed.event(name, operation, *DECLARED[name], check=False)
    assert done.status == 0 or operation == "prepare", done
    assert done.out == ""


def settle(topo: Topology) -> None:
    """Bring all guests to one known end: web and db run, app does not."""
    for name, operation in (("app", "stopped"), ("app", "release"), ("web", "started"), ("db", "reconnect")):
        event(topo, name, operation)


def plain_start(topo: Topology) -> list[str]:
    topo.testbed.start("web", *DECLARED["web"])
    topo.testbed.start("db", *DECLARED["db"])
    found = table(topo)
    topo.testbed.reset()
    return found


@pytest.mark.parametrize("seed", [1, 2])
def test_any_order_ends_in_the_same_table(topo: Topology, scratch: Ns, seed: int) -> None:
    expected = plain_start(topo)
    topo.testbed.lab.configure('[policy]\non_error = "warn"\n')
    choose = random.Random(seed)
    for _ in range(12):
        event(topo, choose.choice(tuple(GUESTS)), choose.choice(OPERATIONS))
        if (topo.testbed.lab.run_dir / "ruleset.nft").exists():
            assert table(topo) == fresh(topo, scratch)
    settle(topo)
    assert table(topo) == fresh(topo, scratch) == expected
    for family in FAMILIES:
        assert who(topo.client, family.host, 8080) == "web"
        assert who(topo.client, family.host, 8081) == "db"
    assert who(topo.client, V4.extra, 5000) == "web"
    for name in ("web", "db"):
        topo.testbed.stop(name)
    assert topo.testbed.table() == ""


def test_every_event_twice_is_as_good_as_once(topo: Topology, scratch: Ns) -> None:
    seen: dict[str, list[str]] = {}
    for operation in ("prepare", "started", "reconnect", "prepare", "started", "stopped", "release"):
        for _ in range(2):
            event(topo, "web", operation)
            assert table(topo) == fresh(topo, scratch)
            assert seen.setdefault(operation, table(topo)) == table(topo)
    assert seen["started"] == seen["reconnect"] != seen["stopped"] == seen["prepare"]


def test_stops_without_a_start_do_nothing(topo: Topology) -> None:
    for operation in ("release", "stopped", "stopped", "release"):
        event(topo, "app", operation)
    assert topo.testbed.table() == ""


def test_libvirtd_reconnects_to_all_its_guests_at_once(topo: Topology, scratch: Ns) -> None:
    expected = plain_start(topo)
    with ThreadPoolExecutor(4) as pool:
        done = [pool.submit(event, topo, name, "reconnect") for name in ("web", "db") for _ in range(3)]
        for one in done:
            one.result(timeout=30)
    assert table(topo) == fresh(topo, scratch) == expected


def test_all_guests_start_and_stop_at_once(topo: Topology, scratch: Ns) -> None:
    def life(name: str) -> None:
        for operation in ("prepare", "started", "stopped", "release", "prepare", "started"):
            event(topo, name, operation)

    expected = plain_start(topo)
    with ThreadPoolExecutor(2) as pool:
        for one in [pool.submit(life, name) for name in ("web", "db")]:
            one.result(timeout=60)
    assert table(topo) == fresh(topo, scratch) == expected
