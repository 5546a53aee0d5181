"""``virt-forward check``: what stops a forward from working, and how to fix it."""

import argparse
import json
import os
import sys
import textwrap
from collections.abc import Iterable
from typing import Any

from virt_forward import cli, text
from virt_forward.check import findings, guests, reading, steps
from virt_forward.check.facts import Facts, Invalid
from virt_forward.check.problem import Problem
from virt_forward.check.reading import Defined
from virt_forward.check.steps import Step
from virt_forward.cli import pending
from virt_forward.cli.listing import choose
from virt_forward.cli.progress import Progress
from virt_forward.config import Config
from virt_forward.errors import VirtForwardError
from virt_forward.libvirtd.api import DomainState
from virt_forward.metadata.domain import parse_domain
from virt_forward.state.config_file import load_config
from virt_forward.state.store import Store

DESCRIPTION = """\
Look for what stops a forward from working, and print how to fix it. A packet to each open
forward is sent into a copy of the host's rules, routes and interfaces in a network namespace
that ends with the command, and the guests are asked on their ports. Nothing on the host is changed.
With DOMAIN, each step from the declaration to the guest's answer is shown. The exit status is 1
if a problem is found."""


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "check",
        help="find what stops a forward from working",
        description=DESCRIPTION,
        epilog="examples:\n"
        "  virt-forward check                      the host and all guests\n"
        "  virt-forward check web                  one guest, step by step",
    )
    parser.add_argument(
        "domains",
        nargs="*",
        metavar="DOMAIN",
        help="name or UUID of a guest to explain; all are checked without",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, version 1")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print problems, and explain the wanted guests; return 1 if there is a problem, or no libvirt."""
    config = load_config()
    defined = _defined(options, config)
    chosen = choose(defined.domains, options.domains) if defined and options.domains else []
    with Progress(sys.stderr) as progress:
        facts = reading.read_facts(
            config, Store(), defined, frozenset(state.uuid for state in chosen), progress.tell
        )
        if defined:
            progress.tell("comparing the forwards with the live metadata")
            records = {guest.uuid: guest for guest in facts.guests}
            differences, refused = pending.find(defined.domains, records, config)
            invalid = (*facts.invalid, *(Invalid(error, "live") for error in refused))
            facts = facts._replace(differences=differences, invalid=invalid)
    wanted = {state.name for state in chosen} or None
    found = findings.problems(facts)
    shown = [item for item in found if wanted is None or item.domain is None or item.domain in wanted]
    explained = {state: _explain_guest(state, facts) for state in chosen}
    if options.json:
        print(json.dumps(_document(shown, facts, wanted, explained), indent=2))
    else:
        _print_steps(explained)
        _print(shown)
        if not shown and defined:
            _print_success(facts)
    return 1 if shown or not defined else 0


def _defined(options: argparse.Namespace, config: Config) -> Defined | None:
    try:
        return reading.defined(config)
    except VirtForwardError as error:
        if options.domains:
            raise
        cli.print_error(error)
        return None


def _explain_guest(state: DomainState, facts: Facts) -> list[Step]:
    try:
        return steps.explain_guest(parse_domain(state.xml), state.active, facts)
    except VirtForwardError as error:
        return [Step("declared", False, "; ".join(error.messages))]


def _document(
    problems: Iterable[Problem],
    facts: Facts,
    wanted: set[str] | None,
    explained: dict[DomainState, list[Step]],
) -> dict[str, Any]:
    by_uuid = {state.uuid: found for state, found in explained.items()}
    shown = []
    for guest in guests.running(facts.guests, wanted):
        entry = guests.as_json(guest)
        if guest.uuid in by_uuid:
            entry["steps"] = [step._asdict() | {"text": text.line(step.text)} for step in by_uuid[guest.uuid]]
        shown.append(entry)
    return {"version": 1, "problems": [*map(_as_json, problems)], "guests": shown}


def _as_json(item: Problem) -> dict[str, Any]:
    return item._asdict() | {"message": text.line(item.message), "fix": text.line(item.fix)}


def _print_steps(explained: dict[DomainState, list[Step]]) -> None:
    for state, found in explained.items():
        cli.print_line(f"{text.word(state.name)}:")
        for step in found:
            words = text.line(f"  {step.step:<8}  {'' if step.ok else 'NOT OK: '}{step.text}")
            print("\n".join(_wrapped(words)))


def _wrapped(words: str) -> list[str]:
    """Return a step as lines that fit a terminal, whole otherwise."""
    columns = os.get_terminal_size(sys.stdout.fileno()).columns if sys.stdout.isatty() else 0
    indent = " " * 12
    if columns < 2 * len(indent):
        return [words]
    return textwrap.wrap(
        words, columns, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _print(problems: list[Problem]) -> None:
    for item in problems:
        where = f"{text.word(item.domain)}: " if item.domain else ""
        cli.print_line(f"{item.severity}: {where}{item.message} [{item.id}]")
        cli.print_line(f"  fix: {item.fix}")


def _print_success(facts: Facts) -> None:
    forwards = len({(result.probe.uuid, result.probe.forward) for result in facts.report.results})
    followed = f"; packets to {forwards} forward{'s' * (forwards != 1)} arrive" if forwards else ""
    cli.print_line(f"no problems found{followed}")
