"""``virt-forward rules``: the table as it should be."""

import argparse
import sys

from virt_forward.errors import VirtForwardError
from virt_forward.ruleset import table
from virt_forward.state.config_file import load_config
from virt_forward.state.store import Store


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command's words to the parser."""
    parser = commands.add_parser(
        "rules",
        help="print the table as it should be, as loadable nft text",
        description="Print the table inet virt-forward as it should be, as text that nft -f loads.",
    )
    parser.set_defaults(run=run)


def run(_options: argparse.Namespace) -> int:
    """Print the table that the records and the configuration make."""
    guests, errors = Store().guests()
    if errors:
        raise VirtForwardError((str(error) for error in errors), "virt-forward sync makes the records anew")
    sys.stdout.write(table.text(table.whole(guests, load_config(), 1)))
    return 0
