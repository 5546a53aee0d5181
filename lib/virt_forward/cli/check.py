"""``virt-forward check``: what stops a forward from working, and how to fix it."""

import argparse
import json
from typing import Any

from virt_forward import cli, text
from virt_forward.check import findings, guests, reading
from virt_forward.check.problem import Problem
from virt_forward.cli.listing import choose
from virt_forward.config import Config
from virt_forward.errors import VirtForwardError
from virt_forward.libvirtd.api import DomainState
from virt_forward.state.config_file import load_config
from virt_forward.state.store import Store


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "check",
        help="find what stops a forward from working",
        description="Look for what stops a forward from working, and print how to fix it. "
        "Nothing on the host is changed. The exit status is 1 if a problem is found.",
        epilog="examples:\n"
        "  virt-forward check                      the host and all guests\n"
        "  virt-forward check web",
    )
    parser.add_argument("domains", nargs="*", metavar="DOMAIN", help="name or UUID; all if none is given")
    parser.add_argument("--json", action="store_true", help="print JSON, version 1")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the problems and the running guests; return 1 if there is a problem."""
    config = load_config()
    domains = _domains(options, config)
    wanted = {state.name for state in choose(domains or [], options.domains)} if options.domains else None
    facts = reading.read_facts(config, Store(), domains)
    found = findings.problems(facts)
    shown = [item for item in found if wanted is None or item.domain is None or item.domain in wanted]
    running = guests.running(facts.guests, wanted)
    if options.json:
        document = {"problems": [*map(_as_json, shown)], "guests": [*map(guests.as_json, running)]}
        print(json.dumps({"version": 1, **document}, indent=2))
    else:
        _print(shown)
        for guest in running:
            cli.print_line(guests.line(guest))
    return 1 if shown else 0


def _domains(options: argparse.Namespace, config: Config) -> list[DomainState] | None:
    try:
        return reading.domains(config)
    except VirtForwardError as error:
        if options.domains:
            raise
        cli.print_error(error)
        return None


def _as_json(item: Problem) -> dict[str, Any]:
    return item._asdict() | {"message": text.line(item.message), "fix": text.line(item.fix)}


def _print(problems: list[Problem]) -> None:
    for item in problems:
        where = f"{text.word(item.domain)}: " if item.domain else ""
        cli.print_line(f"{item.severity}: {where}{item.message} [{item.id}]")
        cli.print_line(f"  fix: {item.fix}")
    if not problems:
        cli.print_line("no problems found")
