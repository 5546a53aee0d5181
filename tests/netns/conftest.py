"""One topology a module, and a clean host for every test in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab import netns
from netns.support import Cast, Scene


@pytest.fixture(scope="module")
def built() -> Iterator[Cast]:
    """Two uplinks with a client each; guests web, db and app on one bridge and far on another."""
    with netns.lab() as lab:
        yield Cast(Scene(lab))


@pytest.fixture
def cast(built: Cast) -> Iterator[Cast]:
    """The same with nothing started yet; whatever the test starts is stopped after it."""
    try:
        yield built
    finally:
        built.scene.reset()
