"""docs/ways.md is kept true: every row of its table is tried out with packets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from lab.netns import Ns
from lab.proc import REPO
from lab.xml import port_forward
from netns.support import FAMILIES, PROTOS, V4, V6, Cast, Family, told

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


def place(cast: Cast, row: Row) -> Ns:
    return {
        "LAN": cast.client,
        "LAN, by a route": cast.client,
        "LAN, through the host": cast.client,
        "the host": cast.host,
        "the guest itself": cast.web,
        "a sibling on the same bridge": cast.db,
        "a guest on another bridge": cast.far,
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
def ready(built: Cast) -> Iterator[Cast]:
    """What leads nowhere must be seen to arrive where it should: there, others answer."""
    for proto in PROTOS:
        built.client2.serve(proto, PORT, name="somebody")
        built.web.serve(proto, PORT, name="web")
    built.crowd.serve(built.web, (80,), protos=("sctp",))
    yield built


@pytest.fixture
def started(ready: Cast, request: pytest.FixtureRequest) -> Iterator[Cast]:
    """Start the guest under the setting that a row names; rows of one setting share the start."""
    ready.scene.lab.configure(f"[forward]\n{request.param}\n")
    ready.scene.start("web", *(port_forward(f"{PORT}:80", proto=proto) for proto in PROTOS))
    yield ready
    ready.scene.reset()


def of(setting: str) -> list[Row]:
    return [row for row in ROWS if row.setting == setting]


def test_the_table_has_every_way(cast: Cast) -> None:
    assert {row.start for row in ROWS if not row.setting} == {
        "LAN", "LAN, by a route", "LAN, through the host", "the host", "the guest itself",
        "a sibling on the same bridge", "a guest on another bridge",
    }  # fmt: skip
    assert {row.to for row in ROWS} >= {"127.0.0.1", "::1", "the gateway", "another address of the host"}


SETTINGS = sorted({row.setting for row in ROWS})


@pytest.mark.parametrize("started", SETTINGS, indirect=True)
def test_every_row_is_true(started: Cast, request: pytest.FixtureRequest) -> None:
    setting = request.node.callspec.params["started"]
    wrong = [
        f"{row} {family} {proto}: {said}"
        for row in of(setting)
        for family in FAMILIES
        for proto in PROTOS
        if (said := disagreement(started, row, family, proto))
    ]
    assert wrong == []


def disagreement(cast: Cast, row: Row, family: Family, proto: str) -> str:
    """Return in what a row is wrong for one family and protocol; empty where it is true."""
    asked = address(row, family)
    if asked is None:
        return ""
    if row.works:
        expected = ("web", seen(row, family), 80)
        answer = told(place(cast, row), asked, PORT, proto)
        return "" if answer == expected else f"{answer} instead of {expected}"
    before = cast.crowd.heard()
    reply = place(cast, row).ask(asked, PORT, proto, timeout=0.15)
    nobody = "somebody" if row.to == "the same port of somebody else" else None
    heard = cast.crowd.heard() - before
    return "" if (reply and reply.name) == nobody and not heard else f"{reply}, {heard} packets at the guest"
