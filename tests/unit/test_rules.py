"""What ``rules`` prints: the expected table, and as comments what is not in it and why."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from support.state import put
from unit.build import endpoint, forward, guest
from virt_forward.cli import rules
from virt_forward.model import Guest, Nic
from virt_forward.state.store import Store

NIC = Nic("52:54:00:a0:8f:2c", "bridge", "virbr0")
TAKEN = "host port tcp/8080 is taken by guest db"
WAITING = guest("web", forward(8080), endpoints=())._replace(nics=(NIC,))
KEPT_OUT = guest("web", endpoints=[endpoint()])._replace(conflicts=((forward(8080), TAKEN),))


@pytest.fixture(autouse=True)
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIRT_FORWARD_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("VIRT_FORWARD_CONFIG", str(tmp_path / "absent.toml"))


def printed(capsys: pytest.CaptureFixture[str], *guests: Guest) -> str:
    with Store().open() as state:
        put(state, *guests)
    assert rules.run(Namespace()) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (WAITING, "# web: tcp/8080 waits: the address of 52:54:00:a0:8f:2c on virbr0 is not known yet"),
        (KEPT_OUT, f"# web: tcp/8080 is kept out: {TAKEN}; give one of the two guests another port"),
    ],
)
def test_rules_tells_what_is_not_in_the_table(
    capsys: pytest.CaptureFixture[str], record: Guest, words: str
) -> None:
    assert f"\n{words}" in printed(capsys, record)
    beside = printed(capsys, record, guest("db", forward(9090)))
    assert "table inet virt-forward {" in beside
    assert f"\n{words}" in beside


def test_rules_has_no_comment_for_open_forwards(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, guest("web", forward(8080)))
    assert text.endswith("}\n")


def test_rules_writes_a_hostile_name_as_one_comment(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, WAITING._replace(name="web\nflush ruleset"))
    assert not any(line.startswith("flush") for line in text.splitlines())
