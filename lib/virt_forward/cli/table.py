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

    With ``columns`` no row is wider; further addresses of a guest, and an explanation, have rows of their
    own where they do not fit.
    """
    lines = list(lines)
    rows = [[_row(line, line.guest)] for line in lines]
    widths = _widths(rows)
    if columns is not None and width(_join(HEADINGS, widths)) > columns:
        rows = [_stacked(line) for line in lines]
        widths = _widths(rows)
    shown = [_cut(_join(HEADINGS, widths), columns)]
    for line, (row, *others) in zip(lines, rows, strict=True):
        first, *more = _fit(_join(row, widths), explanation(line), columns)
        below = [_cut(_join(other, widths).rstrip(), columns) for other in others]
        shown += [_paint(first, line, widths[0]) if colour else first, *below, *more]
    return shown


def _widths(rows: Iterable[Iterable[Sequence[str]]]) -> list[int]:
    cells = [HEADINGS, *(row for of_line in rows for row in of_line)]
    return [max(width(row[column]) for row in cells) for column in range(len(HEADINGS))]


def _stacked(line: Line) -> list[tuple[str, ...]]:
    """Return the row of a line with the guest's first address, and one below it for each other."""
    first = _row(line, line.guest[:1])
    others = (_row(line, (address,)) for address in line.guest[1:])
    return [first, *(("", "", "", other[3], "", "") for other in others)]


def _join(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = []
    for column, (cell, wide) in enumerate(zip(row, widths, strict=True)):
        blank = " " * (wide - width(cell))
        cells.append(blank + cell if column in COLUMNS_OF_NUMBERS else cell + blank)
    return "  ".join(cells)


def _fit(row: str, why: str, columns: int | None) -> list[str]:
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


def _paint(row: str, line: Line, before: int) -> str:
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


def _row(line: Line, addresses: Sequence[str]) -> tuple[str, ...]:
    where = " ".join(filter(None, (portspec.host_part(line.forward), portspec.qualifiers(line.forward))))
    guest = f"{', '.join(addresses) or '?'} {line.forward.guest_span}"
    shown = map(text.line, (where, guest))
    return (text.plain(line.domain), line.state, *shown, str(line.packets), str(line.bytes))


def explanation(line: Line) -> str:
    """Return what a reader wants to know beside the state: why, and what would change it."""
    if line.state == "inactive":
        return "opens when the guest starts"
    if line.state == "waiting":
        return f"{line.reason}; it opens as soon as the guest has an address" if line.reason else ""
    return line.reason or ""
