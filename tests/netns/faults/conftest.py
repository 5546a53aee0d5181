"""One host for a module, clean for every test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from netns.faults import world as worlds
from netns.faults.world import World


@pytest.fixture(scope="module")
def host() -> Iterator[World]:
    with worlds.world() as made:
        yield made


@pytest.fixture
def world(host: World) -> Iterator[World]:
    """The host without guests; whatever the test did to it is undone. The person's rules are as before."""
    host.flush()
    before = host.lab.host.theirs()
    yield host
    assert host.lab.host.theirs() == before
    host.clear()
