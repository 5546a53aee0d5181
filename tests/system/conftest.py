"""A host for each module, a guest that booted once, and nothing of ours left after any test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support import host as hosts
from support.base_host import COMMAND
from support.guest import Guest
from support.host import Host
from support.netns import HOST4
from support.proc import Background, eventually
from support.xml import forwards, host_ip, port_forward

# The address by IPv4 comes from networkd's static lease, by IPv6 the person names it.
WEB = Guest("web", metadata=forwards(host_ip("fd10:10::200"), port_forward("8080:80")))


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """A host with our hooks installed."""
    with hosts.host() as made:
        yield made


@pytest.fixture
def empty(host: Host) -> Iterator[Host]:
    """The host without guests, before and after; what we leave for a guest has to go with it."""
    yield host
    host.forget_all()
    left = host.traces_of_guests()
    assert not left, f"left behind by guests that are gone: {left}"


@pytest.fixture(scope="module")
def image(host: Host) -> str:
    """A booted guest as ``virsh save`` keeps it: restoring it takes a second, booting many."""
    path = "/run/lab/web.save"
    host.start(WEB)
    host.wait_booted(WEB)
    host.virsh("save", WEB.name, path)
    host.virsh("undefine", WEB.name)
    return path


@pytest.fixture
def web(empty: Host, image: str) -> Guest:
    """The guest, running and reachable at the host's port 8080."""
    empty.define(WEB)
    empty.run(["cp", image, "/run/lab/now.save"])
    empty.virsh("restore", "/run/lab/now.save")
    empty.wait_booted(WEB)
    assert empty.fetch(8080) == WEB.page, f"not reachable at {HOST4}:8080 after restore\n{empty.explain()}"
    return WEB


@pytest.fixture
def service(empty: Host) -> Iterator[Background]:
    enter = ["nsenter", f"--target={empty.init}", *empty.namespaces, "--wdns=/"]
    with Background([*enter, COMMAND, "watch"], empty.dir / "watch.log") as running:
        yield running
        # The service itself is told to end, not nsenter, which has to live to see it gone.
        empty.run(["pkill", "-TERM", "-f", f"{COMMAND} watch"], check=False)
        eventually(lambda: not running.alive(), "the service ends when it is told to")
        assert running.process.returncode == 0, running.text()
