"""``virt-forward metrics``: counters and states in the OpenMetrics text format."""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple, get_args

from virt_forward import __version__, cli
from virt_forward.check import listing
from virt_forward.cli import report
from virt_forward.cli.listing import lines
from virt_forward.cli.openmetrics import Family, Labels, render
from virt_forward.config import Config
from virt_forward.errors import VirtForwardError
from virt_forward.host import nft
from virt_forward.host.new_files import replace
from virt_forward.libvirtd import api
from virt_forward.ruleset import table
from virt_forward.state.config_file import load_config
from virt_forward.state.store import Store

DESCRIPTION = """\
Print the counters and states of all forwards in the OpenMetrics text format, which node_exporter's
textfile collector reads. If libvirt is not reachable, print what is known of the table; the exit status
is 1."""

EXAMPLES = """\
examples:
  virt-forward metrics
  virt-forward metrics --output /var/lib/prometheus/node-exporter/virt-forward.prom"""


class Reading(NamedTuple):
    """What the metrics are made of. ``lines`` is None if libvirt is not reachable; ``changed`` is a time."""

    lines: list[report.Line] | None
    invalid: int = 0
    present: bool = False
    matches: bool = False
    revision: int | None = None
    changed: float | None = None


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "metrics",
        help="print counters and states for Prometheus (OpenMetrics)",
        description=DESCRIPTION,
        epilog=EXAMPLES,
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="write them to this file, which is replaced as a whole, not to stdout",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the metrics; return 1 if something could not be read, which is then left out."""
    errors: list[VirtForwardError] = []
    exposition = render(families(_read(errors)))
    if options.output is None:
        sys.stdout.write(exposition)
    else:
        replace(options.output, exposition)
    for error in errors:
        cli.print_error(error)
    return 1 if errors else 0


def _read(errors: list[VirtForwardError]) -> Reading:
    config, store = load_config(), Store()
    found: list[report.Line] | None = None
    try:
        with api.connection(config.uri) as opened:
            states = api.domains(opened)
        found = lines(states, errors)
        invalid = len(errors)
    except VirtForwardError as error:
        errors.append(error)
        invalid = 0
    present, matches = _compare(config, store)
    return Reading(found, invalid, present, matches, nft.revision(), _time_of_change(store))


def _compare(config: Config, store: Store) -> tuple[bool, bool]:
    """Return whether the table is in the kernel, and whether it is the one that follows from the state."""
    with store.open(create=False) as state:
        actual = nft.plain_listing()
        include = table.whole(state.guests().values(), config, 1)
    if actual is None or not include.paragraphs:
        return actual is not None, actual is None and not include.paragraphs
    expected = nft.scratch_listing(table.replacement(include))
    return True, not listing.differences(listing.parse(actual), listing.parse(expected))


def _time_of_change(store: Store) -> float | None:
    try:
        return os.stat(store.include_path).st_mtime
    except OSError:
        return None


def families(reading: Reading) -> Iterator[Family]:
    """Yield the metric families; those of forwards only if libvirt is reachable."""
    yield _one("virt_forward_version", "Version of virt-forward, as a label.", 1, (("version", __version__),))
    yield _one("virt_forward_libvirt_reachable", "Whether libvirt answers.", int(reading.lines is not None))
    if reading.lines is not None:
        yield from _of_forwards(reading.lines, reading.invalid)
    yield _one("virt_forward_table_present", "Whether the nft table is in the kernel.", int(reading.present))
    yield _one(
        "virt_forward_table_matches",
        "Whether the nft table is the one that follows from the records, or both are absent.",
        int(reading.matches),
    )
    if reading.revision is not None:
        yield _one("virt_forward_table_revision", "Revision of the nft table.", reading.revision)
    if reading.changed is not None:
        name = "virt_forward_table_changed_timestamp_seconds"
        yield _one(name, "When the nft table was last changed.", round(reading.changed, 3))._replace(
            unit="seconds"
        )


def _one(name: str, said: str, value: float, labels: Labels = ()) -> Family:
    return Family(name, "gauge", said, {labels: value})


def _of_forwards(found: list[report.Line], invalid: int) -> Iterator[Family]:
    states = Counter(line.state for line in found)
    running = {line.uuid: line.state != "inactive" for line in found}
    yield Family(
        "virt_forward_forwards",
        "gauge",
        "Declared forwards by state.",
        {(("state", state),): states[state] for state in get_args(report.State)},
    )
    yield Family(
        "virt_forward_guests",
        "gauge",
        "Guests that declare forwards.",
        {
            (("state", state),): sum(is_running == (state == "running") for is_running in running.values())
            for state in ("running", "inactive")
        },
    )
    yield _one("virt_forward_guests_invalid", "Guests whose forwards cannot be read.", invalid)
    active = {_labels(line): int(line.state == "active") for line in found}
    yield Family("virt_forward_forward_active", "gauge", "Whether a forward is in the kernel.", active)
    yield Family(
        "virt_forward_forward_packets",
        "counter",
        "Packets of a forward in both directions, since its guest's rules were last written.",
        _sums(found, "packets"),
    )
    yield Family(
        "virt_forward_forward_bytes",
        "counter",
        "Bytes of a forward in both directions, since its guest's rules were last written.",
        _sums(found, "bytes"),
        "bytes",
    )


def _sums(found: Iterable[report.Line], field: str) -> dict[Labels, int]:
    sums: Counter[Labels] = Counter()
    for line in found:
        if line.state != "inactive":
            sums[_labels(line)] += getattr(line, field)
    return sums


def _labels(line: report.Line) -> Labels:
    forward = line.forward
    limits = ("address", forward.address), ("dev", forward.dev), ("source", forward.source)
    return (
        ("domain", line.domain),
        ("uuid", line.uuid),
        ("proto", forward.proto),
        *((name, str(value)) for name, value in limits if value is not None),
        ("port", str(forward.span)),
        ("to", str(forward.guest_span)),
    )
