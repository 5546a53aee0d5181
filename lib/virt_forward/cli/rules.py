"""``virt-forward rules``: the expected table."""

import argparse
import sys

from virt_forward import cli
from virt_forward.cli import unserved
from virt_forward.ruleset import table
from virt_forward.state.config_file import load_config
from virt_forward.state.store import Store


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "rules",
        help="print the expected table as nft text",
        description="Print the expected table inet virt-forward as text that nft -f loads. Comments at its "
        "end say which forwards of running guests are not in it, and why.",
        epilog="examples:\n"
        "  virt-forward rules                      what the table should be\n"
        "  virt-forward rules | nft -c -f -        nft's opinion of it",
    )
    parser.set_defaults(run=run)


def run(_options: argparse.Namespace) -> int:
    """Print the table that follows from the state and the configuration, and return 0."""
    with Store().open(create=False) as state:
        guests, networks = state.guests().values(), tuple(state.networks())
    sys.stdout.write(table.text(table.whole(guests, load_config(), 1)))
    for guest in guests:
        for line in (*unserved.kept_out(guest), *unserved.waiting(guest, networks)):
            cli.print_line(f"# {line}")
    return 0
