"""A whole Debian with systemd: install, reload what people reload, take it away again."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from e2e.conftest import WEB
from lab import machine as machines
from lab.guest import Guest
from lab.host import NFTABLES
from lab.machine import Machine
from lab.proc import eventually
from lab.xml import forwards, port_forward

pytestmark = pytest.mark.e2e

# No static lease is for this one: networkd gives it an address of the pool.
EARLY = Guest("early", forwards(port_forward("8081:80")), mac="52:54:00:00:00:77", ip6=None)
WITHOUT_INCLUDE = NFTABLES.replace('include "/run/virt-forward/*.nft"\n', "")


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """A Debian with a guest that was running before we were installed, and one started after."""
    with machines.machine() as made:
        made.start(EARLY)
        made.wait_lease(EARLY)
        made.install()
        assert made.state(EARLY) == "running", "installing harms no guest"
        made.start(WEB)
        made.wait_booted(WEB)
        yield made


@pytest.fixture
def theirs(machine: Machine) -> Iterator[None]:
    """Put the person's nftables.conf back as it was."""
    yield
    machine.write("/etc/nftables.conf", NFTABLES)
    machine.systemctl("reload", "nftables")
    assert machine.fetch(8080) == WEB.page


def test_libvirt_runs_the_hooks_once_they_are_installed(machine: Machine) -> None:
    assert machine.fetch(8080) == WEB.page, machine.explain()
    assert machine.fetch6(8080) == WEB.page, machine.explain()


def test_a_guest_that_ran_before_is_forwarded_to_its_lease(machine: Machine) -> None:
    lease = machine.wait_lease(EARLY)
    rows = [row for row in machine.forwards() if row["domain"] == "early"]
    assert [(row["start"], row["guest"], row["state"]) for row in rows] == [(8081, [lease], "active")]
    assert machine.fetch(8081) == EARLY.page, machine.explain()


def test_a_restart_of_libvirtd_keeps_guest_and_forward(machine: Machine) -> None:
    pid = machine.qemu_pid(WEB)
    machine.systemctl("restart", "libvirtd")
    eventually(lambda: machine.state(WEB) == "running", "libvirtd finds the guest again", 20)
    assert machine.qemu_pid(WEB) == pid
    assert machine.fetch(8080) == WEB.page, machine.explain()


def test_a_reload_of_libvirtd_is_what_a_new_hook_needs(machine: Machine) -> None:
    """A reload is told by systemd alone; ``check`` believes it."""

    def found() -> bool:
        return "hook-not-loaded" in machine.command("check", "--json", check=False).out

    # A file that is changed in the second in which libvirtd started counts as older.
    time.sleep(1.1)
    machine.run(["touch", "/etc/libvirt/hooks/qemu"])
    assert found()
    machine.systemctl("reload", "libvirtd")
    assert not found()


@pytest.mark.parametrize("verb", ["reload", "restart"])
@pytest.mark.parametrize("conf", [NFTABLES, WITHOUT_INCLUDE], ids=["include", "no include"])
def test_a_reload_of_nftables_keeps_the_forward(machine: Machine, theirs: None, conf: str, verb: str) -> None:
    machine.write("/etc/nftables.conf", conf)
    machine.systemctl(verb, "nftables")
    assert machine.fetch(8080) == WEB.page, machine.explain()


def test_the_service_brings_a_flushed_table_back(machine: Machine) -> None:
    machine.systemctl("start", "virt-forward")
    try:
        machine.run(["nft", "delete", "table", "inet", "virt-forward"])
        eventually(lambda: machine.fetch(8080) == WEB.page, "the table is back", 3)
    finally:
        machine.systemctl("stop", "virt-forward")
    assert machine.fetch(8080) == WEB.page, "stopping the service closes nothing"


def test_the_command_tells_what_is_forwarded(machine: Machine) -> None:
    said = machine.command("list").out
    assert "web" in said
    assert "8080" in said
    assert "10.10.0.200" in said


def test_uninstalling_leaves_the_guests_and_nothing_else() -> None:
    with machines.machine() as machine:
        before = machine.run(["find", "/etc", "/usr/local", "/run/virt-forward"], check=False).out
        machine.install()
        machine.start(WEB)
        assert machine.our_table()
        machine.install("--uninstall")
        assert machine.state(WEB) == "running"
        assert machine.our_table() == ""
        after = machine.run(["find", "/etc", "/usr/local", "/run/virt-forward"], check=False).out
        assert set(after.split()) - set(before.split()) == {f"/etc/libvirt/qemu/{WEB.name}.xml"}
        machine.virsh("destroy", WEB.name)
        machine.virsh("start", WEB.name)
