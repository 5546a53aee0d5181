"""Switches of the kernel that are set for forwards: what is recorded as ours is what we have set."""

from __future__ import annotations

import os
from ipaddress import ip_network
from pathlib import Path

import pytest

from support.state import in_memory
from unit.build import MAC, endpoint, forward, guest
from virt_forward.check import reading
from virt_forward.config import Config
from virt_forward.effects import converge
from virt_forward.effects.item import Change
from virt_forward.host import nftables_service, switches
from virt_forward.model import Guest
from virt_forward.state.snapshot import Snapshot
from virt_forward.state.store import Store

PORTS = {"vnet0": "fe" + MAC[2:], "vnet1": "fe:54:00:00:00:02"}
SECOND = endpoint("192.0.2.201", bridge="virbr1", mac="52:54:00:00:00:02")
SECOND_LAN = ((ip_network("192.0.2.0/24"), "virbr1"),)
GUESTS = [
    guest("web", forward(80)),
    guest("db", forward(81), endpoints=[SECOND])._replace(lans=SECOND_LAN),
]
Guests = list[Guest]


class Kernel:
    """Files of /proc/sys and /sys, some of which cannot be written."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *read_only: str) -> None:
        self.read_only = read_only
        self.on: set[str] = set()
        self.reads = 0
        monkeypatch.setattr(switches, "read", self.read)
        monkeypatch.setattr(switches, "turn", self.turn)
        monkeypatch.setattr(os, "listdir", lambda _: list(PORTS))
        monkeypatch.setattr(os.path, "exists", lambda _: True)

    def read(self, path: str) -> str:
        self.reads += 1
        if path.endswith("/address"):
            return PORTS[path.split("/")[-2]]
        return "1" if path in self.on or "bridge-nf-call" in path else "0"

    def turn(self, path: str, value: str, _otherwise: str) -> bool:
        if any(name in path for name in self.read_only):
            return False
        (self.on.add if value == "1" else self.on.discard)(path)
        return True


@pytest.fixture
def state() -> Snapshot:
    return in_memory()


def change(state: Snapshot, config: Config, before: Guests, after: Guests) -> None:
    bridges = frozenset(bridge for guest in after for _, bridge in guest.lans)
    made = Change(config, bridges, before=tuple(before), after=tuple(after))
    converge.establish(state, converge.withdraw(state, made))


def recorded(state: Snapshot) -> list[str]:
    return sorted(f"{effect} {dev}" for effect, dev, _ in state.effects())


@pytest.mark.parametrize(
    ("config", "fails", "lines"),
    [
        (Config(hairpin="ports"), "vnet0", ["hairpin_port vnet0", "hairpin_port vnet1"]),
        (Config(localhost=True), "/virbr0/", ["route_localnet virbr0", "route_localnet virbr1"]),
    ],
    ids=["hairpin", "localhost"],
)
def test_switch_that_cannot_be_set_is_not_recorded_as_ours(
    state: Snapshot, monkeypatch: pytest.MonkeyPatch, config: Config, fails: str, lines: list[str]
) -> None:
    kernel = Kernel(monkeypatch, fails)
    change(state, config, [], GUESTS)
    assert recorded(state) == lines[1:]
    assert len(kernel.on) == 1
    kernel.read_only = ()
    change(state, config, GUESTS, GUESTS)
    assert recorded(state) == lines
    change(state, config, GUESTS, [])
    assert (recorded(state), kernel.on) == ([], set())


def test_switch_that_cannot_be_taken_back_stays_recorded(
    state: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Kernel(monkeypatch)
    change(state, Config(localhost=True), [], GUESTS)
    kernel.read_only = ("/virbr0/",)
    change(state, Config(localhost=True), GUESTS, [])
    assert recorded(state) == ["route_localnet virbr0"]
    assert not converge.release(state)
    kernel.read_only = ()
    assert converge.release(state)
    assert (recorded(state), kernel.on) == ([], set())


def test_switch_that_was_on_before_us_is_not_ours(state: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch)
    kernel.on = {"/proc/sys/net/ipv4/conf/virbr0/route_localnet"}
    change(state, Config(localhost=True), [], GUESTS)
    assert recorded(state) == ["route_localnet virbr1"]
    change(state, Config(localhost=True), GUESTS, [])
    assert kernel.on == {"/proc/sys/net/ipv4/conf/virbr0/route_localnet"}


@pytest.mark.parametrize("config", [Config(hairpin="ports"), Config(localhost=True)], ids=str)
def test_setting_withdrawn_takes_switches_of_all_guests_back(
    state: Snapshot, monkeypatch: pytest.MonkeyPatch, config: Config
) -> None:
    kernel = Kernel(monkeypatch)
    change(state, config, [], GUESTS)
    assert len(kernel.on) == 2
    change(state, Config(), [], [])
    assert (recorded(state), kernel.on) == ([], set())


def test_hairpin_port_of_a_guest_that_does_not_change_stays(
    state: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Kernel(monkeypatch)
    change(state, Config(hairpin="ports"), [], GUESTS)
    change(state, Config(hairpin="ports"), GUESTS[:1], [])
    assert recorded(state) == ["hairpin_port vnet1"]
    assert len(kernel.on) == 1


def test_without_settings_no_switch_is_read(state: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch)
    change(state, Config(), [], GUESTS)
    assert kernel.reads == 0


def test_ruleset_of_fedora_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fedora, debian = tmp_path / "sysconfig", tmp_path / "nftables.conf"
    monkeypatch.setattr(nftables_service, "RULESETS", (str(fedora), str(debian)))
    store = Store(str(tmp_path / "run"))
    assert reading._flush(store).path == str(debian)
    fedora.write_text(f'flush ruleset\ninclude "{store.include_path}"\n')
    found = reading._flush(store)
    assert (found.path, found.flushes, found.included_after) == (str(fedora), True, True)
