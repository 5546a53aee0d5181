"""What ``add`` and ``remove`` have in common: the metadata is edited, set, and applied."""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from virt_forward import cli, ports, portspec, text
from virt_forward.cli import listing, precheck, report
from virt_forward.errors import VirtForwardError
from virt_forward.libvirtd import api, metadata
from virt_forward.libvirtd.metadata import Part, Target
from virt_forward.metadata import values
from virt_forward.metadata.edit import Document, Where
from virt_forward.model import Forward
from virt_forward.reconcile.resync import sync
from virt_forward.state.config_file import load_config


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

    def all(self, field: str) -> list[Forward]:
        """Return what a field of ``Made`` has in any definition, each forward once."""
        found = (forward for made in self.made.values() for forward in getattr(made, field))
        return [*dict.fromkeys(found)]


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
    with api.connection(config.uri) as opened:
        (state,) = listing.choose(api.domains(opened), [options.domain])
        target = metadata.target(opened, state.uuid)
        change = _edited(target, metadata.parts(target, live=options.live, config=options.config), edit)
        documents = {part: document for part, document in change.documents.items() if document.changed}
        if change.all("added"):
            precheck.check(change.all("added"), documents.values(), opened, target, config)
        if not options.dry_run:
            before = {part: document.before for part, document in documents.items()}
            metadata.write(target, {part: item.submission() for part, item in documents.items()}, before)
    if options.dry_run:
        _print_dry_run(options, change)
        return 0
    return _print_result(options, change, _errors(change))


def _edited(target: Target, parts: tuple[Part, ...], edit: Edit) -> Change:
    documents = {part: Document(metadata.read(target, part)) for part in parts}
    made = edit([*documents.values()])
    return Change(target, documents, dict(zip(documents, made, strict=True)))


def _errors(change: Change) -> tuple[VirtForwardError, ...]:
    """Make the kernel follow a changed running guest; return what went wrong with it."""
    return sync(only=[change.target.uuid]).errors if "live" in change.documents else ()


def _print_dry_run(options: argparse.Namespace, change: Change) -> None:
    if options.json:
        texts = {part: document.text() or None for part, document in change.documents.items()}
        print(json.dumps({**_document(change), "metadata": texts}, indent=2))
        return
    shown = {document.text(): part for part, document in change.documents.items()}
    for words, part in shown.items():
        if len(shown) > 1:
            print(f"<!-- {part} -->")
        print(words or "<!-- the element would be removed -->")


def _print_result(options: argparse.Namespace, change: Change, failures: tuple[VirtForwardError, ...]) -> int:
    errors = [*failures]
    lines = _lines(change, errors)
    if options.json:
        rows = [report.as_json(line) for line in lines]
        print(json.dumps({**_document(change), "forwards": rows}, indent=2))
    else:
        _print_words(change)
        if lines:
            listing.print_table(lines)
    for error in errors:
        cli.print_error(error)
    return 1 if errors or any(line.state in ("conflict", "missing") for line in lines) else 0


def _document(change: Change) -> dict[str, Any]:
    """Return what JSON says of a change, whether it was made or not."""
    words = {
        field: [portspec.render(forward) for forward in change.all(field)]
        for field in ("added", "removed", "unchanged")
    }
    changed = [part for part, document in change.documents.items() if document.changed]
    who = {"domain": change.target.name, "uuid": change.target.uuid}
    return {"version": 1, **who, "changed": changed, **words}


def _print_words(change: Change) -> None:
    name = text.word(change.target.name)
    for forward in change.all("removed"):
        cli.print_line(f"{name}: removed {_words(forward)}")
    for forward in change.all("unchanged"):
        if forward not in change.all("added"):
            cli.print_line(f"{name}: {_words(forward)} is declared already")


def _words(forward: Forward) -> str:
    return " ".join(filter(None, (portspec.render(forward), portspec.qualifiers(forward))))


def _lines(change: Change, errors: list[VirtForwardError]) -> list[report.Line]:
    """Return the lines of the forwards that were to be added, as ``list`` has them now."""
    asked = [*change.all("added"), *change.all("unchanged")]
    if not asked:
        return []
    if "live" in change.documents:
        with api.connection(load_config().uri) as opened:
            lines = listing.lines(api.domains(opened, [change.target.uuid]), errors)
    else:
        domain = change.documents["config"].domain()
        lines = report.lines(domain, False, None, report.HostState({}))
    return [line for line in lines if any(ports.collide(line.forward, forward) for forward in asked)]
