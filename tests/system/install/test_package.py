"""The Debian package: built, checked by lintian; installed, upgraded and removed beside a guest."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import pytest

from support import bare, package
from support import machine as machines
from support.machine import Machine
from support.proc import Done, eventually
from system.conftest import WEB

pytestmark = pytest.mark.system

FILE = "/run/lab/virt-forward.deb"
WHERE = ("/etc", "/usr", "/var/lib/systemd", "/run")
LOOK = ["find", *WHERE, "-path", "*/src/*", "-prune", "-o", "-path", "*virt?forward*", "-print"]
HOOKS = "/etc/libvirt/hooks"
THEIRS = "#!/bin/sh\nexec cat >/dev/null\n"


def test_lintian_has_nothing_to_say() -> None:
    assert package.build().lintian == ""


APT = """
base64 -d >/tmp/virt-forward.deb
quietly() {
    apt-get -q -y -o DPkg::Options::=--force-unsafe-io "$@" >/tmp/log 2>&1 || { cat /tmp/log; exit 1; }
}
mkdir -p /etc/libvirt/hooks/qemu.d
touch /etc/libvirt/hooks/qemu /etc/libvirt/hooks/qemu.d/virt-forward
dpkg --unpack /tmp/virt-forward.deb 2>&1 | grep ^virt-forward:
[ -e /usr/lib/virt-forward ] || echo not unpacked
rm -r /etc/libvirt
quietly install --no-install-recommends /tmp/virt-forward.deb
virt-forward --version
ls /etc/libvirt/hooks
quietly purge virt-forward
find / -xdev -path /usr/src -prune -o -path '*virt*forward*' ! -path '/tmp/*' -print
"""


def test_apt_installs_it_on_a_bare_debian_12() -> None:
    """Its dependencies are enough, and without systemd and libvirt it can be installed as well.

    Before that it is refused where both places of a hook are somebody else's.
    """
    encoded = base64.b64encode(package.build().deb).decode()
    done = bare.run_in(bare.rootfs("bookworm"), ["sh", "-c", APT], stdin=encoded)
    refused, unpacked, version, *rest = done.out.splitlines()
    assert refused.startswith(f"virt-forward: neither {HOOKS}/qemu nor {HOOKS}/qemu.d/virt-forward is ours")
    assert unpacked == "not unpacked"
    assert version.startswith("virt-forward ")
    assert rest == ["network", "qemu"], "what is left after it is purged"


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """A Debian with a running guest, and the package's file on it."""
    with machines.machine() as made:
        made.run(["sh", "-c", f"base64 -d >{FILE}"], stdin=base64.b64encode(package.build().deb).decode())
        made.start(WEB)
        made.wait_booted(WEB)
        yield made


@pytest.fixture(scope="module")
def before(machine: Machine) -> set[str]:
    return files(machine)


@pytest.fixture
def installed(machine: Machine, before: set[str]) -> Machine:
    if machine.run(["dpkg-query", "-W", "virt-forward"], check=False).status:
        install(machine)
    return machine


def files(machine: Machine) -> set[str]:
    return set(machine.run(LOOK, check=False).out.splitlines())


def install(machine: Machine, *, check: bool = True) -> Done:
    return machine.run(["dpkg", "-i", FILE], check=check)


def test_install_forwards_to_a_guest_that_runs(installed: Machine) -> None:
    assert installed.fetch(8080) == WEB.page, installed.explain()
    assert installed.run(["systemctl", "is-enabled", "virt-forward"]).out == "enabled\n"
    assert installed.run(["systemctl", "is-active", "virt-forward"]).out == "active\n"
    # The root file system leaves out documentation.
    missing = installed.run(["dpkg", "-V", "virt-forward"], check=False).out.splitlines()
    assert not [line for line in missing if "/usr/share/doc/" not in line and "/usr/share/man/" not in line]
    found = installed.run(["virt-forward", "check", "--json"], check=False).out
    assert "hook-missing" not in found
    assert "hook-not-loaded" not in found


def test_every_module_is_compiled(installed: Machine) -> None:
    find = "find /usr/lib/virt-forward/virt_forward -name "
    sources = installed.run([*find.split(), "*.py"]).out.split()
    compiled = installed.run([*find.split(), "*.pyc"]).out.split()
    assert len(sources) == len(compiled) > 100


def test_hook_of_the_package_runs_for_a_guest_that_starts(installed: Machine) -> None:
    installed.virsh("destroy", WEB.name)
    assert installed.traces_of_guests() == []
    installed.virsh("start", WEB.name)
    assert "chain guest-web" in installed.our_table()
    installed.wait_booted(WEB)
    assert installed.fetch(8080) == WEB.page, installed.explain()


