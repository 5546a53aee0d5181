"""``virt-forward init``: a bridge for guests by systemd-networkd, and the lines for the person's ruleset."""

import argparse
import os

from virt_forward import cli, text
from virt_forward.errors import VirtForwardError
from virt_forward.host import setup_facts
from virt_forward.host.new_files import create_all
from virt_forward.host.process import run as run_program
from virt_forward.setup import options as setup_options
from virt_forward.setup.facts import SetupFacts
from virt_forward.setup.options import Options, Plan
from virt_forward.setup.plan import plan

DESCRIPTION = """\
Write systemd-networkd's files for a bridge that guests are attached to, and print the lines that your
nftables ruleset needs. By default guests are behind this host by NAT: the bridge is their gateway and their
DHCP server. With --lan, a wired NIC is put into the bridge, and guests are on the LAN.

No file that exists is changed, and nothing takes effect until you run the commands that are printed, or say
--apply."""

EXAMPLES = """\
examples:
  virt-forward init --dry-run                     what it would write
  virt-forward init                               a bridge vmbr0, on a free network
  virt-forward init --bridge vmbr1 --subnet 10.20.0.0/24 --ipv6 none --uplink wlan0
  virt-forward init --lan enp1s0 --dry-run        the second layout: guests on the LAN"""


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "init",
        help="write a bridge for guests, and print the lines for your ruleset",
        description=DESCRIPTION,
        epilog=EXAMPLES,
    )
    parser.add_argument(
        "--bridge", metavar="NAME", help="name of the bridge; the first free of vmbr0, vmbr1, …"
    )
    parser.add_argument(
        "--mac", metavar="MAC", help="MAC address of the bridge; a random one, or that of --lan"
    )
    parser.add_argument("--subnet", metavar="CIDR", help="IPv4 network of the guests; a free private one")
    parser.add_argument(
        "--ipv6",
        metavar="CIDR|none",
        help="IPv6 network of the guests, a /64, or none; a random unique local one",
    )
    parser.add_argument(
        "--uplink",
        metavar="IF",
        nargs="+",
        action="extend",
        default=[],
        help="interfaces by which guests reach the outside; those with a default route",
    )
    parser.add_argument(
        "--dns",
        metavar="IP",
        nargs="+",
        action="extend",
        default=[],
        help="DNS servers of the guests; the host's",
    )
    parser.add_argument("--lan", metavar="NIC", help="put this wired NIC into the bridge, without NAT")
    parser.add_argument(
        "--yes", action="store_true", help="with --lan, also if it is the only way to the network"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the files and write nothing")
    parser.add_argument(
        "--apply", action="store_true", help="run the commands that make the files take effect"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the files, or print them; return 1 if a command of --apply failed."""
    facts = setup_facts.read_facts()
    planned = plan(_read_options(options), facts)
    if options.dry_run:
        for file in planned.files:
            print(f"==> {file.path}\n{file.text}")
        _print_rest(planned, facts, planned.commands)
        return 0
    _need_new(planned)
    create_all(planned.files)
    for file in planned.files:
        print(f"wrote {file.path}")
    done = _apply(planned) if options.apply else 0
    _print_rest(planned, facts, planned.commands[done:])
    return 1 if options.apply and done < len(planned.commands) else 0


def _read_options(options: argparse.Namespace) -> Options:
    given = options
    return Options(
        bridge=None if given.bridge is None else setup_options.bridge_name(given.bridge),
        mac=None if given.mac is None else setup_options.mac(given.mac),
        subnet=None if given.subnet is None else setup_options.subnet(given.subnet),
        ipv6=None if given.ipv6 is None else setup_options.ipv6(given.ipv6),
        uplinks=tuple(dict.fromkeys(setup_options.device("--uplink", name) for name in given.uplink)),
        dns=tuple(map(setup_options.nameserver, given.dns)),
        lan=None if given.lan is None else setup_options.device("--lan", given.lan),
        yes=given.yes or given.dry_run,
    )


def _need_new(planned: Plan) -> None:
    there = [file.path for file in planned.files if os.path.lexists(file.path)]
    if there:
        raise VirtForwardError(
            [f"{path} exists; it is not overwritten" for path in there],
            "choose another name with --bridge, or remove it if nothing needs it",
        )


def _apply(planned: Plan) -> int:
    """Run the commands until one fails, and return how many did not."""
    for number, command in enumerate(planned.commands):
        result = run_program(command, timeout=60)
        if result.status:
            words = text.output(result.stderr or result.stdout) or f"exit status {result.status}"
            cli.print_error(VirtForwardError(f"{' '.join(command)}: {words}"))
            return number
        print(f"ran {' '.join(command)}")
    return len(planned.commands)


def _print_rest(planned: Plan, facts: SetupFacts, commands: tuple[tuple[str, ...], ...]) -> None:
    if commands:
        print("\nMake it take effect:")
        for command in commands:
            print(f"    {' '.join(command)}")
    if planned.ruleset:
        print(f"\nAdd to {facts.nftables_conf}, after what is there:\n")
        print("".join(f"    {line}\n" for line in planned.ruleset.splitlines()))
    for note in planned.notes:
        cli.print_line(f"note: {note}")
    print(f"\nAttach guests with <interface type='bridge'><source bridge='{planned.bridge}'/></interface>")
