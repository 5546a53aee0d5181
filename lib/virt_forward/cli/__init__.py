"""The command: its words, and where they lead. Only this module prints errors and chooses exit statuses."""

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn, TextIO

from virt_forward import __version__, text
from virt_forward.errors import UsageError, VirtForwardError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0 when done, 1 when it failed, 2 for wrong usage."""
    _escape_what_cannot_be_encoded()
    options = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        _need_root()
        return run(options)
    except VirtForwardError as error:
        complain(error)
        return 2 if isinstance(error, UsageError) else 1
    except BrokenPipeError:
        # The reader (head, less) has seen enough; nothing is left to be flushed to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130


def complain(error: VirtForwardError) -> None:
    """Print an error and its hint to stderr."""
    for message in text.lines(error.messages):
        say(f"virt-forward: error: {message}", sys.stderr)
    if error.hint:
        say(f"hint: {error.hint}", sys.stderr)


def say(message: str, file: TextIO | None = None) -> None:
    """Print one line, whatever the message was made of; to stdout where no file is given."""
    print(text.line(message), file=file)


def _escape_what_cannot_be_encoded() -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class _Parser(argparse.ArgumentParser):
    """argparse puts the words of the command line into its complaints as they are."""

    def error(self, message: str) -> NoReturn:
        super().error(text.line(message))


def _need_root() -> None:
    if os.geteuid() != 0:
        raise VirtForwardError("this needs root, to read the table and libvirt's guests", "run it with sudo")


def _parser() -> argparse.ArgumentParser:
    from virt_forward.cli import check, listing, rules, sync, watch

    parser: argparse.ArgumentParser = _Parser(
        prog="virt-forward",
        description="Port forwarding for libvirt guests that follows the guest.",
        epilog="The forward ports of a guest stand in its domain metadata; see virt-forward(1).",
    )
    parser.add_argument("--version", action="version", version=f"virt-forward {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    listing.add_to(commands)
    sync.add_to(commands)
    watch.add_to(commands)
    rules.add_to(commands)
    check.add_to(commands)
    return parser
