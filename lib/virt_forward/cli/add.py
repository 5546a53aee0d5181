"""``virt-forward add``: declare forwards in a guest's metadata, and open them."""

import argparse

from virt_forward import portspec
from virt_forward.cli import change
from virt_forward.errors import UsageError
from virt_forward.metadata.edit import Document
from virt_forward.metadata.spec import parse_spec
from virt_forward.model import Forward

EXAMPLES = """\
examples:
  virt-forward add web 8080:80            port 8080 of the host leads to port 80 of the guest web
  virt-forward add web 443 53/udp         several at once; all of them, or none
  virt-forward add web 5000-5020:6000-6020/udp
  virt-forward add web 203.0.113.7:25 --source 192.0.2.0/24
  virt-forward add web '[2001:db8::1]:443' --dev enp1s0
  virt-forward add web 8443:443 --config  from the next start on
"""


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "add",
        help="add forwards to a guest",
        description="Declare forwards in the metadata of a guest. Those of a running guest work when the "
        "command returns, or it says what they wait for. Without --live and --config, the running guest is "
        "changed, and its configuration if it has one, so that the next start has the forwards, too. "
        "If anything speaks against one of them, nothing is changed.",
        epilog=EXAMPLES,
    )
    change.add_arguments(parser, "+")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Add the forwards, and print them as ``list`` does; return 1 if one of them is not in force."""
    wanted = list(dict.fromkeys(_forward(word, options) for word in options.specs))

    return change.run(options, lambda documents: [_add_to(document, wanted) for document in documents])


def _add_to(document: Document, wanted: list[Forward]) -> change.Made:
    added = dict.fromkeys(document.add(wanted))
    return change.Made(tuple(added), unchanged=tuple(forward for forward in wanted if forward not in added))


def _forward(word: str, options: argparse.Namespace) -> Forward:
    forward = parse_spec(word).forward(*change.where(options))
    if forward.address and forward.source and forward.address.version != forward.source.version:
        raise UsageError(
            f"{portspec.render(forward)} listens on an IPv{forward.address.version} address, "
            f"and {forward.source} is IPv{forward.source.version}",
            "give both of one family",
        )
    return forward
