"""``virt-forward list``: the declared forwards and their state."""

import argparse
import json
import unicodedata
from collections.abc import Iterable

from virt_forward import cli, portspec, text
from virt_forward.cli import report
from virt_forward.errors import StateError, VirtForwardError
from virt_forward.host import collect, nft
from virt_forward.libvirtd import api
from virt_forward.libvirtd.api import DomainState
from virt_forward.metadata.domain import parse_domain
from virt_forward.model import Guest
from virt_forward.state.config_file import load_config
from virt_forward.state.store import Store

HEADINGS = ("DOMAIN", "STATE", "HOST", "GUEST", "PACKETS", "BYTES", "")


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "list",
        help="show the declared forwards and their state",
        description="Show the declared forwards of all guests, their state and their counters.",
    )
    parser.add_argument("domains", nargs="*", metavar="DOMAIN", help="name or UUID; all if none is given")
    parser.add_argument("--json", action="store_true", help="print JSON, version 1")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the forwards; return 1 if the metadata of a guest cannot be read."""
    with api.connection(load_config().uri) as opened:
        chosen = choose(api.domains(opened), options.domains)
    errors: list[VirtForwardError] = []
    lines = _lines(chosen, errors)
    if options.json:
        print(json.dumps({"version": 1, "forwards": [report.as_json(line) for line in lines]}, indent=2))
    else:
        _print_table(lines)
    for error in errors:
        cli.print_error(error)
    return 1 if errors else 0


def choose(states: Iterable[DomainState], wanted: list[str]) -> list[DomainState]:
    """Return the domains with some names or UUIDs, all if none is given.

    Raises VirtForwardError for a name that no domain has.
    """
    states = list(states)
    known = {word for state in states for word in (state.name, state.uuid)}
    unknown = [word for word in wanted if word not in known]
    if unknown:
        messages = (f"there is no domain {text.quote(word)}" for word in unknown)
        raise VirtForwardError(messages, "see virsh list --all")
    return [state for state in states if not wanted or state.name in wanted or state.uuid in wanted]


def _lines(states: list[DomainState], errors: list[VirtForwardError]) -> list[report.Line]:
    store = Store()
    host = report.HostState(report.counters(nft.listing()), tuple(store.networks()), collect.listen_targets())
    found: list[report.Line] = []
    for state in states:
        try:
            record = _record(store, state.uuid, errors)
            found += report.lines(parse_domain(state.xml), state.active, record, host)
        except VirtForwardError as error:
            errors.append(error)
    return found


def _record(store: Store, uuid: str, errors: list[VirtForwardError]) -> Guest | None:
    try:
        return store.guest(uuid)
    except StateError as error:
        errors.append(error)
        return None


def _print_table(lines: list[report.Line]) -> None:
    rows = [HEADINGS, *map(_row, lines)]
    widths = [max(_width(row[column]) for row in rows) for column in range(len(HEADINGS))]
    for row in rows:
        cells = (cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def _width(cell: str) -> int:
    """Return the width of a cell in columns: two for a wide character, none for a combining one."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in cell)
    return len(cell) + wide - sum(unicodedata.category(c) in ("Mn", "Me") for c in cell)


def _row(line: report.Line) -> tuple[str, ...]:
    where = " ".join(filter(None, (portspec.host_part(line.forward), portspec.qualifiers(line.forward))))
    first, last = line.forward.to, line.forward.to + line.forward.end - line.forward.start
    guest = f"{', '.join(line.guest) or '?'} {portspec.span(first, last)}"
    name, reason = text.plain(line.domain), text.line(line.reason or "")
    return (name, line.state, *map(text.line, (where, guest)), str(line.packets), str(line.bytes), reason)
