"""What ``add`` and ``remove`` have in common: the metadata is edited, set, and applied."""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from virt_forward import cli, ports, portspec, text
from virt_forward.cli import listing, precheck, report
from virt_forward.errors import VirtForwardError
from virt_forward.host import nft
from virt_forward.libvirtd import api, metadata
from virt_forward.libvirtd.metadata import Part, Target
from virt_forward.metadata import values
from virt_forward.metadata.edit import Document, Where
from virt_forward.model import Forward
from virt_forward.reconcile.resync import sync
from virt_forward.state.config_file import load_config
from virt_forward.state.edit_lock import edit_lock
from virt_forward.state.store import Store

TRIES = 3
"""How often a running guest is synchronised until the kernel has what was asked for."""


class Made(NamedTuple):
    """What an edit of one definition has added and removed, and what was declared already."""

    added: tuple[Forward, ...] = ()
    removed: tuple[Forward, ...] = ()
    unchanged: tuple[Forward, ...] = ()


class Change(NamedTuple):
    """The edited documents of a domain by definition, and what the edit has made of each."""

    target: Target
    documents: Mapping[Part, Document]
    made: Mapping[Part, Made]

    @property
    def changed(self) -> dict[Part, Document]:
        """The definitions that the edit has changed."""
        return {part: document for part, document in self.documents.items() if document.changed}

    def all(self, field: str) -> list[Forward]:
        """Return what a field of ``Made`` has in any definition, each forward once."""
        found = (forward for made in self.made.values() for forward in getattr(made, field))
        return [*dict.fromkeys(found)]


class Result(NamedTuple):
    """The lines of a domain after a change, and what went wrong when the kernel was to follow."""

    lines: list[report.Line]
    errors: list[VirtForwardError]


Edit = Callable[[Sequence[Document]], Sequence[Made]]
"""Edits the definitions of one domain, and returns what it has made of each."""


def add_arguments(parser: argparse.ArgumentParser, specs: str) -> None:
    """Add the arguments of both commands; ``specs`` is the number of SPECs as argparse has it."""
    parser.add_argument("domain", metavar="DOMAIN", help="name, UUID or id of the guest")
    parser.add_argument(
        "specs", nargs=specs, metavar="SPEC", help="[ADDRESS:]PORT[-END][:GUESTPORT[-END]][/PROTO]"
    )
    parser.add_argument("--dev", type=_value(values.dev), metavar="IF", help="the host's interface")
    parser.add_argument(
        "--source", type=_value(values.source), metavar="CIDR", help="the address or network that may connect"
    )
    parser.add_argument("--mac", type=_value(values.mac), metavar="MAC", help="the guest's NIC")
    parser.add_argument("--live", action="store_true", help="change the running guest")
    parser.add_argument("--config", action="store_true", help="change the configuration, for the next start")
    parser.add_argument("--dry-run", action="store_true", help="print the metadata that would be set")
    parser.add_argument("--json", action="store_true", help="print JSON, version 1")


