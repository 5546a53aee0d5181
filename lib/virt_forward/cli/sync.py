"""``virt-forward sync``: make the kernel match the running guests."""

import argparse
import sys
from collections.abc import Iterable
from typing import NamedTuple

from virt_forward import cli, text
from virt_forward.addresses import explain
from virt_forward.claims import vetoes
from virt_forward.model import Guest, Network
from virt_forward.portspec import host_part
from virt_forward.reconcile.resync import sync
from virt_forward.state.store import Store


class Count(NamedTuple):
    """A number with its noun."""

    number: int
    noun: str

    def __str__(self) -> str:
        return f"{self.number} {self.noun}{'' if self.number == 1 else 's'}"


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command's words to the parser."""
    parser = commands.add_parser(
        "sync",
        help="make the kernel match the running guests",
        description="Ask libvirt which guests run and what they declare, and make the table anew.",
    )
    parser.set_defaults(run=run)


def run(_options: argparse.Namespace) -> int:
    """Synchronise, and say what came of it; 1 where a guest could not be served."""
    outcome = sync()
    forwards = sum(len(guest.forwards) for guest in outcome.guests)
    print(f"{Count(len(outcome.guests), 'guest')} with {Count(forwards, 'forward')}")
    networks = Store().networks() if outcome.guests else ()
    for guest in outcome.guests:
        _tell(guest, networks)
    for error in outcome.errors:
        cli.complain(error)
    return 1 if outcome.errors else 0


def _tell(guest: Guest, networks: Iterable[Network]) -> None:
    name = text.word(guest.name)
    for forward, reason in guest.conflicts:
        cli.say(f"{name}: {host_part(forward)} is kept out: {reason}; {vetoes.remedy(reason)}", sys.stderr)
    for forward in guest.forwards:
        if not guest.endpoints_for(forward):
            cli.say(f"{name}: {host_part(forward)} waits: {explain.reason(guest, forward, networks)}")
