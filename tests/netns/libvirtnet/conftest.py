"""libvirt's networks, once a module and backend, and nothing running on them before and after each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from netns.libvirtnet.testbed import BACKENDS, LibvirtTestbed
from support import netns, state


@pytest.fixture(scope="module", params=BACKENDS)
def built(request: pytest.FixtureRequest) -> Iterator[LibvirtTestbed]:
    """The networks as libvirt has started them, known to us."""
    with netns.lab() as lab:
        testbed = LibvirtTestbed(lab, request.param)
        testbed.reset()
        yield testbed


@pytest.fixture
def testbed(built: LibvirtTestbed) -> Iterator[LibvirtTestbed]:
    """The same with no guest running, before and after; then nothing of ours is left in libvirt's chains."""
    before = built.host.ruleset()
    yield built
    built.reset()
    built.lab.config.unlink(missing_ok=True)
    assert built.rules("ip") == built.rules("ip6") == []
    assert state.rows(built.lab.run_dir, "SELECT * FROM effect") == []
    built.rebuild()
    assert built.host.ruleset() == before
