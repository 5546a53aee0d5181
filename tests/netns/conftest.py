"""One topology a module, and a clean host for every test in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from netns.support import Testbed, Topology
from netns.trust import APP4, Guests
from support import netns
from support.watching import service


@pytest.fixture(scope="module")
def built() -> Iterator[Topology]:
    """Two uplinks with a client each; guests web, db and app on one bridge and far on another."""
    with netns.lab() as lab:
        yield Topology(Testbed(lab))


@pytest.fixture
def topo(built: Topology) -> Iterator[Topology]:
    """The same with nothing started yet; whatever the test starts is stopped after it."""
    try:
        yield built
    finally:
        built.testbed.reset()


@pytest.fixture
def unwatched(lab: netns.Lab) -> Guests:
    """Guests web and db, not started, and app, which runs; there is no service."""
    made = Guests(lab)
    made.address(made.app, APP4)
    made.start("app", APP4)
    return made


@pytest.fixture
def watched(unwatched: Guests) -> Iterator[Guests]:
    """The same with the service running."""
    with service(unwatched.lab) as unwatched.service:
        yield unwatched


@pytest.fixture(params=["unwatched", "watched"])
def guests(request: pytest.FixtureRequest) -> Guests:
    """Each of the two in turn."""
    made: Guests = request.getfixturevalue(request.param)
    return made
