"""``virt-forward watch``: the service."""

import argparse


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "watch",
        help="run the service: live metadata edits, leases, flushes",
        description="Run in the foreground until SIGTERM: apply metadata that is edited on running guests, "
        "complete forwards when guests get their addresses, and restore the table after a flush. "
        "The rules stay when the service ends.",
        epilog="examples:\n  virt-forward watch                      what virt-forward.service runs",
    )
    parser.set_defaults(run=run)


def run(_options: argparse.Namespace) -> int:
    """Run the service until it is stopped, and return 0."""
    from virt_forward.watch.service import Service

    return Service().run()
