"""``virt-forward list``: the declared forwards and their state."""

import argparse
import json
import os
import sys
from collections.abc import Iterable
from difflib import get_close_matches

from virt_forward import cli, ports, portspec, text
from virt_forward.check import live_metadata
from virt_forward.cli import pending, repeat, report, table
from virt_forward.errors import UsageError, VirtForwardError
from virt_forward.host import collect, nft
from virt_forward.libvirtd import api
from virt_forward.libvirtd.api import DomainState
from virt_forward.metadata.domain import parse_domain
from virt_forward.model import Domain, Guest
from virt_forward.state.config_file import load_config
from virt_forward.state.store import Store

EXAMPLES = """\
examples:
  virt-forward list                       all guests, running or not
  virt-forward list web db
  virt-forward list --watch --interval 1  again every second, until Ctrl-C
  virt-forward list --json | jq -r '.forwards[] | select(.state != "active") | .domain'
  virt-forward list --specs web           the SPECs for add and remove, one a line
"""


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "list",
        help="show the declared forwards and their state",
        description="Show the declared forwards of all guests, their state and their counters.",
        epilog=EXAMPLES,
    )
    parser.add_argument("domains", nargs="*", metavar="DOMAIN", help="name, UUID or id; all if none is given")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print JSON, version 1")
    how.add_argument(
        "--specs",
        action="store_true",
        help="print SPECs only, without forwards that need --dev, --source or --mac as well; needs no root",
    )
    how.add_argument("--watch", action="store_true", help="show the list again and again, until Ctrl-C")
    parser.add_argument(
        "-n", "--interval", type=_seconds, metavar="SECONDS", help="how often --watch does so (2)"
    )
    parser.set_defaults(run=run, needs_root=lambda options: not options.specs)


def _seconds(word: str) -> float:
    try:
        seconds = float(word)
    except ValueError:
        seconds = 0
    if not 0.1 <= seconds <= 86400:
        raise argparse.ArgumentTypeError(f"{text.quote(word)} is wrong: use seconds, from 0.1 to 86400")
    return seconds


def run(options: argparse.Namespace) -> int:
    """Print the forwards; return 1 if the metadata of a guest cannot be read."""
    if options.interval and not options.watch:
        raise UsageError("--interval is for --watch only")
    if options.watch:
        return _watch(options)
    errors: list[VirtForwardError] = []
    if options.specs:
        _print_specs(_chosen(options.domains, read_only=True), errors)
    elif options.json:
        shown = [report.as_json(line) for line in lines(_chosen(options.domains), errors)]
        print(json.dumps({"version": 1, "forwards": shown}, indent=2))
    else:
        print_table(lines(_chosen(options.domains), errors))
    for error in errors:
        cli.print_error(error)
    return 1 if errors else 0


def _watch(options: argparse.Namespace) -> int:
    if not sys.stdout.isatty():
        raise UsageError("--watch needs a terminal", "use watch(1), or list in a loop")
    title = " ".join(["virt-forward list", *map(text.word, options.domains)])
    return repeat.repeat(title, options.interval or 2.0, lambda columns: _drawn(options.domains, columns))


def _drawn(domains: list[str], columns: int) -> list[str]:
    """Return the list as lines of a screen. What goes wrong may be right again the next time."""
    errors: list[VirtForwardError] = []
    rows: list[str] = []
    try:
        found = lines(_chosen(domains), errors)
        rows = table.render(found, colour=table.coloured(), columns=columns)
    except VirtForwardError as error:
        errors.append(error)
    said = [f"error: {message}"[:columns] for error in errors for message in text.lines(error.messages)]
    return [*rows, *said]


def _chosen(wanted: list[str], *, read_only: bool = False) -> list[DomainState]:
    with api.connection(load_config().uri, read_only=read_only) as opened:
        return choose(api.domains(opened), wanted)


def choose(states: Iterable[DomainState], wanted: list[str]) -> list[DomainState]:
    """Return the domains with some ids, UUIDs or names, all if none is given.

    As for virsh, a word that is the id of one and the name of another means the former. Raises
    VirtForwardError for a word that no domain has.
    """
    states = list(states)
    found = {word: _find_guest(states, word) for word in wanted}
    unknown = [word for word, state in found.items() if state is None]
    if unknown:
        names = [state.name for state in states]
        near = {name: None for word in unknown for name in get_close_matches(word, names, 1)}
        hint = f"did you mean {' or '.join(map(text.word, near))}? " if near else ""
        messages = (f"there is no domain {text.quote(word)}" for word in unknown)
        raise VirtForwardError(messages, f"{hint}virsh list --all shows all")
    return [state for state in states if not wanted or state in found.values()]


def _find_guest(states: list[DomainState], word: str) -> DomainState | None:
    for key in ("id", "uuid", "name"):
        for state in states:
            value = getattr(state, key)
            if value is not None and str(value) == (word.lower() if key == "uuid" else word):
                return state
    return None


def lines(states: list[DomainState], errors: list[VirtForwardError]) -> list[report.Line]:
    """Return the lines of some domains as the host is now; what is wrong with one is added to ``errors``."""
    with Store().open(create=False) as state:
        guests, networks = state.guests(), tuple(state.networks())
    listed = nft.listing()
    host = report.HostState(
        report.counters(listed), networks, collect.listen_targets(), report.reached_chains(listed)
    )
    found: list[report.Line] = []
    for domain in states:
        try:
            found += _lines(parse_domain(domain.xml), domain.active, guests.get(domain.uuid), host)
        except VirtForwardError as error:
            errors.append(error)
    return found


def _lines(domain: Domain, active: bool, record: Guest | None, host: report.HostState) -> list[report.Line]:
    """Return the lines of one domain. Where its metadata is not in force as sync refuses it, they say why."""
    known = not active or live_metadata.in_force(domain, record)
    refusal = "" if known else pending.refusal(domain, load_config())
    return report.lines(domain, active, record, host, refusal)


def print_table(found: Iterable[report.Line]) -> None:
    """Print lines as a table, in colours on a terminal."""
    columns = os.get_terminal_size(sys.stdout.fileno()).columns if sys.stdout.isatty() else None
    for row in table.render(found, colour=table.coloured(), columns=columns or None):
        print(row)


def _print_specs(states: Iterable[DomainState], errors: list[VirtForwardError]) -> None:
    for state in states:
        try:
            declaration = parse_domain(state.xml).declaration
        except VirtForwardError as error:
            errors.append(error)
            continue
        for forward in ports.expand(declaration) if declaration else ():
            if options := portspec.options(forward):
                # Added by its SPEC alone, it would be open to everybody, or lead to another NIC.
                left_out = f"{text.word(state.name)}: {portspec.render(forward)} is left out"
                cli.print_line(f"virt-forward: warning: {left_out}; it also needs {options}", sys.stderr)
            else:
                print(portspec.render(forward))
