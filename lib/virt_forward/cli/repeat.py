"""A screen that is drawn again and again until Ctrl-C, as by watch(1)."""

import os
import select
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

ENTER, LEAVE = "\033[?1049h\033[?25l", "\033[?25h\033[?1049l"
"""Switch to the alternate screen without a cursor, and back (xterm's control sequences)."""

HOME, TO_END_OF_LINE, TO_END_OF_SCREEN = "\033[H", "\033[K", "\033[J"


def repeat(title: str, seconds: float, draw: Callable[[int], list[str]]) -> int:
    """Show what ``draw`` returns every ``seconds``, and when the terminal is resized; return 0 at Ctrl-C.

    ``draw`` gets the columns of the terminal, and returns lines that are no wider.
    """
    with _screen(), _resizes() as resized:
        try:
            while True:
                size = shutil.get_terminal_size()
                sys.stdout.write(page(title, seconds, draw(size.columns), size))
                sys.stdout.flush()
                select.select([resized], [], [], seconds)
                _drain(resized)
        except KeyboardInterrupt:
            return 0


def page(title: str, seconds: float, lines: list[str], size: os.terminal_size) -> str:
    """Return what draws lines below a header on a screen; what does not fit is left out."""
    left, right = f"Every {seconds:.1f}s: {title}", f"{socket.gethostname()}: {time.ctime()}"
    blank = " " * max(1, size.columns - len(left) - len(right))
    header = f"{left}{blank}{right}"[: size.columns]
    shown = [header, "", *lines][: size.lines]
    return HOME + "\n".join(f"{line}{TO_END_OF_LINE}" for line in shown) + TO_END_OF_SCREEN


@contextmanager
def _screen() -> Iterator[None]:
    sys.stdout.write(ENTER)
    try:
        yield
    finally:
        sys.stdout.write(LEAVE)
        sys.stdout.flush()


@contextmanager
def _resizes() -> Iterator[socket.socket]:
    """Yield a socket that can be read after the terminal was resized: select() goes on after a handler."""
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)
    before = signal.signal(signal.SIGWINCH, lambda *_: None)
    descriptor = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(descriptor)
        signal.signal(signal.SIGWINCH, before)
        reader.close()
        writer.close()


def _drain(reader: socket.socket) -> None:
    while select.select([reader], [], [], 0)[0]:
        reader.recv(4096)
