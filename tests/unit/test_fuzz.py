"""The fuzzer itself: a short run over every target, and that it finds what is wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fuzz import __main__ as command
from fuzz import engine, mutate
from fuzz.engine import Failure, Hang, Target, check, fuzz, limited
from fuzz.targets import TARGETS
from support.proc import REPO, run
from virt_forward.metadata import values


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_every_target_passes_its_seeds_and_some_inputs(target: Target) -> None:
    outcome = fuzz(target, 1, lambda count: count < len(target.seeds) + 60)
    assert [failure.report for failure in outcome.failures] == []
    assert outcome.inputs == len(target.seeds) + 60
    assert outcome.lines


def test_command_runs_from_anywhere(tmp_path: Path) -> None:
    done = run([REPO / "tests/fuzz/run", "--list"], cwd=tmp_path, env={"PYTHON": sys.executable})
    assert done.out.split() == [target.name for target in TARGETS]


def test_each_target_has_a_name_of_its_own() -> None:
    assert len({target.name for target in TARGETS}) == len(TARGETS)


def switches(text: str) -> list[str]:
    """Return the lines that name a switch and an interface."""
    lines = (line.split() for line in text.splitlines())
    return [words[1] for words in lines if len(words) == 2 and values.is_dev(words[1])]


def broken(data: bytes) -> None:
    if b"7" in data and switches(data.decode("utf-8", "replace")):
        raise KeyError(data)


BROKEN = Target("broken", broken, (b"route_localnet virbr5\nhairpin_port virbr7\n",))


def test_failing_input_is_cut_to_the_shortest() -> None:
    (failure,) = fuzz(BROKEN, 1, lambda count: count < 5).failures
    assert failure.data.endswith(b"7")
    assert len(failure.data) <= len(b"hairpin_port 7")
    assert failure.place.startswith("KeyError at ")


def test_same_seed_makes_the_same_inputs() -> None:
    def inputs(seed: int) -> list[bytes]:
        seen: list[bytes] = []
        fuzz(Target("x", seen.append, (b"a 1\n", b"b 2\n")), seed, lambda count: count < 50)
        return seen

    assert inputs(1) == inputs(1) != inputs(2)


def test_input_that_reaches_new_lines_is_kept() -> None:
    def port(data: bytes) -> None:
        try:
            values.port(data.decode("ascii", "replace"))
        except values.Bad:
            return

    assert fuzz(Target("port", port, (b"x",)), 1, lambda count: count < 500).kept > 1


def test_loop_without_end_is_a_failure() -> None:
    def forever(_: bytes) -> None:
        while True:
            pass

    with pytest.raises(Hang), limited(0.05):
        forever(b"")


def test_no_input_is_longer_than_the_limit() -> None:
    lengths: list[int] = []
    target = Target("x", lambda data: lengths.append(len(data)), (b"abc " * 500,))
    fuzz(target, 1, lambda count: count < 300)
    assert max(lengths) <= mutate.MAX_BYTES


@pytest.fixture
def one_target(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Target], None]:
    def use(target: Target) -> None:
        monkeypatch.setattr(command, "TARGETS", (target,))
        monkeypatch.setattr(command, "FOUND", tmp_path)

    return use


def test_command_fails_and_leaves_the_input_to_run_again(
    one_target: Callable[[Target], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one_target(BROKEN)
    assert command.main(["--inputs", "1"]) == 1
    (path,) = tmp_path.iterdir()
    printed = capsys.readouterr()
    assert f"--only broken --input {path}" in printed.err
    assert command.main(["--only", "broken", "--input", str(path)]) == 1
    assert "KeyError" in capsys.readouterr().err
    path.write_bytes(b"")
    assert command.main(["--only", "broken", "--input", str(path)]) == 0


def test_command_counts_what_it_has_done(
    one_target: Callable[[Target], None], capsys: pytest.CaptureFixture[str]
) -> None:
    one_target(Target("x", lambda _: None, (b"a", b"b")))
    assert command.main(["--inputs", "40"]) == 0
    head, row, last = capsys.readouterr().out.splitlines()
    assert head.split() == ["target", "inputs", "kept", "lines", "edges", "failures"]
    assert row.split() == ["x", "40", "2", "0", "0", "0"]
    assert last.split() == ["total", "40", "2", "0", "0", "0"]


def test_target_that_fails_everywhere_is_given_up() -> None:
    def fail(data: bytes) -> None:
        raise type(f"E{len(data)}", (Exception,), {})

    outcome = fuzz(Target("x", fail, (b"abc",)), 1, lambda _: True)
    assert len(outcome.failures) == engine.ENOUGH


def test_input_that_passes_is_no_failure() -> None:
    assert check(BROKEN, b"") is None
    assert isinstance(check(BROKEN, BROKEN.seeds[0]), Failure)
