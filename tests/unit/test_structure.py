"""The figures of tests/bench/structure.py, on a package small enough to count by hand."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from bench import structure
from support.proc import run

MODULE = """\
def once(): return open_state()
def open_state(): return open(PATH).read() + open(PATH).read()
def twice(): return once, twice
"""
HOOK = """\
import os, sys
sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(__file__)), "lib"))
import package
package.PATH = os.environ["VIRT_FORWARD_RUN_DIR"] + "/state"
package.once()
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with one module of three functions, and a hook that runs two of them."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/package.py").write_text(MODULE)
    (tmp_path / "hooks").mkdir()
    (tmp_path / "hooks/qemu").write_text(HOOK)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/state").write_text("state")
    return tmp_path


def test_functions_with_one_caller_are_those_whose_name_is_used_once(checkout: Path) -> None:
    found = structure.functions(checkout / "lib")
    assert found["functions"] == 3
    assert found["functions, one caller"] == 3
    with (checkout / "lib/package.py").open("a") as file:
        file.write("once()\n")
    assert structure.functions(checkout / "lib")["functions, one caller"] == 2


def test_measured_hook_counts_frames_and_reads(checkout: Path) -> None:
    report = checkout / "report"
    argv: list[str | Path] = [
        sys.executable,
        "-I",
        structure.__file__,
        "--measured",
        report,
        checkout / "hooks/qemu",
    ]
    run(argv, env={**os.environ, "VIRT_FORWARD_RUN_DIR": str(checkout / "run")})
    found = json.loads(report.read_text())
    assert found["started: deepest stack"] == found["started: calls"] == 2
    assert found["started: modules"] == 1
    assert found["started: reads of the run directory"] == found["started: reads of one file"] == 2
    assert found["started: writes of the run directory"] == 0
