"""Any history of hook events, killed ones included, ends in the table that a fresh load makes."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from support.fake_host import FakeHost, fake_host
from support.xml import host_ip, port_forward
from unit.build import forward
from unit.expected_table import guest, holds, include_loads_the_same
from virt_forward.model import Guest


class Step(NamedTuple):
    """An event of a guest at one of its addresses; ``harm`` is done to the table before it.

    The hook is killed before its step ``killed``, where there is one.
    """

    name: str
    running: bool
    address: int = 0
    harm: bool = False
    killed: int | None = None


NAMES = ("web", "db", "app")
"""No two of them narrow the shared port alike, as their order would be that in which they came."""


def xml_of(name: str, address: int) -> tuple[str, ...]:
    """Declare ports of the guest's own, and one that all share, narrowed to a source or a device."""
    number = NAMES.index(name)
    limit = f'source="192.0.2.0/{23 + number}"' if number else 'dev="enp1s0"'
    return (
        host_ip(f"10.10.0.{10 * number + address + 10}"),
        port_forward(f"{8000 + number}:80", f"{3000 + 1000 * number}-{3500 + 1000 * number}:6000"),
        port_forward("9000", proto="udp", attributes=limit),
    )


def expected(name: str, address: int) -> Guest:
    number = NAMES.index(name)
    first = 3000 + 1000 * number
    shared = forward(9000, proto="udp", source=f"192.0.2.0/{23 + number}" if number else None)
    return guest(
        name,
        f"10.10.0.{10 * number + address + 10}",
        forward(first, first + 500, 6000),
        forward(8000 + number, to=80),
        shared if number else shared._replace(dev="enp1s0"),
    )


def happen(host: FakeHost, step: Step, running: dict[str, int]) -> None:
    """Run the hooks of a step, and note in ``running`` who runs at which address then."""
    declared = xml_of(step.name, step.address)
    if step.running:
        operations = ["reconnect"] if step.name in running else ["prepare", "started"]
        running[step.name] = step.address
    else:
        operations = ["stopped", "release"] if step.name in running else ["release"]
        running.pop(step.name, None)
    for operation in operations:
        assert host.event(step.name, operation, *declared) == 0, host.messages


def is_right(host: FakeHost, running: dict[str, int]) -> bool:
    return holds(host, *(expected(*item) for item in running.items()))


def steps(killed: st.SearchStrategy[int | None]) -> st.SearchStrategy[list[Step]]:
    harm = st.sampled_from((False, False, True))
    one = st.builds(Step, st.sampled_from(NAMES), st.booleans(), st.integers(0, 2), harm, killed)
    return st.lists(one, min_size=1, max_size=8)


@settings(max_examples=40)
@given(steps(st.none()))
def test_table_is_right_after_each_event(history: list[Step]) -> None:
    running: dict[str, int] = {}
    flushed = False
    with tempfile.TemporaryDirectory() as directory, fake_host(Path(directory)) as host:
        for step in history:
            if step.harm:
                host.nft.flush_ruleset()
            # An event of a guest that does not run concerns nobody.
            flushed = (flushed or step.harm) and not (step.running or step.name in running)
            happen(host, step, running)
            assert flushed or is_right(host, running), step


@settings(max_examples=60)
@given(steps(st.none() | st.integers(0, 20)))
def test_table_is_right_once_every_guest_had_an_event_after_the_last_kill(history: list[Step]) -> None:
    running: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as directory, fake_host(Path(directory)) as host:
        for step in history:
            if step.harm:
                host.nft.flush_ruleset()
            with host.killed_before_step(10_000 if step.killed is None else step.killed):
                happen(host, step, running)
        # As libvirt does after a restart; a guest that ended meanwhile is released.
        for name in NAMES:
            if name in running:
                assert host.event(name, "reconnect", *xml_of(name, running[name])) == 0
            else:
                assert host.event(name, "release", *xml_of(name, 0)) == 0
        assert is_right(host, running)
        if running:
            assert include_loads_the_same(host)
