"""Each step of each event made the last one, or a failing one; then what libvirt or a person does next.

VIRT_FORWARD_TEST_THOROUGH=1 in the environment goes on in every way after every step, and knows more events.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from netns.faults.edges import Break, Outcome, Steps, killed, refused
from netns.faults.testbed import FaultTestbed

pytestmark = pytest.mark.root
FULL = refused(errno.ENOSPC)


@dataclass(frozen=True)
class Case:
    """An event, the guests that run before it, and after it where it did what it should."""

    name: str
    operation: str
    before: tuple[str, ...]
    prepared: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    flushed: bool = False
    config: str = ""

    def __str__(self) -> str:
        return "-".join(filter(None, (self.operation, self.name, self.config.partition(" ")[0])))

    @property
    def kept(self) -> tuple[str, ...]:
        """The guests that lose and win nothing at any moment."""
        return tuple(name for name in self.gone if name != "twin" and not self.flushed)

    @property
    def gone(self) -> tuple[str, ...]:
        """The guests that run where this one came to nothing."""
        return tuple(name for name in self.before if name != self.name)


OTHERS = ("web", "db")
ALL = (*OTHERS, "mail")
CASES = (
    Case("mail", "prepare", OTHERS, after=OTHERS),
    Case("mail", "restore", OTHERS, after=OTHERS),
    Case("mail", "started", OTHERS, prepared=("mail",), after=ALL),
    Case("mail", "reconnect", ALL, after=ALL, flushed=True),
    Case("mail", "stopped", ALL, after=OTHERS),
    # What one guest leaves, another was waiting for.
    Case("web", "stopped", ("web", "db", "twin"), after=("db", "twin")),
)
MORE_CASES = (
    Case("mail", "started", OTHERS, prepared=("mail",), after=ALL, config="localhost = true"),
    Case("mail", "stopped", ALL, after=OTHERS, config="localhost = true"),
    Case("mail", "stopped", ("mail",)),
    Case("mail", "release", ALL, after=OTHERS),
)
THOROUGH = bool(os.environ.get("VIRT_FORWARD_TEST_THOROUGH"))


@pytest.fixture(params=CASES + (MORE_CASES if THOROUGH else ()), ids=str)
def case(request: pytest.FixtureRequest, testbed: FaultTestbed) -> Iterator[Case]:
    """A host on which the event is about to come."""
    made: Case = request.param
    for lab in (testbed.lab, testbed.reference):
        lab.configure(f'[forward]\n{made.config}\n[policy]\non_error = "warn"\n')
    testbed.wanted.clear()
    testbed.start(*made.before)
    for name in made.prepared:
        assert testbed.event(name, "prepare").status == 0
    testbed.before = testbed.saved()
    yield made
    testbed.reference.config.unlink()


def _again(testbed: FaultTestbed, case: Case) -> None:
    testbed.restore()
    if case.flushed:
        testbed.flush()
    else:
        testbed.lab.host.run(["nft", "-f", testbed.run_dir / "ruleset.nft"])


def broken(
    testbed: FaultTestbed, case: Case, how: Break, *, forever: bool | None = False
) -> Iterator[tuple[int, Outcome]]:
    """Run the event again and again, with the next step broken each time, until none is left to break."""
    for last in range(1, 60):
        _again(testbed, case)
        on = last % 2 == 0 if forever is None else forever
        done = testbed.event(case.name, case.operation, Steps(last, how=how, forever=on))
        if len(done.steps) < last:
            assert last > 3, f"there was next to nothing to break: {done}"
            return
        yield last, done
    pytest.fail("there is no end of steps")


@pytest.mark.parametrize("way", range(2 if THOROUGH else 1))
def test_killed_at_any_step(testbed: FaultTestbed, case: Case, way: int) -> None:
    """Sooner or later libvirt goes on, or a person calls sync; by default every other time."""
    for last, done in broken(testbed, case, killed):
        why = f"killed before {done.steps[-1]} ({last})"
        assert done.died, why
        testbed.assert_kept(*case.kept, why=why)
        go_on = (libvirt_goes_on, somebody_syncs)[way if THOROUGH else last % 2]
        go_on(testbed, case, why)


def libvirt_goes_on(testbed: FaultTestbed, case: Case, why: str) -> None:
    """A guest whose hook was killed is ended by libvirt; a stopped one is released. Others come and go."""
    testbed.start("late")
    testbed.stop(case.name)
    for name in case.gone if case.flushed else ():
        assert testbed.event(name, "reconnect").status == 0
    testbed.assert_right(*case.gone, "late", why=why)


def somebody_syncs(testbed: FaultTestbed, case: Case, why: str) -> None:
    running = case.gone if case.operation in ("prepare", "restore", "started") else case.after
    done = testbed.sync(*running)
    assert done.status == 0, done
    if "twin" in running:
        testbed.sync(*running)  # see test_ports_of_a_dead_guest_are_free_at_once
    testbed.assert_right(*running, why=f"{why}, then {done}")


@pytest.mark.parametrize("forever", [False, True] if THOROUGH else [None], ids=str)
def test_failing_step_ends_no_guest_and_is_told(
    testbed: FaultTestbed, case: Case, forever: bool | None
) -> None:
    """One step fails, or all do from then on; by default one or the other in turn."""
    for last, done in broken(testbed, case, FULL, forever=forever):
        why = f"failed at {done.steps[last - 1]} ({last}): {done}"
        assert done.status == 0 or case.operation == "prepare", why
        assert done.out == "", why
        assert done.reasons, f"nobody was told\n{why}"
        assert done.status == 0 or done.reasons.split(": ", 1)[1].splitlines()[0] in done.err, why
        testbed.assert_kept(*case.kept, why=why)
        running = case.after
        if case.operation in ("stopped", "prepare", "restore"):
            testbed.stop(case.name)
            running = case.gone
        synced = testbed.sync(*running)
        assert synced.status == 0, f"{synced}\n{why}"
        testbed.assert_right(*running, why=why)


def test_ports_of_a_dead_guest_are_free_at_once(testbed: FaultTestbed) -> None:
    """Nobody told us that web ended; twin waits for its port."""
    testbed.lab.configure('[policy]\non_error = "warn"\n')
    testbed.start("web", "twin")
    testbed.sync("twin")
    testbed.assert_right("twin")
