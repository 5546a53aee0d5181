"""``virt-forward sync``: make the kernel match the running guests."""

import argparse
import gc
import sys
from collections.abc import Iterable
from typing import NamedTuple

from virt_forward import cli
from virt_forward.cli import unserved
from virt_forward.cli.progress import Progress
from virt_forward.model import Network
from virt_forward.reconcile.resync import sync
from virt_forward.state.store import Store


class Count(NamedTuple):
    """A number with a noun, as ``1 guest`` or ``2 guests``."""

    number: int
    noun: str

    def __str__(self) -> str:
        return f"{self.number} {self.noun}{'' if self.number == 1 else 's'}"


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
        for line in unserved.kept_out(guest):
            cli.print_line(line, sys.stderr)
        for line in unserved.waiting(guest, networks):
            cli.print_line(line)
    for error in outcome.errors:
        cli.print_error(error)
    return 1 if outcome.errors else 0


def _networks() -> Iterable[Network]:
    with Store().open(create=False) as state:
        return state.networks()
