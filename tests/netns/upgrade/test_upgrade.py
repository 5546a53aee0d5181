"""What version 5a9fd70 left behind, read by the hooks and the sync of this one while the guests run."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from netns.faults.edges import Environment, Outcome, Steps, apart
from netns.support import PHASES
from netns.upgrade import scenario
from support import netns, xml
from support.netns import HOOK_ENV, HOST4, Lab, Ns
from support.payload import Conversation
from virt_forward.check import listing
from virt_forward.hooks import dispatch, prefilter
from virt_forward.libvirtd.api import DomainState
from virt_forward.reconcile import resync

pytestmark = pytest.mark.root

CLONE_NEWNS = 0x00020000
MS_REC, MS_PRIVATE = 0x4000, 0x40000
OLD = scenario.DATA / "5a9fd70"
FLOWS = (
    ("web", 8080, "tcp"),
    ("db", 5432, "tcp"),
    ("db", 5353, "udp"),
    ("twin", 8081, "tcp"),
    ("wire", 4000, "tcp"),
)
"""Flows that are open while the upgrade happens: the guest, the host's port, the protocol."""


@dataclass
class Host:
    """A lab with the guests of the scenario, whose events are those of the present version."""

    lab: Lab
    guests: dict[str, Ns]
    said: list[str] = field(default_factory=list)

    def event(self, name: str, operation: str) -> None:
        """Run the qemu hook for one event; its messages are kept in ``said``."""
        self._hook("qemu", [name, operation, PHASES[operation][0], "-"], scenario.domain(name, operation))

    def network(self, operation: str) -> None:
        """Run the network hook for the libvirt network."""
        self._hook(
            "network", [scenario.HOUSE.name, operation, "begin", "-"], xml.network_hook(scenario.HOUSE)
        )

    def _hook(self, driver: str, words: list[str], text: str) -> None:
        data = text.encode()

        def call() -> int:
            concerns_us = {"qemu": prefilter.concerns_us, "network": prefilter.network_concerns_us}
            return dispatch.main(driver, words, data) if concerns_us[driver](words, data) else 0

        self._done(self._apart(call))

    def sync(self, *running: str) -> None:
        """Run the engine of ``virt-forward sync``, while libvirt says that these guests run."""

        def call() -> int:
            libvirt: Any = vars(resync)["api"]
            libvirt.connection = lambda _uri: contextlib.nullcontext()
            libvirt.domains = lambda *_: [_state(name) for name in running]
            libvirt.networks = lambda _: [scenario.HOUSE.xml().encode()]
            return 1 if resync.sync(probe_guests=False).errors else 0

        self._done(self._apart(call))

    def _apart(self, call: Callable[[], int]) -> Outcome:
        place = Environment(self.lab.host.path, {**HOOK_ENV, **self.lab.env}, self.lab.dir)

        def with_own_sysfs() -> int:
            _mount_sysfs()
            return call()

        return apart(place, with_own_sysfs, Steps())

    def _done(self, outcome: Outcome) -> None:
        assert outcome.status == 0, outcome
        self.said += outcome.reasons.splitlines()

    def table(self) -> listing.Listing:
        """Return our table in the kernel, whichever revision it is."""
        words = ("table", "inet", "virt-forward")
        return listing.parse(re.sub(r"(set revision .*?elements = \{).*?\}", r"\1}",
                                    self.lab.host.ruleset(*words), flags=re.DOTALL))  # fmt: skip


def _mount_sysfs() -> None:
    """Give this process the /sys of its network namespace, as ``ip netns exec`` does."""
    libc = ctypes.CDLL(None, use_errno=True)
    if (
        libc.unshare(CLONE_NEWNS)
        or libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None)
        or libc.mount(b"sysfs", b"/sys", b"sysfs", 0, None)
    ):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _state(name: str) -> DomainState:
    return DomainState(name, xml.uuid_of(name), True, scenario.domain(name, "started").encode())


@contextlib.contextmanager
def host(libvirt: str = scenario.LIBVIRT) -> Iterator[Host]:
    """Build the scenario's host in a lab; nothing of ours is on it yet."""
    with netns.lab() as lab:
        yield Host(lab, scenario.build(lab, libvirt=libvirt))


@pytest.fixture
def upgraded(request: pytest.FixtureRequest) -> Iterator[Host]:
    """The host as the old version left it: run directory, table, libvirt's chain, kernel switches.

    A change was interrupted, others are queued, unless the test asks for the folder "rest".
    """
    old = OLD / getattr(request, "param", "interrupted")
    with host((old / "libvirt.nft").read_text()) as made:
        shutil.copytree(old / "run", made.lab.run_dir)
        made.lab.host.run(["nft", "-f", made.lab.run_dir / "ruleset.nft"])
        for path, value in zip(
            scenario.flag_files(made.lab), (old / "flags").read_text().strip(), strict=True
        ):
            made.lab.host.run(["sh", "-c", f"echo {value} > {path}"])
        yield made


@pytest.fixture
def flows(upgraded: Host) -> list[Conversation]:
    """Connections that clients have opened through the old version's table, in the order of FLOWS."""
    for name, guest in upgraded.guests.items():
        for proto in ("tcp", "udp"):
            guest.serve(proto, 25, 53, 80, 5432, 8081, 9000, name=name)
    opened = [upgraded.lab.client.conversation(HOST4, port, proto) for _, port, proto in FLOWS]
    assert [_who(flow) for flow in opened] == [name for name, _, _ in FLOWS]
    return opened


