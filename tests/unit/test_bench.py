"""The recorded run of the benchmarks: the plot is drawn from it, and every figure in it is explained."""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path

import pytest

from bench import plot
from support.proc import REPO

RECORDED = json.loads((REPO / "tests" / "bench" / "recorded.json").read_text())
GROUPS = [name for name in RECORDED if name != "kernel"]


def test_plot_is_drawn_from_the_recorded_run() -> None:
    assert (REPO / "docs" / "performance.svg").read_text() == plot.draw(RECORDED)


@pytest.mark.parametrize("group", GROUPS)
def test_every_figure_is_explained_in_its_program(group: str) -> None:
    said = import_module(f"bench.{group}").__doc__ or ""
    for name in RECORDED[group]:
        assert re.search(rf"^(\w+, )*{name}(, \w+)* +\S", said, re.MULTILINE), name


def test_document_has_the_figures_of_the_recorded_run() -> None:
    text = (REPO / "docs" / "performance.md").read_text()
    for group in GROUPS:
        for name, figure in RECORDED[group].items():
            if isinstance(figure, float):
                assert re.search(rf"^\| `{name}` \|.*\| {figure:.2f} \|", text, re.MULTILINE), (
                    f"{name} {figure:.2f}"
                )
            elif group == "split":
                assert f"| {name} | {' | '.join(f'{value:.1f}' for value in figure.values())} |" in text
            else:
                assert all(f"{value:.2f}" in text for kind in figure.values() for value in kind.values())


def test_document_names_no_figure_that_nobody_records() -> None:
    text = Path(REPO / "docs" / "performance.md").read_text()
    recorded = {name for group in GROUPS for name in RECORDED[group]}
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) <= recorded
