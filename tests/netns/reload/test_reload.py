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

from netns.reload.scene import TABLE, Count, Scene
from support.netns import HOOK_ENV, Lab
from support.proc import REPO, eventually, run

pytestmark = pytest.mark.root

RELOADS = int(os.environ.get("VIRT_FORWARD_TEST_RELOADS", "40"))
BLOCK = 20
DROP_IN = REPO / "lib" / "virt_forward" / "data" / "nftables-virt-forward.conf"


@pytest.fixture
def scene(lab: Lab) -> Iterator[Scene]:
    """A guest that runs, and a ruleset that was loaded; the person's part stays as it is."""
    made = Scene(lab)
    made.write(include=False)
    made.reload()
    made.start()
    before = made.theirs()
    yield made
    made.write(include=False)
    made.stop()
    made.reload()
    assert made.theirs() == before


def several(scene: Scene) -> None:
    for _ in range(BLOCK):
        scene.reload()


def test_the_include_costs_no_connection(scene: Scene) -> None:
    """The same reloads with the rule that a person wrote by hand are the measure, in turn with ours."""
    by_hand = with_us = Count()
    for _ in range(max(RELOADS // BLOCK, 1)):
        scene.write(include=False, own=True)
        scene.reload()
        by_hand += scene.under_stream(lambda: several(scene))
        scene.write()
        scene.reload()
        assert scene.there()
        with_us += scene.under_stream(lambda: several(scene))
    print(f"\n{RELOADS} reloads each: by hand {by_hand}, with the include {with_us}")
    assert with_us.made > RELOADS, "hardly anybody connected"
    assert with_us.lost * by_hand.made <= by_hand.lost * with_us.made, (by_hand, with_us)


def test_nobody_forwards_without_any_defence(scene: Scene) -> None:
    """What the others are measured by: the stream does notice a table that is gone."""

    def reload() -> None:
        scene.reload()
        time.sleep(0.6)

    count = scene.under_stream(reload)
    assert not scene.there()
    assert count.unanswered


def commands(key: str) -> list[str]:
    """Return what systemd would run for a line of the drop-in, by its words."""
    lines = [line for line in DROP_IN.read_text().splitlines() if line.startswith(f"{key}=")]
    return [line.partition("=")[2] for line in lines]


@pytest.mark.parametrize("key", ["ExecStartPost", "ExecReload"])
def test_the_drop_in_brings_the_table_back(scene: Scene, key: str) -> None:
    """The unit is systemd's to verify; its line is run here, for the run directory of this test."""
    (line,) = commands(key)
    assert line.startswith("-"), "a mistake of ours must not fail a person's firewall"
    words = shlex.split(line[1:].replace("/run/virt-forward", str(scene.lab.run_dir)))
    before = scene.theirs()

    def reload() -> None:
        scene.reload()
        scene.lab.host.run(words, env=HOOK_ENV)

    count = scene.under_stream(reload)
    assert scene.there()
    assert scene.theirs() == before
    assert count.made, "nobody connected"


@pytest.mark.parametrize("key", ["ExecStartPost", "ExecReload"])
@pytest.mark.parametrize("text", [None, "{", ""], ids=["missing", "broken", "empty"])
def test_the_drop_in_never_fails_the_persons_firewall(scene: Scene, key: str, text: str | None) -> None:
    path = scene.lab.run_dir / "ruleset.nft"
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    (line,) = commands(key)
    words = shlex.split(line[1:].replace("/run/virt-forward", str(scene.lab.run_dir)))
    done = scene.lab.host.run(words, env=HOOK_ENV, check=False)
    # systemd takes a failure of a command with "-" for success: systemd.service(5).
    assert line.startswith("-")
    assert (done.status == 0) == (text != "{")
    assert scene.there()


@pytest.mark.parametrize("key", ["ExecStartPost", "ExecReload"])
def test_drop_in_loads_what_a_hook_is_writing_meanwhile(scene: Scene, key: str) -> None:
    """A reload that has read the include file before a hook's change leaves the kernel behind."""
    include, lock = scene.lab.run_dir / "ruleset.nft", scene.lab.run_dir / "lock"
    old = include.read_text()
    new = re.sub(r"(revision \{ )\d+", r"\g<1>4711", old)
    (line,) = commands(key)
    words = shlex.split(line[1:].replace("/run/virt-forward", str(scene.lab.run_dir)))
    script = f"touch {scene.lab.dir}/held; sleep 0.5; mv {include}.new {include}"
    hook: list[str | Path] = ["flock", lock, "sh", "-c", script]
    (scene.lab.run_dir / "ruleset.nft.new").write_text(new)
    writing = scene.lab.host.background(hook, scene.lab.dir / "hook.log")
    eventually((scene.lab.dir / "held").exists, "the hook has the lock")
    scene.lab.host.run(words, env=HOOK_ENV)
    assert not writing.alive()
    assert f"{4711:#010x}" in scene.lab.host.ruleset("set", *TABLE[1:], "revision")


def test_systemd_accepts_the_drop_in(tmp_path: Path) -> None:
    unit = tmp_path / "nftables.service"
    load = "/usr/sbin/nft -f /etc/nftables.conf"
    unit.write_text(f"[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart={load}\nExecReload={load}\n")
    folder = tmp_path / "nftables.service.d"
    folder.mkdir()
    (folder / "virt-forward.conf").write_text(DROP_IN.read_text())
    done = run(["systemd-analyze", "verify", "--man=no", unit], timeout=20, check=False)
    assert "virt-forward" not in done.err, done
    assert "nftables.service" not in done.err, done


def test_the_service_alone_brings_the_table_back(scene: Scene) -> None:
    """Whoever flushed it, and however often."""
    env = {**HOOK_ENV, **scene.lab.env, "PYTHONPATH": str(REPO / "lib")}
    words = ["env", "-i", *(f"{key}={value}" for key, value in env.items())]
    argv = [*words, "/usr/bin/python3", "-m", "virt_forward.cli", "watch"]
    service = scene.lab.host.background(argv, scene.lab.dir / "watch.log")
    scene.reload()
    try:
        eventually(scene.there, "it has begun its work", 10)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{service.text()}") from None
    before = scene.theirs()
    for _ in range(3):
        time.sleep(0.3)
        assert scene.under_stream(lambda: _reload_and_wait(scene)).made
    scene.lab.host.run(["nft", "flush", *TABLE])
    eventually(lambda: "dnat" in scene.lab.host.ruleset(*TABLE), "the rules are back", 10)
    assert scene.theirs() == before
    service.end()


def _reload_and_wait(scene: Scene) -> None:
    scene.reload()
    eventually(scene.there, "the table is back", 10, 0.01)
    time.sleep(0.2)


def test_all_three_together_are_in_nobodys_way(scene: Scene) -> None:
    scene.write()
    (line,) = commands("ExecReload")
    words = shlex.split(line[1:].replace("/run/virt-forward", str(scene.lab.run_dir)))
    before = scene.theirs()
    ours = scene.lab.host.ruleset(*TABLE)
    for _ in range(3):
        scene.reload()
        scene.lab.host.run(words, env=HOOK_ENV)
        assert scene.lab.host.ruleset(*TABLE) == ours
    assert scene.theirs() == before
