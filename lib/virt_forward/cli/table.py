"""The lines of ``list`` as a table for reading."""

import os
import sys
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence

from virt_forward import portspec, text
from virt_forward.cli.report import Line, State

HEADINGS = ("DOMAIN", "STATE", "HOST", "GUEST", "PACKETS", "BYTES")
INDENT = "    "
COLUMNS_OF_NUMBERS = (4, 5)
COLOURS: dict[State, str] = {
    "active": "32",
    "waiting": "33",
    "conflict": "31",
    "missing": "31",
    "inactive": "2",
}
"""SGR parameters (ECMA-48): green, yellow, red, faint."""


def coloured() -> bool:
    """Tell whether stdout is a terminal that may be coloured (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def render(lines: Iterable[Line], *, colour: bool = False, columns: int | None = None) -> list[str]:
    """Return the rows of a table, headings first, aligned.

    With ``columns`` no row is wider, and an explanation that does not fit has rows of its own.
    """
    lines = list(lines)
    rows = [HEADINGS, *map(_row, lines)]
    widths = [max(width(row[column]) for row in rows) for column in range(len(HEADINGS))]
    shown = [_cut(_join(HEADINGS, widths), columns)]
    for line, row in zip(lines, rows[1:], strict=True):
        first, *more = _fitted(_join(row, widths), explanation(line), columns)
        shown += [_painted(first, line, widths[0]) if colour else first, *more]
    return shown


def _join(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = []
    for column, (cell, wide) in enumerate(zip(row, widths, strict=True)):
        blank = " " * (wide - width(cell))
        cells.append(blank + cell if column in COLUMNS_OF_NUMBERS else cell + blank)
    return "  ".join(cells)


def _fitted(row: str, why: str, columns: int | None) -> list[str]:
    """Return a row and its explanation as one row, or as several where that would be too wide."""
    whole = f"{row}  {text.line(why)}".rstrip()
    if columns is None:
        return [whole]
    if width(whole) <= columns or not why:
        return [_cut(whole, columns)]
    indented = textwrap.wrap(
        text.line(why), max(columns, 20), initial_indent=INDENT, subsequent_indent=INDENT
    )
    return [_cut(each, columns) for each in (row.rstrip(), *indented)]


def _painted(row: str, line: Line, before: int) -> str:
    """Return a row with its state coloured, which begins after a first column of width ``before``."""
    start = next((at for at in range(len(row)) if width(row[:at]) >= before), len(row))
    head, tail = row[:start], row[start:]
    return head + tail.replace(line.state, f"\033[{COLOURS[line.state]}m{line.state}\033[0m", 1)


def _cut(row: str, columns: int | None) -> str:
    if columns is None:
        return row
    while width(row) > columns:
        row = row[: min(len(row) - 1, columns)]
    return row


def width(cell: str) -> int:
    """Return the width of a cell in columns: two for a wide character, none for a combining one."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in cell)
    return len(cell) + wide - sum(unicodedata.category(c) in ("Mn", "Me") for c in cell)


def _row(line: Line) -> tuple[str, ...]:
    where = " ".join(filter(None, (portspec.host_part(line.forward), portspec.qualifiers(line.forward))))
    first, last = line.forward.to, line.forward.to + line.forward.end - line.forward.start
    guest = f"{', '.join(line.guest) or '?'} {portspec.span(first, last)}"
    shown = map(text.line, (where, guest))
    return (text.plain(line.domain), line.state, *shown, str(line.packets), str(line.bytes))


def explanation(line: Line) -> str:
    """Return what a reader wants to know beside the state: why, and what would change it."""
    if line.state == "inactive":
        return "opens when the guest starts"
    if line.state == "waiting":
        return f"{line.reason}; it opens as soon as the guest has an address" if line.reason else ""
    return line.reason or ""
