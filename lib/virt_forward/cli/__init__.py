"""The command line. Only this module prints errors and chooses exit statuses."""

import argparse
import io
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TextIO

from virt_forward import __version__, text
from virt_forward.errors import UsageError, VirtForwardError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit status: 0 on success, 1 on failure, 2 for wrong usage."""
    _replace_closed()
    _escape_unencodable()
    status = 0
    try:
        status = _run(arguments)
        # Not left to the interpreter, which can only print a traceback of what fails then.
        sys.stdout.flush()
    except BrokenPipeError:  # the reader (head, less) has closed the pipe
        _discard_output()
    except OSError as error:
        _discard_output()
        where = "the output" if error.filename is None else text.word(str(error.filename))
        print_error(VirtForwardError(f"{where}: {error.strerror or error}"))
        return 1
    return status


def _run(arguments: Sequence[str] | None) -> int:
    try:
        options = _parser().parse_args(arguments)
        run: Callable[[argparse.Namespace], int] = options.run
        if options.needs_root(options):
            _need_root(options.command)
        return run(options)
    except VirtForwardError as error:
        print_error(error)
        return 2 if isinstance(error, UsageError) else 1
    except SystemExit as error:  # argparse: after --help, and for wrong usage
        return int(error.code or 0)
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


def _replace_closed() -> None:
    """Open /dev/null in the place of an output that was closed by who has called us: Python has none then."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def _discard_output() -> None:
    """Send what is still to be written to stdout nowhere: it would fail again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _escape_unencodable() -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class _Help(argparse.HelpFormatter):
    """Keeps the lines of a text that has several (the examples), and the name virt-forward whole."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" in text:
            return text
        return textwrap.fill(
            text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
        )

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)


class _Parser(argparse.ArgumentParser):
    """Its errors are those of any command, with what they repeat of the arguments escaped."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"formatter_class": _Help, **settings})

    def error(self, message: str) -> NoReturn:
        print_error(VirtForwardError(message, f"{self.prog} --help shows the usage"))
        self.exit(2)


def _need_root(command: str) -> None:
    if os.geteuid() == 0:
        return
    hint = f"run it with sudo virt-forward {command} ..."
    if command in ("add", "remove"):
        # The whole change is root's, as the table is; what it begins with is not.
        hint += (
            "; a member of the group libvirt can set the metadata without root, by "
            "virsh metadata --uri urn:virt-forward:1, and virt-forward.service applies it"
        )
    raise VirtForwardError(f"virt-forward {command} needs root", hint)


def _parser() -> argparse.ArgumentParser:
    from virt_forward.cli import add, check, init, listing, metrics, remove, rules, sync, watch

    parser: argparse.ArgumentParser = _Parser(
        prog="virt-forward",
        description="Port forwarding for libvirt guests that follows the guest.",
        epilog="The forwards of a guest are declared in its domain metadata; see virt-forward(1). "
        "virt-forward COMMAND --help has examples.",
    )
    parser.add_argument("--version", action="version", version=f"virt-forward {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    parser.set_defaults(needs_root=lambda _: True)
    for command in (listing, add, remove, check, sync, rules, watch, init, metrics):
        command.add_to(commands)
    return parser
