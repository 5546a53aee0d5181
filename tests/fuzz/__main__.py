"""The command ``tests/fuzz/run``."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

from fuzz.engine import Failure, Outcome, Target, check, fuzz
from fuzz.targets import TARGETS

FOUND = Path(__file__).parent / "found"
"""Where failing inputs are written, for --input to run again."""

DESCRIPTION = """\
Give random input to every parser of text and bytes that others write: frames, leases, configuration,
XML, our own state, and what the kernel and other programs print. An input that reaches lines in an
order not seen before is kept and changed further. Prints a table; exits 1 where a parser raised
what it does not document, returned what its types do not promise, or did not end.
"""


def options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "tests/fuzz/run", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "seconds", nargs="?", type=float, default=300.0, help="for all targets together (default: 300)"
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=[target.name for target in TARGETS],
        metavar="TARGET",
        help="fuzz this one alone; may be given several times",
    )
    parser.add_argument("--seed", type=int, default=1, help="start another sequence of inputs (default: 1)")
    parser.add_argument(
        "--inputs", type=int, metavar="N", help="run N inputs a target, however long it takes"
    )
    parser.add_argument(
        "--input", type=Path, metavar="FILE", help="run one input, of the target given by --only"
    )
    parser.add_argument("--list", action="store_true", help="print the names of the targets")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    asked = options(arguments)
    targets = [target for target in TARGETS if not asked.only or target.name in asked.only]
    if asked.list:
        print(*(target.name for target in targets), sep="\n")
        return 0
    if asked.input:
        return again(targets, asked.input.read_bytes())
    print(f"{'target':<17}{'inputs':>9}{'kept':>7}{'lines':>7}{'edges':>7}{'failures':>10}")
    outcomes = []
    for target in targets:
        outcomes.append(fuzz(target, asked.seed, limit(asked.inputs, asked.seconds / len(targets))))
        print(row(outcomes[-1]), flush=True)
    print(row(total(outcomes)))
    for outcome in outcomes:
        for failure in outcome.failures:
            tell(outcome.name, failure)
    return 1 if any(outcome.failures for outcome in outcomes) else 0


def limit(inputs: int | None, seconds: float) -> Callable[[int], bool]:
    until = time.monotonic() + seconds
    return lambda count: time.monotonic() < until if inputs is None else count < inputs


def row(outcome: Outcome) -> str:
    name, *counts, failures = outcome
    return f"{name:<17}{counts[0]:>9}{counts[1]:>7}{counts[2]:>7}{counts[3]:>7}{len(failures):>10}"


def total(outcomes: Sequence[Outcome]) -> Outcome:
    """Add up outcomes; a line that two targets reach counts twice."""
    return Outcome(
        "total",
        sum(outcome.inputs for outcome in outcomes),
        sum(outcome.kept for outcome in outcomes),
        sum(outcome.lines for outcome in outcomes),
        sum(outcome.edges for outcome in outcomes),
        tuple(failure for outcome in outcomes for failure in outcome.failures),
    )


def tell(name: str, failure: Failure) -> None:
    FOUND.mkdir(exist_ok=True)
    path = FOUND / f"{name}-{sha256(failure.data).hexdigest()[:8]}"
    path.write_bytes(failure.data)
    print(f"\n{name}: {failure.place}\n  {failure.data[:200]!r}", file=sys.stderr)
    print(f"  run it again: tests/fuzz/run --only {name} --input {path}", file=sys.stderr)


def again(targets: Sequence[Target], data: bytes) -> int:
    failures = [failure for target in targets if (failure := check(target, data))]
    for failure in failures:
        print(failure.report, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
