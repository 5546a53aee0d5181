"""Changes of the table in a real kernel come to the table that a fresh load makes."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from unit.golden.test_golden import listing
from unit.simulation import Event, Simulation, events
from virt_forward.config import Config
from virt_forward.ruleset import table


@pytest.mark.root
@settings(
    max_examples=25,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(events)
def test_kernel_after_any_changes_has_the_whole_table(happenings: list[Event]) -> None:
    simulation = Simulation(Config(uplinks=("enp1s0",)))
    with tempfile.TemporaryDirectory(prefix="virt-forward-test-") as name:
        steps = []
        for number, happening in enumerate(happenings):
            step = Path(name, f"{number}.nft")
            step.write_text(simulation.commands(happening))
            steps.append(f"nft -f {step}")
        whole = Path(name, "whole.nft")
        whole.write_text(table.text(simulation.whole()))
        changed, fresh = listing(" && ".join(steps)), listing(f"nft -f {whole}")
    assert changed == fresh
