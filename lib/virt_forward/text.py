"""Foreign text in messages: names, file contents, and what other programs print.

The one place where such text is made safe, in two layers. A value is quoted where it enters a
message (``quote``, ``word``, ``output``), and every exit (stderr, the journal, a table) passes
what it prints through ``line``, whatever the message was made of.

What is replaced is what ``str.isprintable`` rejects: the Unicode categories "Other" (control
characters, bidirectional controls, surrogates, unassigned) and "Separator", but for the blank.
"""

from collections.abc import Iterable, Iterator
from itertools import islice

MAX_VALUE = 60
"""Characters of a value inside a message."""
MAX_OUTPUT = 400
"""Characters of what another program printed, inside a message."""
MAX_LINE = 1000
"""Characters of a whole message."""
MAX_LINES = 100
"""Messages of one error."""


def plain(value: str, limit: int = MAX_VALUE) -> str:
    """Return ``value`` on one line, printable, valid as UTF-8, and at most ``limit`` characters long."""
    cut = value if len(value) <= limit else f"{value[: limit - 3]}..."
    return cut if cut.isprintable() else "".join(c if c.isprintable() else "?" for c in cut)


def quote(value: str) -> str:
    """Return ``value`` in double quotes; the closing one is the second and the last."""
    return '"' + plain(value).replace('"', "'") + '"'


def word(value: str) -> str:
    """Return ``value`` as it stands where it is one plain word, and quoted otherwise."""
    return value if is_word(value) else quote(value)


def is_word(value: str) -> bool:
    """Tell whether ``value`` is short, ASCII, and without a meaning to a shell or in a sentence."""
    bare = value.translate({ord(c): "0" for c in "._+-@:"})
    return bare.isascii() and bare.isalnum() and value[0] not in "-.:" and len(value) <= MAX_VALUE


def output(printed: str) -> str:
    """Return what another program or library said, its lines joined into one."""
    return plain(" ".join(printed.split()), MAX_OUTPUT)


def line(message: str) -> str:
    """Return a message as an exit may print it, whatever it was made of."""
    return plain(message, MAX_LINE)


def lines(messages: Iterable[str]) -> Iterator[str]:
    """Yield the messages of one error, as an exit may print them; the last says how many there were more."""
    rest = iter(messages)
    yield from map(line, islice(rest, MAX_LINES))
    more = sum(1 for _ in rest)
    if more:
        yield f"... and {more} more"
