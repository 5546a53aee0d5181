"""Whether a hand-written ruleset loads our include file again after it has flushed everything."""

import re
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase

_COMMENT = re.compile(r"#.*")
_STATEMENT = re.compile(r"^\s*(?:(flush\s+ruleset)\b|include\s+[\"']([^\"']+)[\"'])", re.MULTILINE)
MAX_DEPTH = 16
"""How deep nft itself follows includes."""

Reader = Callable[[str], Iterable[tuple[str, str]]]
"""Gives the (path, text) of every file that an include's pattern matches."""


def flushes(text: str, read: Reader, depth: int = 0) -> bool:
    """Tell whether a ruleset flushes everything, itself or in a file that it includes."""
    return any(flush or _inside(pattern, read, depth) for flush, pattern in _statements(text))


def _inside(pattern: str, read: Reader, depth: int) -> bool:
    return depth < MAX_DEPTH and any(flushes(text, read, depth + 1) for _, text in read(pattern))


def included_after(text: str, target: str, read: Reader, depth: int = 0) -> bool:
    """Tell whether the file ``target`` is included after the last flush of a ruleset."""
    included = False
    for flush, pattern in _statements(text):
        if flush:
            included = False
        elif fnmatchcase(target, pattern):
            included = True
        elif depth < MAX_DEPTH:
            for _, inner in read(pattern):
                included = (included and not flushes(inner, read, depth + 1)) or included_after(
                    inner, target, read, depth + 1
                )
    return included


def _statements(text: str) -> list[tuple[str, str]]:
    return [(found[1] or "", found[2] or "") for found in _STATEMENT.finditer(_COMMENT.sub("", text))]
