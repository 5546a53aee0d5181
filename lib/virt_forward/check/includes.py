"""Whether a ruleset of the administrator includes our file after it flushes everything."""

import re
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import NamedTuple

# "flush ruleset ip" leaves the tables of other families, as inet, which is ours (nft(8)). A comment or a
# string is matched as a whole, so that nothing in it is taken for a statement.
_STATEMENT = re.compile(
    r"""
    (?: ^ | ; ) \s* (?:
        (?P<flush> flush \s+ ruleset \b ) (?! [ \t]+ (?: ip6? | arp | bridge | netdev ) \b )
        | include \s+ ["'] (?P<include> [^"']+ ) ["']
    )
    | \# .* | " [^"\n]* "
    """,
    re.MULTILINE | re.VERBOSE,
)
MAX_DEPTH = 16
"""The depth up to which nft follows includes (MAX_INCLUDE_DEPTH in its source)."""

Reader = Callable[[str], Iterable[tuple[str, str]]]
"""Returns the (path, text) of each file that the pattern of an include matches."""


class _Effect(NamedTuple):
    """The effect of a ruleset: whether it flushes, and whether the file is included after that.

    ``included`` is None if it neither flushes nor includes the file.
    """

    flushes: bool = False
    included: bool | None = None


def flushes(text: str, read: Reader) -> bool:
    """Tell whether a ruleset flushes the tables of inet, itself or in a file that it includes."""
    return _effect(text, "", read, {}).flushes


def included_after(text: str, target: str, read: Reader) -> bool:
    """Tell whether the file ``target`` is included after the last flush of a ruleset."""
    return bool(_effect(text, target, read, {}).included)


def _effect(text: str, target: str, read: Reader, known: dict[str, _Effect], depth: int = 0) -> _Effect:
    """Return the effect of a ruleset; ``known`` has the effects of the files that were read already."""
    whole = _Effect()
    for flush, pattern in _statements(text):
        if flush:
            parts = [_Effect(True, False)]
        elif target and fnmatchcase(target, pattern):
            parts = [_Effect(False, True)]
        else:
            parts = [_of_file(file, target, read, known, depth + 1) for file in read(pattern)]
        for part in parts:
            included = whole.included if part.included is None else part.included
            whole = _Effect(whole.flushes or part.flushes, included)
    return whole


def _of_file(
    file: tuple[str, str], target: str, read: Reader, known: dict[str, _Effect], depth: int
) -> _Effect:
    path, text = file
    if path not in known:
        # nft refuses a file that includes itself.
        known[path] = _Effect()
        if depth <= MAX_DEPTH:
            known[path] = _effect(text, target, read, known, depth)
    return known[path]


def _statements(text: str) -> list[tuple[str, str]]:
    found = ((match["flush"] or "", match["include"] or "") for match in _STATEMENT.finditer(text))
    return [(flush, include) for flush, include in found if flush or include]
