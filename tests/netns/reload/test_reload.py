"""Each of the three defences alone: what a reload costs; tests/bench measures how long.

VIRT_FORWARD_TEST_RELOADS=500 in the environment is the full measure; pytest -s shows the figures.
"""

from __future__ import annotations

import os
import re
import shlex
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from netns.reload.testbed import TABLE, Count, ReloadTestbed
from support.netns import HOOK_ENV, Lab
from support.proc import REPO, eventually, run

pytestmark = pytest.mark.root

RELOADS = int(os.environ.get("VIRT_FORWARD_TEST_RELOADS", "40"))
BLOCK = 20
DROP_IN = REPO / "lib" / "virt_forward" / "data" / "nftables-virt-forward.conf"


@pytest.fixture
def testbed(lab: Lab) -> Iterator[ReloadTestbed]:
    """A guest that runs, and a ruleset that was loaded; the person's part stays as it is."""
    made = ReloadTestbed(lab)
    made.write(include=False)
    made.reload()
    made.start()
    before = made.theirs()
    yield made
    made.write(include=False)
    made.stop()
    made.reload()
    assert made.theirs() == before


def several(testbed: ReloadTestbed) -> None:
    for _ in range(BLOCK):
        testbed.reload()


def test_include_costs_no_connection(testbed: ReloadTestbed) -> None:
    """The same reloads with the rule that a person wrote by hand are the measure, in turn with ours."""
    by_hand = with_us = Count()
    for _ in range(max(RELOADS // BLOCK, 1)):
        testbed.write(include=False, own=True)
        testbed.reload()
        by_hand += testbed.under_stream(lambda: several(testbed))
        testbed.write()
        testbed.reload()
        assert testbed.there()
        with_us += testbed.under_stream(lambda: several(testbed))
    print(f"\n{RELOADS} reloads each: by hand {by_hand}, with the include {with_us}")
    assert with_us.made > RELOADS, "hardly anybody connected"
    # A loaded machine may lose a packet; a table that is gone for a moment costs some at each reload.
    assert with_us.lost <= by_hand.lost + RELOADS // 10, (by_hand, with_us)


def test_nobody_forwards_without_any_defence(testbed: ReloadTestbed) -> None:
    """What the others are measured by: the stream does notice a table that is gone."""

    def reload() -> None:
        testbed.reload()
        time.sleep(0.6)

    count = testbed.under_stream(reload)
    assert not testbed.there()
    assert count.unanswered


def commands(key: str) -> list[str]:
    """Return what systemd would run for a line of the drop-in, by its words."""
    lines = [line for line in DROP_IN.read_text().splitlines() if line.startswith(f"{key}=")]
    return [line.partition("=")[2] for line in lines]


@pytest.mark.parametrize("key", ["ExecStartPost", "ExecReload"])
def test_drop_in_brings_the_table_back(testbed: ReloadTestbed, key: str) -> None:
    """The unit is systemd's to verify; its line is run here, for the run directory of this test."""
    (line,) = commands(key)
    assert line.startswith("-"), "a mistake of ours must not fail a person's firewall"
    words = shlex.split(line[1:].replace("/run/virt-forward", str(testbed.lab.run_dir)))
    before = testbed.theirs()

    def reload() -> None:
        testbed.reload()
        testbed.lab.host.run(words, env=HOOK_ENV)

    count = testbed.under_stream(reload)
    assert testbed.there()
    assert testbed.theirs() == before
    assert count.made, "nobody connected"


@pytest.mark.parametrize("key", ["ExecStartPost", "ExecReload"])
@pytest.mark.parametrize("text", [None, "{", ""], ids=["missing", "broken", "empty"])
def test_drop_in_never_fails_the_persons_firewall(testbed: ReloadTestbed, key: str, text: str | None) -> None:
    path = testbed.lab.run_dir / "ruleset.nft"
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    (line,) = commands(key)
    words = shlex.split(line[1:].replace("/run/virt-forward", str(testbed.lab.run_dir)))
    done = testbed.lab.host.run(words, env=HOOK_ENV, check=False)
    # systemd takes a failure of a command with "-" for success: systemd.service(5).
    assert line.startswith("-")
    assert (done.status == 0) == (text != "{")
    assert testbed.there()


@pytest.mark.parametrize("key", ["ExecStartPost", "ExecReload"])
def test_drop_in_loads_what_a_hook_is_writing_meanwhile(testbed: ReloadTestbed, key: str) -> None:
    """A reload that has read the include file before a hook's change leaves the kernel behind."""
    include, lock = testbed.lab.run_dir / "ruleset.nft", testbed.lab.run_dir / "lock"
    old = include.read_text()
    new = re.sub(r"(revision \{ )\d+", r"\g<1>4711", old)
    (line,) = commands(key)
    words = shlex.split(line[1:].replace("/run/virt-forward", str(testbed.lab.run_dir)))
    script = f"touch {testbed.lab.dir}/held; sleep 0.5; mv {include}.new {include}"
    hook: list[str | Path] = ["flock", lock, "sh", "-c", script]
    (testbed.lab.run_dir / "ruleset.nft.new").write_text(new)
    writing = testbed.lab.host.background(hook, testbed.lab.dir / "hook.log")
    eventually((testbed.lab.dir / "held").exists, "the hook has the lock")
    testbed.lab.host.run(words, env=HOOK_ENV)
    assert not writing.alive()
    assert f"{4711:#010x}" in testbed.lab.host.ruleset("set", *TABLE[1:], "revision")


def test_systemd_accepts_the_drop_in(tmp_path: Path) -> None:
    unit = tmp_path / "nftables.service"
    load = "/usr/sbin/nft -f /etc/nftables.conf"
    unit.write_text(f"[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart={load}\nExecReload={load}\n")
    folder = tmp_path / "nftables.service.d"
    folder.mkdir()
    (folder / "virt-forward.conf").write_text(DROP_IN.read_text())
    done = run(["systemd-analyze", "verify", "--man=no", unit], check=False)
    assert "virt-forward" not in done.err, done
    assert "nftables.service" not in done.err, done


def test_service_alone_brings_the_table_back(testbed: ReloadTestbed) -> None:
    """Whoever flushed it, and however often."""
    env = {**HOOK_ENV, **testbed.lab.env, "PYTHONPATH": str(REPO / "lib")}
    words = ["env", "-i", *(f"{key}={value}" for key, value in env.items())]
    argv = [*words, "/usr/bin/python3", "-m", "virt_forward.cli", "watch"]
    service = testbed.lab.host.background(argv, testbed.lab.dir / "watch.log")
    testbed.reload()
    try:
        eventually(testbed.there, "it has begun its work")
    except AssertionError as error:
        raise AssertionError(f"{error}\n{service.text()}") from None
    before = testbed.theirs()
    for _ in range(3):
        time.sleep(0.3)
        assert testbed.under_stream(lambda: _reload_and_wait(testbed)).made
    testbed.lab.host.run(["nft", "flush", *TABLE])
    eventually(lambda: "dnat" in testbed.lab.host.ruleset(*TABLE), "the rules are back")
    assert testbed.theirs() == before
    service.end()


def _reload_and_wait(testbed: ReloadTestbed) -> None:
    testbed.reload()
    eventually(testbed.there, "the table is back")
    time.sleep(0.2)


def test_all_three_together_are_in_nobodys_way(testbed: ReloadTestbed) -> None:
    testbed.write()
    (line,) = commands("ExecReload")
    words = shlex.split(line[1:].replace("/run/virt-forward", str(testbed.lab.run_dir)))
    before = testbed.theirs()
    ours = testbed.lab.host.ruleset(*TABLE)
    for _ in range(3):
        testbed.reload()
        testbed.lab.host.run(words, env=HOOK_ENV)
        assert testbed.lab.host.ruleset(*TABLE) == ours
    assert testbed.theirs() == before
