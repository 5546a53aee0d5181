"""Untrusted text in messages: names, file contents, and the output of other programs.

Such text is escaped here only, in two layers. A value is quoted when it is added to a message
(``quote``, ``word``, ``output``), and each output (stderr, the journal, a table) passes the whole
message through ``line``.

The characters that ``str.isprintable`` rejects are replaced: the Unicode categories "Other" (control
characters, bidirectional controls, surrogates, unassigned) and "Separator", except the space.
"""

from collections.abc import Iterable, Iterator
from itertools import islice

MAX_VALUE = 60
"""The most characters of a value in a message."""
MAX_OUTPUT = 400
"""The most characters of the output of another program in a message."""
MAX_LINE = 1000
"""The most characters of a message."""
MAX_LINES = 100
"""The most messages of one error that are printed."""


def plain(value: str, limit: int = MAX_VALUE) -> str:
    """Return ``value`` on one line, printable, valid as UTF-8, and at most ``limit`` characters long."""
    cut = value if len(value) <= limit else f"{value[: limit - 3]}..."
    return cut if cut.isprintable() else "".join(c if c.isprintable() else "?" for c in cut)


def quote(value: str) -> str:
    """Return ``value`` in double quotes, without double quotes inside."""
    return '"' + plain(value).replace('"', "'") + '"'


def word(value: str) -> str:
    """Return ``value`` unchanged if it is one plain word, and quoted otherwise."""
    return value if is_word(value) else quote(value)


def is_word(value: str) -> bool:
    """Tell whether ``value`` is short, ASCII, and has no special characters for a shell or a sentence."""
    bare = value.translate({ord(c): "0" for c in "._+-@:"})
    return bare.isascii() and bare.isalnum() and value[0] not in "-.:" and len(value) <= MAX_VALUE


def domain_argument(name: str, uuid: str) -> str:
    """Return what names a domain in a command: its name if it needs no quotes, or else its UUID."""
    return name if is_word(name) else uuid


def output(printed: str) -> str:
    """Return the output of another program or library as one line."""
    return plain(" ".join(printed.split()), MAX_OUTPUT)


def line(message: str) -> str:
    """Return a message as one printable line."""
    return plain(message, MAX_LINE)


def lines(messages: Iterable[str]) -> Iterator[str]:
    """Yield the messages of one error as printable lines; after MAX_LINES, the number of further ones."""
    rest = iter(messages)
    yield from map(line, islice(rest, MAX_LINES))
    more = sum(1 for _ in rest)
    if more:
        yield f"... and {more} more"
