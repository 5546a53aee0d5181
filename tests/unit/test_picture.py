"""docs/packages.svg, drawn from the layers of test_imports and the first sentence of each docstring.

``--update-golden`` draws it again.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from html import escape

import pytest

from support.proc import REPO
from unit.test_imports import LAYERS, MODULES, PURE

PICTURE = REPO / "docs/packages.svg"
WIDTH, ROW, GAP, LEFT, TOP = 960, 24, 8, 24, 40
STYLE = """
    .back { fill: #fff } .layer { fill: #f2f4f7; stroke: #9aa3ad } .pure { fill: #e3eefb; stroke: #1f5fa8 }
    text { fill: #222; font: 13px system-ui, sans-serif } .name { font: 600 13px ui-monospace, monospace }
    .note { fill: #555; font-size: 12px } line { stroke: #777; stroke-dasharray: 5 4 }
    @media (prefers-color-scheme: dark) {
      .back { fill: #16191d } .layer { fill: #23282f; stroke: #5c6672 }
      .pure { fill: #1a2c44; stroke: #6ba4e8 }
      text { fill: #e8eaed } .note { fill: #a9b1ba } line { stroke: #8a929b }
    }
  """


def summary(name: str) -> str:
    """Return the first sentence of a module's docstring, without its full stop."""
    words = ast.get_docstring(ast.parse(MODULES[name].read_text())) or ""
    sentence = " ".join(words.partition("\n\n")[0].split()).replace("``", "")
    return sentence.partition(". ")[0].rstrip(".")


def label(name: str) -> str:
    """Return how a package or a module is written."""
    return f"{name}/" if MODULES[name].name == "__init__.py" else f"{name}.py"


def layer(names: tuple[str, ...], y: int) -> Iterator[str]:
    kind = "pure" if set(names) <= PURE else "layer"
    height = ROW * len(names)
    yield f'<rect class="{kind}" x="{LEFT}" y="{y}" width="{WIDTH - 2 * LEFT}" height="{height}" rx="5"/>'
    for number, name in enumerate(names):
        line = y + ROW * number + 17
        yield f'<text class="name" x="{LEFT + 12}" y="{line}">{label(name)}</text>'
        yield f'<text x="{LEFT + 124}" y="{line}">{escape(summary(name))}</text>'


def note(text: str, y: int) -> str:
    return f'<text class="note" x="{LEFT}" y="{y}">{escape(text)}</text>'


def draw() -> str:
    """Return the picture: the uppermost layer first, a line above the layers that do no I/O."""
    parts, y = [note("Each layer imports only what is below it.", 24)], TOP
    for names, below in zip(LAYERS[::-1], [*LAYERS[-2::-1], ()], strict=True):
        parts += layer(names, y)
        y += ROW * len(names) + GAP
        if set(below) <= PURE and not set(names) <= PURE:
            parts.append(f'<line x1="{LEFT}" y1="{y + 6}" x2="{WIDTH - LEFT}" y2="{y + 6}"/>')
            parts.append(note("Pure below: a result depends on the arguments alone.", y + 26))
            y += 36
    return document(parts, y + 12)


def document(parts: list[str], height: int) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img"'
    return (
        "\n  ".join(
            [
                f'{head} aria-labelledby="t">',
                '<title id="t">The packages of virt-forward in layers, the command at the top</title>',
                f"<style>{STYLE}</style>",
                f'<rect class="back" width="{WIDTH}" height="{height}"/>',
                *parts,
            ]
        )
        + "\n</svg>\n"
    )


def test_picture_of_the_packages_is_current(pytestconfig: pytest.Config) -> None:
    if pytestconfig.getoption("--update-golden"):
        PICTURE.write_text(draw())
    assert PICTURE.read_text() == draw()


@pytest.mark.parametrize("name", sorted(name for names in LAYERS for name in names))
def test_summary_fits_its_line(name: str) -> None:
    assert 0 < len(summary(name)) <= 115
