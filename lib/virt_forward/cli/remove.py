"""``virt-forward remove``: take forwards out of a guest's metadata, and close them."""

import argparse
from collections.abc import Sequence

from virt_forward.cli import change
from virt_forward.errors import UsageError
from virt_forward.metadata.edit import Document, Where
from virt_forward.metadata.spec import Spec, parse_spec

EXAMPLES = """\
examples:
  virt-forward remove web 8080:80         what was added by these words
  virt-forward remove web 8080            the host's side is enough
  virt-forward remove web 5005/udp        one port of a range
  virt-forward remove web --all           every forward
  virt-forward remove clone --all --config
"""


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "remove",
        help="remove forwards of a guest",
        description="Remove forwards from the metadata of a guest, and close them if it runs. SPEC is what "
        "add takes, or its host part alone; of a range, only the ports that it names are removed. --dev, "
        "--source and --mac say which one is meant of several with the same port. Without --live and "
        "--config, the running guest is changed, and its configuration if it has one.",
        epilog=EXAMPLES,
    )
    change.add_arguments(parser, "*")
    parser.add_argument("--all", action="store_true", help="remove every forward")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Remove the forwards, and print them; return 1 if the kernel does not follow."""
    if options.all == bool(options.specs):
        raise UsageError("either SPEC or --all says what to remove", "as in: virt-forward remove web 8080")
    where = change.where(options)
    if options.all and where != Where():
        raise UsageError("--all removes every forward", "leave --dev, --source and --mac out, or name a SPEC")
    specs = [parse_spec(word) for word in options.specs]

    def edit(documents: Sequence[Document]) -> list[change.Made]:
        if options.all:
            return [change.Made(removed=tuple(document.remove_all())) for document in documents]
        return _remove_from(documents, specs, where)

    return change.run(options, edit)


def _remove_from(documents: Sequence[Document], specs: Sequence[Spec], where: Where) -> list[change.Made]:
    """Remove what SPECs name from every document that has it. Raises NotDeclaredError if none has it."""
    removed = [document.remove(specs, where) for document in documents]
    for spec in specs:
        if all(spec in each.absent for each in removed):
            raise removed[0].absent[spec]
    return [change.Made(removed=each.forwards) for each in removed]
