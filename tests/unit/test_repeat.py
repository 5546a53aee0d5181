"""``list --watch`` on a terminal: drawn again in time and after a resize, and gone without a trace."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator

import pytest

from support.proc import REPO
from virt_forward.cli import repeat

PROGRAM = """\
import fcntl, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
# A shell that starts the tests in the background has them ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)
from virt_forward.cli import repeat
drawn = []
def draw(columns):
    drawn.append(columns)
    return [f"drawing {len(drawn)} of {columns} columns"]
sys.exit(repeat.repeat("list", SECONDS, draw))
"""


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, seconds: float) -> None:
        self.master, slave = pty.openpty()
        self.resize(100)
        self.text = ""
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM.replace("SECONDS", str(seconds))],
            stdin=slave, stdout=slave, stderr=slave, env={"PYTHONPATH": str(REPO / "lib")},
            start_new_session=True,
        )  # fmt: skip
        os.close(slave)

    def resize(self, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def wait_for(self, text: str) -> None:
        while text not in self.text:
            assert select.select([self.master], [], [], 20)[0], self.text
            self.text += os.read(self.master, 4096).decode()

    def end(self) -> None:
        """Wait until the program has ended, and read what it has written."""
        while True:
            assert select.select([self.master], [], [], 20)[0], self.text
            try:
                data = os.read(self.master, 4096)
            except OSError:  # how a terminal tells that nobody has it open any more
                break
            self.text += data.decode()
        self.process.wait()


@pytest.fixture(params=[3600.0])
def terminal(request: pytest.FixtureRequest) -> Iterator[Terminal]:
    made = Terminal(request.param)
    yield made
    made.process.kill()
    made.process.wait()
    os.close(made.master)


def test_resized_screen_is_drawn_again_at_once(terminal: Terminal) -> None:
    terminal.wait_for("drawing 1 of 100 columns")
    terminal.resize(60)
    terminal.wait_for("drawing 2 of 60 columns")


@pytest.mark.parametrize("terminal", [0.1], indirect=True)
def test_screen_is_drawn_again_in_time(terminal: Terminal) -> None:
    terminal.wait_for("drawing 3 of 100 columns")


def test_ctrl_c_leaves_the_screen_as_it_was(terminal: Terminal) -> None:
    terminal.wait_for("drawing 1")
    terminal.type("\x03")
    terminal.end()
    assert terminal.process.returncode == 0
    assert terminal.text.startswith(repeat.ENTER)
    assert terminal.text.endswith(repeat.LEAVE)
    assert "Traceback" not in terminal.text


def test_terminated_program_leaves_the_screen_as_it_was(terminal: Terminal) -> None:
    terminal.wait_for("drawing 1")
    terminal.process.send_signal(signal.SIGTERM)
    terminal.end()
    assert terminal.process.returncode == 128 + signal.SIGTERM
    assert terminal.text.endswith(repeat.LEAVE)
