"""A target fuzzed: inputs that reach something new are kept and changed again.

Why not a library. atheris (libFuzzer) has no wheels for aarch64, where it would have to be built
with clang; the licence of HypoFuzz allows non-commercial use alone; hypothesis by itself is not guided
by coverage. From the same samples in the same time (10 s, Python 3.11) edges were reached as follows:

               this   atheris   hypothesis
domain         1148      1143         1089
guest-record    657       648          622
config          223       222          217
networkd        112       112          112
dhcp             26        26           26
netlink          23        23           23

Without samples atheris finds more in binary formats (netlink: 19 against 7 and 4), so each target
needs samples that are good, and every kind of message that a parser knows needs one.
"""

from __future__ import annotations

import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from types import FrameType
from typing import NamedTuple

from fuzz.coverage import PACKAGE, Coverage
from fuzz.mutate import mutated, words_of

TESTS = str(Path(__file__).parents[1])

CPU_SECONDS = 20.0
"""An input that takes more has found a loop without end; the slowest usual ones take milliseconds."""

TRIES = 3000
"""How often a failing input is cut at most. Hangs are not cut: each try would take its time."""

ENOUGH = 5
"""Different failures after which a target is given up."""


class Target(NamedTuple):
    """A parser with what has to be true of it: ``run`` raises where it is not."""

    name: str
    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]


class Hang(Exception):  # noqa: N818 - named like KeyboardInterrupt
    """An input took more processor time than any should."""


class Failure(NamedTuple):
    """The shortest input found that fails in one place, and what is raised there."""

    data: bytes
    place: str
    report: str


class Outcome(NamedTuple):
    """What came of fuzzing one target."""

    name: str
    inputs: int
    kept: int
    lines: int
    edges: int
    failures: tuple[Failure, ...]


def fuzz(target: Target, seed: int, more: Callable[[int], bool]) -> Outcome:
    """Fuzz a target while ``more`` says so of the number of inputs run; all seeds are run in any case.

    The inputs depend on ``seed`` alone.
    """
    chance, coverage = Random(f"{seed} {target.name}"), Coverage()
    pool, words = list(target.seeds), words_of(target.seeds)
    failures: dict[str, Failure] = {}
    count = 0
    for data in _inputs(chance, target.seeds, pool, words):
        if (count >= len(target.seeds) and not more(count)) or len(failures) == ENOUGH:
            break
        count += 1
        try:
            with limited():
                if coverage.run(target.run, data) and count > len(target.seeds):
                    pool.append(data)
        except Exception as error:  # whatever it is, it is what we look for
            place = place_of(error)
            if place not in failures:
                failures[place] = _shortest(target, data, place)
    return Outcome(
        target.name, count, len(pool), coverage.lines, len(coverage.edges), tuple(failures.values())
    )


def _inputs(
    chance: Random, seeds: Sequence[bytes], pool: list[bytes], words: Sequence[bytes]
) -> Iterator[bytes]:
    yield from seeds
    while True:
        # What was found last has been changed least, and what is short is quick to run.
        among = pool[-8:] if chance.randrange(3) == 0 else pool
        yield mutated(chance, min(chance.choice(among), chance.choice(among), key=len), pool, words)


def place_of(error: Exception) -> str:
    """Return the kind of an error, and the last line of the package or of a target that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if frame.filename.startswith((PACKAGE, TESTS))]
    return (
        f"{type(error).__name__} at {ours[-1].filename}:{ours[-1].lineno}" if ours else type(error).__name__
    )


def check(target: Target, data: bytes) -> Failure | None:
    """Return how a target fails with one input, or None."""
    try:
        with limited():
            target.run(data)
    except Exception as error:
        return Failure(data, place_of(error), "".join(traceback.format_exception(error)))
    return None


def _shortest(target: Target, data: bytes, place: str) -> Failure:
    best = check(target, data) or Failure(data, place, f"{place}, but not a second time")
    size, tries = len(data) // 2, 0 if place.startswith("Hang") else TRIES
    while size and tries > 0:
        at = 0
        while at < len(best.data) and tries > 0:
            tries -= 1
            found = check(target, best.data[:at] + best.data[at + size :])
            if found and found.place == place:
                best = found
            else:
                at += size
        size //= 2
    return best


@contextmanager
def limited(seconds: float = CPU_SECONDS) -> Iterator[None]:
    """Raise Hang in a block that takes more than some seconds of processor time."""

    def expired(_signal: int, _frame: FrameType | None) -> None:
        raise Hang(f"no end after {seconds:g} seconds of processor time")

    before = signal.signal(signal.SIGVTALRM, expired)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
