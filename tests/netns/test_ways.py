"""docs/ways.md is kept true: every row of its table is tried out with packets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from netns.support import (
    FAMILIES,
    PROTOS,
    V4,
    V6,
    Family,
    Topology,
    bridge_netfilter,
    has_br_netfilter,
    who,
)
from support.netns import Ns
from support.proc import REPO
from support.xml import port_forward

pytestmark = pytest.mark.root

PORT = 8080
SETTING = re.compile(r", `(\w+ = \w+)`$")


@dataclass(frozen=True)
class Row:
    """One line of the table, word for word."""

    start: str
    to: str
    works: bool
    seen: str
    setting: str = ""

    def __str__(self) -> str:
        return f"{self.start} to {self.to} {self.setting}"


def rows() -> Iterator[Row]:
    for line in (REPO / "docs" / "ways.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and cells[0] != "from" and set(line) - set("|-"):
            start, to, works, seen = cells
            setting = SETTING.search(start)
            yield Row(
                SETTING.sub("", start),
                to,
                {"yes": True, "no": False}[works],
                seen,
                setting[1] if setting else "",
            )


ROWS = tuple(rows())


def ns(topo: Topology, row: Row) -> Ns:
    return {
        "LAN": topo.client,
        "LAN, by a route": topo.client,
        "LAN, through the host": topo.client,
        "the host": topo.host,
        "the guest itself": topo.web,
        "a sibling on the same bridge": topo.db,
        "a guest on another bridge": topo.far,
    }[row.start]


def address(row: Row, family: Family) -> str | None:
    """Return what a row's second column means in one family; None where it means nothing there."""
    loopback = {"127.0.0.1": V4, "::1": V6}.get(row.to)
    if loopback:
        return row.to if loopback is family else None
    return {
        "the host's address on that uplink": family.host,
        "the host's address on an uplink": family.host,
        "its address on an uplink": family.host,
        "another address of the host": family.second_host,
        "the gateway": family.gateway,
        "the same port of somebody else": family.second_client,
    }[row.to]


def seen(row: Row, family: Family) -> str:
    return {
        "the client's address": family.client,
        "that address": family.host,
        "the gateway": family.gateway,
        "that guest's address": {4: "10.20.0.5", 6: "fd20:20::5"}[family.version],
    }[row.seen]


@pytest.fixture(scope="module")
def ready(built: Topology) -> Iterator[Topology]:
    """What leads nowhere must be seen to arrive where it should: there, others answer."""
    for proto in PROTOS:
        built.client2.serve(proto, PORT, name="somebody")
        built.web.serve(proto, PORT, name="web")
    built.servers.serve(built.web, (80,), protos=("sctp",))
    yield built


@pytest.fixture
def started(ready: Topology, setting: str, br_netfilter: bool) -> Iterator[Topology]:
    """Start the guest under the setting that rows name."""
    bridge_netfilter(ready.host, br_netfilter)
    ready.testbed.lab.configure(f"[forward]\n{setting}\n")
    ready.testbed.start("web", *(port_forward(f"{PORT}:80", proto=proto) for proto in PROTOS))
    yield ready
    ready.testbed.reset()
    bridge_netfilter(ready.host, False)


def test_table_has_every_way(topo: Topology) -> None:
    assert {row.start for row in ROWS if not row.setting} == {
        "LAN", "LAN, by a route", "LAN, through the host", "the host", "the guest itself",
        "a sibling on the same bridge", "a guest on another bridge",
    }  # fmt: skip
    assert {row.to for row in ROWS} >= {"127.0.0.1", "::1", "the gateway", "another address of the host"}


@pytest.mark.parametrize("setting", sorted({row.setting for row in ROWS}))
@pytest.mark.parametrize("br_netfilter", [False, True], ids=["routed", "br_netfilter"])
def test_every_row_is_true(started: Topology, setting: str, br_netfilter: bool) -> None:
    if br_netfilter and not has_br_netfilter():
        pytest.skip("the kernel module br_netfilter is not loaded")
    rows = [row for row in ROWS if row.setting == setting]
    wrong = [
        f"{row} {family} {proto}: {said}"
        for row in (map(with_br_netfilter, rows) if br_netfilter else rows)
        for family in FAMILIES
        for proto in PROTOS
        if (said := disagreement(started, row, family, proto))
    ]
    assert wrong == []


def with_br_netfilter(row: Row) -> Row:
    """Return a row as it is with br_netfilter: the page names the only way that is cut then."""
    cut = (row.start, row.to) == ("the guest itself", "the host's address on an uplink")
    return replace(row, works=False) if cut else row


def disagreement(topo: Topology, row: Row, family: Family, proto: str) -> str:
    """Return in what a row is wrong for one family and protocol; empty where it is true."""
    asked = address(row, family)
    if asked is None:
        return ""
    if row.works:
        expected = ("web", seen(row, family), 80)
        answer = ns(topo, row).ask(asked, PORT, proto)
        told = (answer.name, answer.source, answer.port) if answer else None
        return "" if told == expected else f"{told} instead of {expected}"
    before = topo.servers.requests()
    if row.to == "the same port of somebody else":
        right = who(ns(topo, row), asked, PORT, proto) == "somebody"
    else:
        right = ns(topo, row).unanswered(asked, PORT, proto)
    heard = topo.servers.requests() - before
    return "" if right and not heard else f"as expected: {right}, {heard} packets at the guest"
