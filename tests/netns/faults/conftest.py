"""One host for a module, clean for every test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from netns.faults import testbed as testbeds
from netns.faults.testbed import FaultTestbed


@pytest.fixture(scope="module")
def host() -> Iterator[FaultTestbed]:
    with testbeds.testbed() as made:
        yield made


@pytest.fixture
def testbed(host: FaultTestbed) -> Iterator[FaultTestbed]:
    """The host without guests; whatever the test did to it is undone. The person's rules are as before."""
    host.flush()
    before = host.lab.host.theirs()
    yield host
    assert host.lab.host.theirs() == before
    host.clear()
