"""``virt-forward check``: what would stop a forward from working, and the fix."""

import argparse
import json
from typing import Any

from virt_forward import cli, text
from virt_forward.check import findings, guests, reading
from virt_forward.check.problem import Problem
from virt_forward.cli.listing import choose
from virt_forward.errors import VirtForwardError
from virt_forward.libvirtd.api import DomainState
from virt_forward.state.config_file import load_config
from virt_forward.state.store import Store


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command's words to the parser."""
    parser = commands.add_parser(
        "check",
        help="find what would stop a forward from working",
        description="Look for what would stop a forward from working, and say the fix. "
        "Nothing of the host is changed. The exit status is 1 where something is found.",
    )
    parser.add_argument("domains", nargs="*", metavar="DOMAIN", help="name or UUID; all where none is given")
    parser.add_argument("--json", action="store_true", help="print JSON, version 1")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the findings; 1 where there is one."""
    config = load_config()
    domains = _domains(options)
    wanted = {state.name for state in choose(domains or [], options.domains)} if options.domains else None
    facts = reading.read(config, Store(), domains)
    found = findings.problems(facts)
    shown = [item for item in found if wanted is None or item.domain is None or item.domain in wanted]
    running = guests.running(facts.guests, wanted)
    if options.json:
        told = {"problems": [*map(_as_json, shown)], "guests": [*map(guests.as_json, running)]}
        print(json.dumps({"version": 1, **told}, indent=2))
    else:
        _print(shown)
        for guest in running:
            cli.say(guests.line(guest))
    return 1 if shown else 0


def _domains(options: argparse.Namespace) -> list[DomainState] | None:
    try:
        return reading.domains(load_config())
    except VirtForwardError as error:
        if options.domains:
            raise
        cli.complain(error)
        return None


def _as_json(item: Problem) -> dict[str, Any]:
    return item._asdict() | {"message": text.line(item.message), "fix": text.line(item.fix)}


def _print(problems: list[Problem]) -> None:
    for item in problems:
        where = f"{text.word(item.domain)}: " if item.domain else ""
        cli.say(f"{item.severity}: {where}{item.message} [{item.id}]")
        cli.say(f"  fix: {item.fix}")
    if not problems:
        cli.say("nothing found")
