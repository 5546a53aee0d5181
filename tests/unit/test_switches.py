"""Switches of the kernel that are set for forwards: what is recorded as ours is what we have set."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from unit.build import MAC, endpoint, forward, guest
from virt_forward.check import reading
from virt_forward.config import Config
from virt_forward.effects import hairpin_port, route_localnet
from virt_forward.host import switches
from virt_forward.state.store import Store

PORTS = {"vnet0": "fe" + MAC[2:], "vnet1": "fe:54:00:00:00:02"}
GUESTS = [
    guest("web", forward(80)),
    guest("db", forward(81), endpoints=[endpoint("198.51.100.201", mac="52:54:00:00:00:02")]),
]


class Kernel:
    """Files of /proc/sys and /sys, some of which cannot be written."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *read_only: str) -> None:
        self.read_only = read_only
        self.on: set[str] = set()
        monkeypatch.setattr(switches, "read", self.read)
        monkeypatch.setattr(switches, "turn", self.turn)
        monkeypatch.setattr(os, "listdir", lambda _: list(PORTS))
        monkeypatch.setattr(os.path, "exists", lambda _: True)

    def read(self, path: str) -> str:
        if path.endswith("/address"):
            return PORTS[path.split("/")[-2]]
        return "1" if path in self.on or "bridge-nf-call" in path else "0"

    def turn(self, path: str, value: str, _otherwise: str) -> bool:
        if any(name in path for name in self.read_only):
            return False
        (self.on.add if value == "1" else self.on.discard)(path)
        return True


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def test_port_whose_flag_cannot_be_set_is_not_recorded_as_ours(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Kernel(monkeypatch, "vnet0")
    hairpin_port.follow(store, Config(hairpin="ports"), [], GUESTS)
    assert store.read(hairpin_port.RECORD) == "vnet1"
    kernel.read_only = ()
    hairpin_port.follow(store, Config(hairpin="ports"), GUESTS, GUESTS)
    assert store.read(hairpin_port.RECORD) == "vnet0\nvnet1"
    hairpin_port.follow(store, Config(hairpin="ports"), GUESTS, [])
    assert (store.read(hairpin_port.RECORD), kernel.on) == (None, set())


def test_bridge_whose_switch_cannot_be_set_is_not_recorded_as_ours(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Kernel(monkeypatch, "/virbr0/")
    route_localnet.switch_on(store, ["virbr0", "virbr1"])
    assert store.read(route_localnet.RECORD) == "virbr1"
    route_localnet.switch_off(store, [])
    assert (store.read(route_localnet.RECORD), kernel.on) == ("", set())


def test_ruleset_of_fedora_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fedora, debian = tmp_path / "sysconfig", tmp_path / "nftables.conf"
    monkeypatch.setattr(reading, "RULESETS", (str(fedora), str(debian)))
    store = Store(str(tmp_path / "run"))
    assert reading._flush(store).path == str(debian)
    fedora.write_text(f'flush ruleset\ninclude "{store.include_path}"\n')
    found = reading._flush(store)
    assert (found.path, found.flushes, found.included_after) == (str(fedora), True, True)
