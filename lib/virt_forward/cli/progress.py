"""The line on a terminal that says what a command that takes a while is doing.

By a thread: the alarm is that of waiting for the lock (state/store.py).
"""

import threading
from typing import TextIO

SECONDS = 1.0
"""How long a command takes before it tells what it does."""


class Progress:
    """Shows on a terminal what is being done, once SECONDS have passed; nothing elsewhere."""

    def __init__(self, stream: TextIO, seconds: float = SECONDS) -> None:
        self._stream = stream
        self._step = ""
        self._is_due = False
        self._lock = threading.Lock()
        self._timer = threading.Timer(seconds, self._begin)
        self._timer.daemon = True

    def __enter__(self) -> "Progress":
        if self._stream.isatty():
            self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        with self._lock:
            if self._is_due and self._step:
                self._show("")
            self._step = ""

    def tell(self, step: str) -> None:
        """Show what is done next, in the place of what was shown before."""
        with self._lock:
            self._step = step
            if self._is_due:
                self._show(step)

    def _begin(self) -> None:
        with self._lock:
            self._is_due = True
            if self._step:
                self._show(self._step)

    def _show(self, step: str) -> None:
        # ECMA-48: to the beginning of the line, and erase it.
        self._stream.write(f"\r\x1b[K{step}{' …' if step else ''}")
        self._stream.flush()
