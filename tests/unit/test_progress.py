"""What a command shows of its progress: on a terminal, and only when it takes long."""

import io
import threading

from virt_forward.cli.progress import Progress


class Terminal(io.StringIO):
    """A stream that says whether it is a terminal, and when something was written."""

    def __init__(self, *, tty: bool) -> None:
        super().__init__()
        self._tty = tty
        self.written = threading.Event()

    def isatty(self) -> bool:
        return self._tty

    def flush(self) -> None:
        super().flush()
        self.written.set()


def test_progress_of_a_long_sync_is_shown_and_erased() -> None:
    terminal = Terminal(tty=True)
    with Progress(terminal, seconds=0.001) as progress:
        progress.tell("reading")
        assert terminal.written.wait(10)
        progress.tell("loading")
    assert terminal.getvalue() == "\r\x1b[Kreading …\r\x1b[Kloading …\r\x1b[K"


def test_progress_begins_with_the_first_step_after_the_time() -> None:
    terminal = Terminal(tty=True)
    with Progress(terminal, seconds=0.001) as progress:
        progress._timer.join(10)
        progress.tell("reading")
    assert terminal.getvalue() == "\r\x1b[Kreading …\r\x1b[K"


def test_short_sync_shows_no_progress() -> None:
    terminal = Terminal(tty=True)
    with Progress(terminal, seconds=60) as progress:
        progress.tell("reading")
    assert terminal.getvalue() == ""


def test_no_progress_is_shown_outside_a_terminal() -> None:
    file = Terminal(tty=False)
    with Progress(file, seconds=0.001) as progress:
        progress.tell("reading")
        assert not file.written.wait(0.1)
    assert file.getvalue() == ""