def _value(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return what argparse calls to convert a value; what ``parse`` says of a wrong one is printed."""

    def convert(word: str) -> Any:
        try:
            return parse(word)
        except values.Bad as error:
            raise argparse.ArgumentTypeError(f"{text.quote(word)} is wrong: {error}") from None

    return convert


def where(options: argparse.Namespace) -> Where:
    """Return what narrows the forwards of a command line."""
    return Where(options.dev, options.source, options.mac)


def run(options: argparse.Namespace, edit: Edit) -> int:
    """Edit the metadata of a domain, make the kernel follow, and print the result; return the exit status.

    Nothing is changed if anything speaks against it; VirtForwardError says what.
    """
    config = load_config()
    with edit_lock(Store()):
        with api.connection(config.uri) as opened:
            change = _edit_copy(options, opened, edit)
            if change.all("added"):
                precheck.check(change.all("added"), change.changed.values(), opened, change.target, config)
            if not options.dry_run:
                _write(change)
        if options.dry_run:
            return _print_dry_run(options, change)
        result = _followed(change) if "live" in change.documents else _declare(change)
    return _print_result(options, change, result)


def _edit_copy(options: argparse.Namespace, opened: Any, edit: Edit) -> Change:
    (state,) = listing.choose(api.domains(opened), [options.domain])
    target = metadata.target(opened, state.uuid)
    parts = metadata.parts(target, live=options.live, config=options.config)
    documents = {part: Document(metadata.read(target, part)) for part in parts}
    made = edit([*documents.values()])
    return Change(target, documents, dict(zip(documents, made, strict=True)))


def _write(change: Change) -> None:
    if "live" in change.changed:
        nft.check()
    before = {part: document.before for part, document in change.changed.items()}
    after = {part: document.submission() for part, document in change.changed.items()}
    metadata.write(change.target, after, before)


def _followed(change: Change) -> Result:
    """Make the kernel follow, and return what came of it, an error that ended it included."""
    try:
        return _apply(change)
    except VirtForwardError as error:
        if not change.changed:
            raise
        told = "the metadata is set, but the kernel does not follow", *error.messages
        hints = filter(None, (error.hint, "virt-forward sync makes it follow"))
        return Result([], [VirtForwardError(told, "; ".join(hints))])


def _apply(change: Change) -> Result:
    """Make the kernel follow the running guest, and return its lines as ``list`` has them then."""
    uuid = change.target.uuid
    for _ in range(TRIES):
        errors = [*sync(only=[uuid]).errors]
        with api.connection(load_config().uri) as opened:
            states = api.domains(opened, [uuid])
        lines = listing.lines(states, errors)
        # The service saw an earlier edit, and its change of the guest came in between: it was skipped here.
        if errors or not _is_behind(lines, change):
            break
    return Result(lines, errors)


def _is_behind(lines: Sequence[report.Line], change: Change) -> bool:
    """Tell whether the kernel has not followed a change, by the lines of the guest."""
    declared = frozenset(change.documents["live"].forwards())
    missing = [line for line in lines if line.state == "missing"]
    undeclared = [line for line in lines if line.state == "active" and line.forward not in declared]
    return bool(_about(missing, change.all("added")) or _about(undeclared, change.all("removed")))


def _declare(change: Change) -> Result:
    """Return the lines of a configuration that is not in force now; of a running guest, it is not listed."""
    if change.target.active:
        return Result([], [])
    domain = change.documents["config"].domain()
    return Result(report.lines(domain, False, None, report.HostState({})), [])


def _about(lines: Sequence[report.Line], forwards: Iterable[Forward]) -> list[report.Line]:
    """Return the lines that have packets of some forwards."""
    found = frozenset(ports.colliding((line.forward for line in lines), forwards))
    return [line for line in lines if line.forward in found]


def _print_dry_run(options: argparse.Namespace, change: Change) -> int:
    if options.json:
        texts = {part: document.text() or None for part, document in change.documents.items()}
        print(json.dumps({**_document(change), "metadata": texts}, indent=2))
        return 0
    shown = {document.text(): part for part, document in change.documents.items()}
    for words, part in shown.items():
        if len(shown) > 1:
            print(f"<!-- {part} -->")
        print(words or "<!-- the element would be removed -->")
    return 0


def _print_result(options: argparse.Namespace, change: Change, result: Result) -> int:
    asked = [*change.all("added"), *change.all("unchanged")]
    lines = _about(result.lines, asked)
    if options.json:
        rows = [report.as_json(line) for line in lines]
        print(json.dumps({**_document(change), "forwards": rows}, indent=2))
    else:
        _print_words(change)
        if lines:
            listing.print_table(lines)
        elif change.changed and change.target.active and "live" not in change.documents:
            _print_added(change)
    _warn_of_saved_state(change)
    for error in result.errors:
        cli.print_error(error)
    return 1 if result.errors or any(line.state in ("conflict", "missing") for line in lines) else 0


def _warn_of_saved_state(change: Change) -> None:
    name = text.word(change.target.name)
    if change.target.saved and "config" in change.changed:
        cli.print_line(
            f"virt-forward: warning: {name} has a managed save image, whose metadata the next start uses; "
            f"virsh managedsave-remove {name} discards it",
            sys.stderr,
        )


def _document(change: Change) -> dict[str, Any]:
    """Return what JSON says of a change, whether it was made or not."""
    words = {
        field: [portspec.render(forward) for forward in change.all(field)]
        for field in ("added", "removed", "unchanged")
    }
    who = {"domain": change.target.name, "uuid": change.target.uuid}
    return {"version": 1, **who, "changed": [*change.changed], **words}


def _print_words(change: Change) -> None:
    name = text.word(change.target.name)
    if not any(map(change.all, Made._fields)):
        cli.print_line(f"{name}: no forwards are declared")
    for forward in change.all("removed"):
        cli.print_line(f"{name}: removed {portspec.described(forward)}")
    for forward in change.all("unchanged"):
        if forward not in change.all("added"):
            cli.print_line(f"{name}: {portspec.described(forward)} is declared already")


def _print_added(change: Change) -> None:
    """Say what was added to the configuration of a running guest, which ``list`` does not show."""
    name = text.word(change.target.name)
    for forward in change.all("added"):
        cli.print_line(f"{name}: added {portspec.described(forward)}")
    cli.print_line(f"{name} is running: the change is in force from its next start")
