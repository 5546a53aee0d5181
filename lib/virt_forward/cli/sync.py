"""``virt-forward sync``: make the kernel match the running guests."""

import argparse
import gc
import sys
import threading
from collections.abc import Iterable
from typing import NamedTuple, TextIO

from virt_forward import cli, text
from virt_forward.addresses import explain
from virt_forward.claims import vetoes
from virt_forward.model import Guest, Network
from virt_forward.portspec import host_part
from virt_forward.reconcile.resync import sync
from virt_forward.state.store import Store


class Count(NamedTuple):
    """A number with a noun, as ``1 guest`` or ``2 guests``."""

    number: int
    noun: str

    def __str__(self) -> str:
        return f"{self.number} {self.noun}{'' if self.number == 1 else 's'}"


PROGRESS_SECONDS = 1.0
"""How long a sync takes before it tells what it does."""


class Progress:
    """Shows on a terminal what is being done, once it has taken PROGRESS_SECONDS; nothing elsewhere."""

    def __init__(self, stream: TextIO, seconds: float = PROGRESS_SECONDS) -> None:
        self._stream = stream
        self._step = ""
        self._is_shown = False
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
            if self._is_shown:
                self._show("")
            self._is_shown = False
            self._step = ""

    def tell(self, step: str) -> None:
        """Show what is done next, in the place of what was shown before."""
        with self._lock:
            self._step = step
            if self._is_shown:
                self._show(step)

    def _begin(self) -> None:
        with self._lock:
            if self._step:
                self._is_shown = True
                self._show(self._step)

    def _show(self, step: str) -> None:
        # ECMA-48: to the beginning of the line, and erase it.
        self._stream.write(f"\r\x1b[K{step}{' …' if step else ''}")
        self._stream.flush()


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "sync",
        help="make the kernel match the running guests",
        description="Read the running guests and their metadata from libvirt, and rebuild the table.",
        epilog="examples:\n"
        "  virt-forward sync                       after a flush, or an edit without the service",
    )
    parser.set_defaults(run=run)


def run(_options: argparse.Namespace) -> int:
    """Synchronise, and print the result; return 1 if a guest has an error."""
    # A fifth of the time would be spent on looking for garbage, of which there is none.
    gc.disable()
    try:
        with Progress(sys.stderr) as progress:
            outcome = sync(tell=progress.tell)
    finally:
        gc.enable()
    forwards = sum(len(guest.forwards) for guest in outcome.guests)
    print(f"{Count(len(outcome.guests), 'guest')} with {Count(forwards, 'forward')}")
    networks = _networks() if outcome.guests else ()
    for guest in outcome.guests:
        _print_guest(guest, networks)
    for error in outcome.errors:
        cli.print_error(error)
    return 1 if outcome.errors else 0


def _networks() -> Iterable[Network]:
    with Store().open(create=False) as state:
        return state.networks()


def _print_guest(guest: Guest, networks: Iterable[Network]) -> None:
    name = text.word(guest.name)
    for forward, reason in guest.conflicts:
        cli.print_line(
            f"{name}: {host_part(forward)} is kept out: {reason}; {vetoes.remedy(reason)}", sys.stderr
        )
    for forward in guest.forwards:
        if not guest.endpoints_for(forward):
            cli.print_line(f"{name}: {host_part(forward)} waits: {explain.reason(guest, forward, networks)}")
