"""The command line. Only this module prints errors and chooses exit statuses."""

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn, TextIO

from virt_forward import __version__, text
from virt_forward.errors import UsageError, VirtForwardError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit status: 0 on success, 1 on failure, 2 for wrong usage."""
    _escape_unencodable()
    options = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        _need_root()
        return run(options)
    except VirtForwardError as error:
        print_error(error)
        return 2 if isinstance(error, UsageError) else 1
    except BrokenPipeError:
        # The reader (head, less) has closed the pipe; flushing to it at exit would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130


def print_error(error: VirtForwardError) -> None:
    """Print an error to stderr, a line for each message, and its hint."""
    for message in text.lines(error.messages):
        print_line(f"virt-forward: error: {message}", sys.stderr)
    if error.hint:
        print_line(f"hint: {error.hint}", sys.stderr)


def print_line(message: str, file: TextIO | None = None) -> None:
    """Print a message as one line of harmless text; to stdout if no file is given."""
    print(text.line(message), file=file)


def _escape_unencodable() -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class _Parser(argparse.ArgumentParser):
    """argparse does not escape the arguments that it repeats in its errors."""

    def error(self, message: str) -> NoReturn:
        super().error(text.line(message))


def _need_root() -> None:
    if os.geteuid() != 0:
        raise VirtForwardError("this needs root, to read the table and libvirt's guests", "run it with sudo")


def _parser() -> argparse.ArgumentParser:
    from virt_forward.cli import check, init, listing, rules, sync, watch

    parser: argparse.ArgumentParser = _Parser(
        prog="virt-forward",
        description="Port forwarding for libvirt guests that follows the guest.",
        epilog="The forwards of a guest are declared in its domain metadata; see virt-forward(1).",
    )
    parser.add_argument("--version", action="version", version=f"virt-forward {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    listing.add_to(commands)
    sync.add_to(commands)
    watch.add_to(commands)
    rules.add_to(commands)
    check.add_to(commands)
    init.add_to(commands)
    return parser
