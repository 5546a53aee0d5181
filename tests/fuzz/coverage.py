"""Which lines of the package an input reaches, and in which order: what tells the fuzzer that it is new."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

import virt_forward

PACKAGE = os.path.dirname(virt_forward.__file__) + os.sep
STRIDE = 1 << 20
"""More than a file has lines."""


class Coverage:
    """Edges seen so far: pairs of lines, one executed after the other."""

    def __init__(self) -> None:
        self.edges: set[int] = set()
        self._now: set[int] = set()
        self._last = 0
        self._files: dict[str, int] = {}
        self._bases: dict[CodeType, int] = {}

    @property
    def lines(self) -> int:
        """How many distinct lines were executed."""
        return len({edge % (STRIDE * STRIDE) for edge in self.edges})

    def run(self, function: Callable[[bytes], None], data: bytes) -> bool:
        """Call ``function`` and tell whether that took an edge never seen before. Raises what it raises."""
        self._now, self._last = set(), 0
        before = sys.gettrace()
        sys.settrace(self._enter)
        try:
            function(data)
        finally:
            sys.settrace(before)
            new = not self._now <= self.edges
            self.edges |= self._now
        return new

    def _enter(self, frame: FrameType, _event: str, _argument: Any) -> Callable[..., Any] | None:
        base = self._bases.get(frame.f_code)
        if base is None:
            base = self._bases[frame.f_code] = self._base(frame.f_code.co_filename)
        return self._line if base else None

    def _base(self, path: str) -> int:
        """Return the number of line 0 of a file of the package; 0 for other files."""
        if not path.startswith(PACKAGE):
            return 0
        return self._files.setdefault(path, (len(self._files) + 1) * STRIDE)

    def _line(self, frame: FrameType, event: str, _argument: Any) -> Callable[..., Any]:
        if event == "line":
            here = self._bases[frame.f_code] + frame.f_lineno
            self._now.add(self._last * STRIDE * STRIDE + here)
            self._last = here
        return self._line