def _who(flow: Conversation) -> str | None:
    answer = flow.ask()
    return answer.name if answer else None


def fresh(*events: tuple[str, str]) -> tuple[listing.Listing, str, str]:
    """Return the table, libvirt's chain and the switches that this version makes by itself for events."""
    with host() as made:
        made.network("started")
        for name, operation in events:
            made.event(name, operation)
        return made.table(), made.lab.host.ruleset("table", "ip", "libvirt_network"), scenario.flags(made.lab)


STARTS = tuple((name, "reconnect") for name in scenario.RUNNING)
PREPARED = ("late", "prepare")
FIRST: dict[str, tuple[Callable[[Host], None], tuple[tuple[str, str], ...]]] = {
    "the prepared guest starts": (lambda h: h.event("late", "started"), (("late", "reconnect"),)),
    "a running guest reconnects": (lambda h: h.event("web", "reconnect"), (PREPARED,)),
    "another guest is prepared": (lambda h: h.event("new", "prepare"), (PREPARED, ("new", "prepare"))),
    "another guest starts": (lambda h: h.event("new", "started"), (PREPARED, ("new", "reconnect"))),
    "sync": (lambda h: h.sync(*scenario.RUNNING, "late"), (("late", "reconnect"),)),
}
"""The first thing that happens after the upgrade; what a fresh host has besides STARTS to be the same."""


def assert_nothing_damaged(host: Host) -> None:
    wrong = (
        "damaged",
        "no record of ours",
        "left out",
        "is rebuilt",
        "rebuilt",
        "not as it was",
        "cannot be",
    )
    # The index is derived from the records; 5a9fd70 had other kinds of rows in it.
    said = [line for line in host.said if "the index of claims" not in line]
    assert not [line for line in said if any(words in line for words in wrong)]


@pytest.mark.parametrize(("first", "more"), FIRST.values(), ids=FIRST)
def test_first_event_completes_the_old_state(
    upgraded: Host, flows: list[Conversation],
    first: Callable[[Host], None], more: tuple[tuple[str, str], ...],
) -> None:  # fmt: skip
    first(upgraded)
    assert [_who(flow) for flow in flows] == [name for name, _, _ in FLOWS], upgraded.said
    table, libvirt, flags = fresh(*STARTS, *more)
    assert not listing.differences(upgraded.table(), table), upgraded.said
    assert upgraded.lab.host.ruleset("table", "ip", "libvirt_network") == libvirt
    assert scenario.flags(upgraded.lab) == flags
    assert_nothing_damaged(upgraded)
    assert upgraded.lab.client.ask(HOST4, 3000).name == "ready"  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["web", "db", "wire"])
def test_stop_removes_only_the_guest_that_the_old_version_started(
    upgraded: Host, flows: list[Conversation], name: str
) -> None:
    upgraded.event(name, "stopped")
    now = dict(zip(FLOWS, map(_who, flows), strict=True))
    assert {flow: seen for flow, seen in now.items() if flow[0] != name} == {
        flow: flow[0] for flow in FLOWS if flow[0] != name
    }
    assert not [seen for flow, seen in now.items() if flow[0] == name and seen == name]
    starts = [event for event in STARTS if event[0] != name]
    assert not listing.differences(upgraded.table(), fresh(*starts, PREPARED)[0]), upgraded.said
    assert_nothing_damaged(upgraded)


def test_network_event_keeps_the_old_forwards(upgraded: Host, flows: list[Conversation]) -> None:
    upgraded.network("updated")
    assert [_who(flow) for flow in flows] == [name for name, _, _ in FLOWS], upgraded.said
    assert_nothing_damaged(upgraded)
    upgraded.sync(*scenario.RUNNING, "late")
    table, _, _ = fresh(*STARTS, ("late", "reconnect"))
    assert not listing.differences(upgraded.table(), table), upgraded.said


@pytest.mark.parametrize("upgraded", ["rest"], indirect=True)
def test_state_at_rest_needs_no_rebuild(upgraded: Host, flows: list[Conversation]) -> None:
    """Without an interrupted or queued change, the old derived files are trusted or replaced quietly."""
    upgraded.event("new", "started")
    assert [_who(flow) for flow in flows] == [name for name, _, _ in FLOWS], upgraded.said
    assert_nothing_damaged(upgraded)
    upgraded.event("mail", "started")
    upgraded.event("ready", "started")
    upgraded.event("gone", "stopped")
    table, _, _ = fresh(*STARTS, PREPARED, ("new", "reconnect"))
    assert not listing.differences(upgraded.table(), table), upgraded.said
    assert_nothing_damaged(upgraded)


def test_end_of_all_guests_leaves_nothing(upgraded: Host) -> None:
    for name in (*scenario.RUNNING, "late", "gone"):
        upgraded.event(name, "stopped")
        upgraded.event(name, "release")
    ruleset = upgraded.lab.host.ruleset()
    assert "virt-forward" not in ruleset
    assert set(scenario.flags(upgraded.lab)) == {"0"}