def test_upgrade_restarts_the_service_and_keeps_forwards(installed: Machine) -> None:
    pid = installed.systemctl("show", "-P", "MainPID", "virt-forward")
    install(installed)
    assert installed.systemctl("show", "-P", "MainPID", "virt-forward") != pid
    assert installed.fetch(8080) == WEB.page, installed.explain()


MODULES = "/usr/lib/virt-forward/virt_forward/hooks"
SLOW = """
open("/run/lab/begun", "w").close()
open("/run/lab/go").read()
from virt_forward.hooks import of_yesterday
"""
UPGRADE = f"""
exec 2>/run/lab/upgrade.err
echo '<domain>urn:virt-forward:1</domain>' | {HOOKS}/qemu web reconnect begin - & hook=$!
read -r </run/lab/begun
dpkg -i {FILE} >/run/lab/upgrade.log & upgrade=$!
until grep -q /replaced {HOOKS}/qemu; do sleep 0.05; done
sleep 0.5
grep -c of_yesterday {MODULES}/dispatch.py
echo >/run/lab/go
wait $hook $upgrade
echo $?
grep '^LIB' {HOOKS}/qemu
"""


def test_upgrade_waits_for_a_hook_that_runs(installed: Machine) -> None:
    """Its package has a module that the upgrade removes, and it imports that when it is told to go on."""
    # With it the hook would hand its event over, and import nothing.
    installed.systemctl("stop", "virt-forward")
    installed.run(["mkfifo", "/run/lab/begun", "/run/lab/go"])
    installed.write(f"{MODULES}/of_yesterday.py", "open('/run/lab/imported', 'w').close()\n")
    installed.write(f"{MODULES}/dispatch.py", installed.read(f"{MODULES}/dispatch.py") + SLOW)
    told = installed.run(["bash", "-c", UPGRADE]).out.splitlines()
    assert told == ["1", "0", 'LIB = "/usr/lib/virt-forward"'], installed.read("/run/lab/upgrade.err")
    installed.run(["test", "-e", "/run/lab/imported"])
    assert SLOW not in installed.read(f"{MODULES}/dispatch.py")
    assert "replaced" not in installed.run(["ls", "/usr/lib/virt-forward"]).out
    # dpkg knows nothing of this one.
    installed.run(["sh", "-c", f"rm {MODULES}/of_yesterday.py {MODULES}/__pycache__/of_yesterday.*"])


def test_hook_of_somebody_else_is_left_as_it_is(installed: Machine) -> None:
    installed.write(f"{HOOKS}/qemu", THEIRS, mode="0755")
    install(installed)
    assert installed.read(f"{HOOKS}/qemu") == THEIRS
    assert "# virt-forward hook" in installed.read(f"{HOOKS}/qemu.d/virt-forward")
    installed.run(["rm", f"{HOOKS}/qemu"])
    install(installed)
    assert "# virt-forward hook" in installed.read(f"{HOOKS}/qemu")
    assert installed.run(["ls", HOOKS]).out.split() == ["network", "qemu"]


@pytest.mark.parametrize("options", [[], ["--uninstall"]])
def test_install_sh_leaves_the_package_alone(installed: Machine, options: list[str]) -> None:
    done = installed.run([f"{machines.SOURCE}/install.sh", *options], check=False)
    assert done.status == 1
    assert done.err.startswith("install.sh: error: the package virt-forward is installed here")
    assert done.err.count("\n") == 1


def test_remove_leaves_the_guest_and_purge_nothing(installed: Machine, before: set[str]) -> None:
    installed.write("/etc/virt-forward/config.toml", "[forward]\nhairpin = false\n")
    installed.run(["dpkg", "--remove", "virt-forward"])
    assert installed.state(WEB) == "running"
    assert installed.our_table() == ""
    eventually(lambda: installed.closed(8080), "the forward is closed")
    assert installed.read("/etc/virt-forward/config.toml")
    assert installed.run(["ls", HOOKS]).out == ""
    installed.virsh("destroy", WEB.name)
    installed.virsh("start", WEB.name)
    installed.run(["dpkg", "--purge", "virt-forward"])
    assert files(installed) == before
    status = installed.run(["systemctl", "status", "virt-forward"], check=False)
    assert "could not be found" in status.err, status


def test_package_is_refused_beside_install_sh(machine: Machine) -> None:
    machine.run(["dpkg", "--purge", "virt-forward"], check=False)
    machine.install("--no-service")
    done = install(machine, check=False)
    assert done.status != 0
    assert "run ./install.sh --uninstall before you install the package" in done.err
    machine.install("--uninstall")
    machine.run(["dpkg", "--purge", "virt-forward"], check=False)
