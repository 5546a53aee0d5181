"""The table and the screen of ``virt-forward list``."""

from __future__ import annotations

import os
import sys

import pytest

from unit.build import UUID, domain_xml, forward
from virt_forward.cli import listing, repeat, table
from virt_forward.cli.report import Line
from virt_forward.errors import VirtForwardError
from virt_forward.libvirtd.api import DomainState

LINES = [
    Line("web", UUID, forward(8080, to=80), ("10.10.0.200",), ("leased",), "active", None, 7, 12345),
    Line("東京", UUID, forward(443, dev="enp1s0"), (), (), "waiting", "the address is not known yet"),
    Line("active", UUID, forward(53, proto="udp"), (), (), "inactive"),
    Line("db", UUID, forward(5432), (), (), "conflict", "host port tcp/5432 is taken by guest web"),
]


def test_columns_are_aligned_and_numbers_to_the_right() -> None:
    assert table.render(LINES) == [
        "DOMAIN  STATE     HOST               GUEST           PACKETS  BYTES",
        "web     active    tcp/8080           10.10.0.200 80        7  12345",
        "東京    waiting   tcp/443 on enp1s0  ? 443                 0      0  "
        "the address is not known yet; it opens as soon as the guest has an address",
        "active  inactive  udp/53             ? 53                  0      0  opens when the guest starts",
        "db      conflict  tcp/5432           ? 5432                0      0  "
        "host port tcp/5432 is taken by guest web",
    ]


def test_only_the_state_is_coloured() -> None:
    plain, painted = table.render(LINES), table.render(LINES, colour=True)
    assert painted[0] == plain[0]
    for line, before, after in zip(LINES, plain[1:], painted[1:], strict=True):
        code = f"\033[{table.COLOURS[line.state]}m{line.state}\033[0m"
        assert after.count("\033") == 2
        assert code in after
        assert after.replace(code, line.state, 1) == before
    assert painted[3].startswith("active  \033[2minactive")


def test_addresses_that_do_not_fit_beside_each_other_are_below_each_other() -> None:
    both = LINES[0]._replace(guest=("10.10.0.200", "fd12:3456:789a:0:5054:ff:fea0:8f2c"))
    assert table.render([both], columns=80) == [
        "DOMAIN  STATE   HOST      GUEST                                  PACKETS  BYTES",
        "web     active  tcp/8080  10.10.0.200 80                               7  12345",
        "                          fd12:3456:789a:0:5054:ff:fea0:8f2c 80",
    ]
    assert len(table.render([both], columns=100)) == 2


@pytest.mark.parametrize("columns", [1, 5, 8, 12, 40, 80])
def test_rows_are_no_wider_than_a_screen(columns: int) -> None:
    rows = table.render(LINES, columns=columns)
    assert max(map(table.width, rows)) <= columns
    assert len(table.render(LINES, colour=True, columns=columns)) == len(rows)


def test_explanation_that_does_not_fit_has_rows_of_its_own() -> None:
    assert table.render(LINES[1:3], columns=60) == [
        "DOMAIN  STATE     HOST               GUEST  PACKETS  BYTES",
        "東京    waiting   tcp/443 on enp1s0  ? 443        0      0",
        "    the address is not known yet; it opens as soon as the",
        "    guest has an address",
        "active  inactive  udp/53             ? 53         0      0",
        "    opens when the guest starts",
    ]


@pytest.mark.parametrize(
    ("terminal", "environment", "expected"),
    [
        (True, {"TERM": "xterm"}, True),
        (True, {"TERM": "xterm", "NO_COLOR": ""}, True),
        (True, {"TERM": "xterm", "NO_COLOR": "1"}, False),
        (True, {"TERM": "dumb"}, False),
        (False, {"TERM": "xterm"}, False),
    ],
)
def test_colour_is_for_terminals_that_want_it(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, environment: dict[str, str], expected: bool
) -> None:
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    assert table.coloured() == expected


def test_screen_has_header_and_what_fits() -> None:
    size = os.terminal_size((60, 4))
    shown = repeat.page("virt-forward list", 2, ["one", "two", "three"], size)
    header, *rest = shown.replace("\033[H", "").replace("\033[K", "").replace("\033[J", "").split("\n")
    assert header.startswith("Every 2.0s: virt-forward list ")
    assert len(header) == 60
    assert rest == ["", "one", "two"]


STATES = [
    DomainState("web", UUID, True, domain_xml(), 3),
    DomainState("3", UUID.replace("9", "8"), False, domain_xml()),
    DomainState("Data Base", UUID.replace("9", "7"), False, domain_xml()),
]


@pytest.mark.parametrize(
    ("word", "name"), [("web", "web"), ("3", "web"), (UUID.upper(), "web"), ("Data Base", "Data Base")]
)
def test_domain_is_named_as_for_virsh(word: str, name: str) -> None:
    assert [state.name for state in listing.choose(STATES, [word])] == [name]


def test_unknown_domain_is_told_with_the_near_name() -> None:
    with pytest.raises(VirtForwardError, match='there is no domain "wbe"') as caught:
        listing.choose(STATES, ["wbe", "web"])
    assert caught.value.hint == "did you mean web? virsh list --all shows all"
    with pytest.raises(VirtForwardError) as caught:
        listing.choose(STATES, ["zzz"])
    assert caught.value.hint == "virsh list --all shows all"
