"""``virt-forward watch``: the service."""

import argparse


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command's words to the parser."""
    parser = commands.add_parser(
        "watch",
        help="the service: live metadata edits, leases, flushes",
        description="Serve in the foreground until SIGTERM: apply metadata that is edited on running guests, "
        "complete forwards as guests get their addresses, and restore the table where it is flushed. "
        "The rules stay when the service ends.",
    )
    parser.set_defaults(run=run)


def run(_options: argparse.Namespace) -> int:
    """Serve."""
    from virt_forward.watch.service import Service

    return Service().run()
