"""A screen that is drawn again and again until Ctrl-C, as by watch(1)."""

import os
import select
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
    with _screen(), _signals() as resized:
        try:
            while True:
                size = os.get_terminal_size(sys.stdout.fileno())
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
def _signals() -> Iterator[socket.socket]:
    """Yield a socket that can be read after the terminal was resized, since select() goes on after a handler.

    SIGTERM and SIGHUP end the program as they would, but not before the screen is as it was.
    """
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)
    before = {number: signal.signal(number, _end) for number in (signal.SIGTERM, signal.SIGHUP)}
    before[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, lambda *_: None)
    descriptor = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(descriptor)
        for number, handler in before.items():
            signal.signal(number, handler)
        reader.close()
        writer.close()


def _end(number: int, _frame: object) -> None:
    sys.exit(128 + number)


def _drain(reader: socket.socket) -> None:
    while select.select([reader], [], [], 0)[0]:
        reader.recv(4096)
