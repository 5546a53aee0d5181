"""Options, and what is said before anything is done."""

from __future__ import annotations

from pathlib import Path

import pytest

from system.install.support import functions, install

FAMILIES = {
    "apt-get": ("ID=debian\n", "python3 python3-lxml python3-libvirt nftables iproute2"),
    "dnf": ("ID=fedora\n", "python3 python3-lxml python3-libvirt nftables iproute"),
    "pacman": ("ID=arch\n", "python sqlite python-lxml libvirt-python nftables iproute2"),
    "zypper": (
        'ID="opensuse-tumbleweed"\nID_LIKE="opensuse suse"\n',
        "python3 python3-lxml python3-libvirt-python nftables iproute2",
    ),
}
NEEDS = "python3 python3-sqlite3 python3-lxml python3-libvirt nftables iproute2"


def only_stub(tmp_path: Path, name: str, body: str) -> str:
    """Make a PATH on which the package manager is the first thing found."""
    stub = tmp_path / "bin" / name
    stub.parent.mkdir()
    stub.write_text(f"#!/bin/sh\n{body}\n")
    stub.chmod(0o755)
    return f"{stub.parent}:/usr/sbin:/usr/bin:/sbin:/bin"


def test_help_needs_no_root_and_names_every_option() -> None:
    done = install("--help")
    for word in ("--dry-run", "--uninstall", "--demo", "--no-service", "PREFIX", "DESTDIR"):
        assert word in done.out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--nonsense"], "what is '--nonsense'?"),
        (["demo"], "what is 'demo'?"),
        (["--demo", "--uninstall"], "--demo and --uninstall do not go together"),
        (["--no-service", "--uninstall"], "--uninstall and --no-service do not go together"),
    ],
)
def test_wrong_options(options: list[str], says: str) -> None:
    done = install(*options, check=False)
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith(f"install.sh: error: {says}")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"PREFIX": "opt"}, "PREFIX must be an absolute path, not 'opt'"),
        ({"PREFIX": "/"}, "PREFIX must be an absolute path"),
        ({"PREFIX": '/opt/"; x'}, "PREFIX may hold letters"),
        ({"PREFIX": "/opt/a|b"}, "PREFIX may hold letters"),
        ({"DESTDIR": "here"}, "DESTDIR must be an absolute path, not 'here'"),
    ],
)
def test_wrong_places(env: dict[str, str], says: str) -> None:
    done = install("--dry-run", check=False, env=env)
    assert done.status == 2
    assert done.err.startswith(f"install.sh: error: {says}")


@pytest.mark.parametrize("manager", FAMILIES)
def test_packages_of_each_distribution(tmp_path: Path, manager: str) -> None:
    release, packages = FAMILIES[manager]
    (tmp_path / "os-release").write_text(release)
    path = only_stub(tmp_path, manager, f'echo "{manager} $*" >>{tmp_path}/called')
    script = f"PATH={path}; os_release={tmp_path}/os-release; has() {{ false; }}; need_packages {NEEDS}"
    functions(script)
    called = (tmp_path / "called").read_text().splitlines()
    assert called[-1].startswith(f"{manager} ")
    assert called[-1].endswith(f" {packages}")
    assert len(called) == (2 if manager == "apt-get" else 1)


@pytest.mark.parametrize(
    ("release", "manager"),
    [
        ("ID=ubuntu\nID_LIKE=debian\n", "apt-get"),
        ('ID=linuxmint\nID_LIKE="ubuntu debian"\n', "apt-get"),
        ('ID="rocky"\nID_LIKE="rhel centos fedora"\n', "dnf"),
        ("ID=endeavouros\nID_LIKE=arch\n", "pacman"),
        ('ID="opensuse-leap"\nID_LIKE="suse opensuse"\n', "zypper"),
    ],
)
def test_derivatives(tmp_path: Path, release: str, manager: str) -> None:
    (tmp_path / "os-release").write_text(release)
    assert functions(f"os_release={tmp_path}/os-release; package_manager x").out == f"{manager}\n"


def test_unknown_distribution_is_told_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "os-release").write_text("ID=plan9\n")
    script = f"os_release={tmp_path}/os-release; has() {{ false; }}; need_packages nftables python3-lxml"
    done = functions(script, check=False)
    assert done.status == 1
    assert "install nftables python3-lxml yourself" in done.err


def test_installed_packages_are_not_installed_again(tmp_path: Path) -> None:
    path = only_stub(tmp_path, "apt-get", f"touch {tmp_path}/called")
    functions(f"PATH={path}; has() {{ true; }}; need_packages {NEEDS}")
    assert not (tmp_path / "called").exists()


def test_package_manager_that_fails_is_quoted(tmp_path: Path) -> None:
    (tmp_path / "os-release").write_text("ID=fedora\n")
    path = only_stub(tmp_path, "dnf", "echo 'no such mirror'; exit 3")
    script = f"PATH={path}; os_release={tmp_path}/os-release; has() {{ false; }}; need_packages nftables"
    done = functions(script, check=False)
    assert done.status == 1
    assert done.err == "install.sh: error: 'dnf install -q -y nftables' failed:\nno such mirror\n"


@pytest.mark.parametrize(
    ("state", "refused"),
    [("installed", True), ("half-configured", True), ("config-files", False), ("not-installed", False)],
)
def test_package_of_the_distribution_is_left_alone(tmp_path: Path, state: str, refused: bool) -> None:
    path = only_stub(tmp_path, "dpkg-query", f"echo -n {state}")
    done = functions(f"PATH={path}; refuse_beside_package", check=False)
    assert (done.status != 0) == refused
    assert ("the package virt-forward is installed here" in done.err) == refused


def test_dry_run_of_packages_calls_nobody(tmp_path: Path) -> None:
    path = only_stub(tmp_path, "apt-get", f"touch {tmp_path}/called")
    (tmp_path / "os-release").write_text("ID=debian\n")
    script = f"PATH={path}; os_release={tmp_path}/os-release; dry_run=yes"
    script += "; has() { false; }; need_packages nftables"
    done = functions(script)
    assert "apt-get install -q -y --no-install-recommends nftables" in done.out
    assert all(line.startswith("would run: ") for line in done.out.splitlines())
    assert not (tmp_path / "called").exists()


def test_old_python_is_refused_in_one_sentence(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo "Python 3.9.2" && exit\nexit 1\n')
    old.chmod(0o755)
    done = functions(f"python={old}; need_python", check=False)
    assert done.status == 1
    assert (
        done.err
        == f"install.sh: error: Python 3.11 or newer is needed as {old}, and here it is Python 3.9.2\n"
    )


@pytest.mark.parametrize(
    ("version", "refused"), [("6.4.0", True), ("6.5.0", False), ("10.0.0", False), ("", False)]
)
def test_second_hook_needs_libvirt_6_5(version: str, refused: bool) -> None:
    done = functions(f"libvirt_version() {{ echo '{version}'; }}; need_hook_dirs qemu", check=False)
    assert (done.status != 0) == refused
    assert ("libvirt 6.4.0 runs no second one" in done.err) == refused


def test_version_of_a_daemon_is_understood(tmp_path: Path) -> None:
    path = only_stub(tmp_path, "libvirtd", "echo '/usr/sbin/libvirtd (libvirt) 11.3.0'")
    assert functions(f"PATH={path}; libvirt_version").out == "11.3.0\n"


@pytest.mark.parametrize(("state", "noted"), [("off", True), ("on", False)])
def test_selinux_is_mentioned_where_it_enforces(state: str, noted: bool) -> None:
    script = f"""
    getenforce() {{ echo Enforcing; }}
    getsebool() {{ echo "virt_hooks_unconfined --> {state}"; }}
    selinux_note"""
    done = functions(script)
    assert ("setsebool -P virt_hooks_unconfined on" in done.out) == noted


def test_selinux_is_not_mentioned_elsewhere() -> None:
    assert functions("getenforce() { echo Permissive; }; selinux_note").out == ""


def test_every_installed_file_gets_its_selinux_label(tmp_path: Path) -> None:
    path = only_stub(tmp_path, "restorecon", f'printf "%s\\n" "$@" >{tmp_path}/called')
    functions(f"PATH={path}; PREFIX=/opt/vf; prefix=/opt/vf; places; list_files; label_files")
    called = (tmp_path / "called").read_text().split()
    assert called[:2] == ["-R", "--"]
    assert set(called[2:]) == {
        "/opt/vf/lib/virt-forward",
        "/opt/vf/bin/virt-forward",
        "/opt/vf/share/man/man1/virt-forward.1",
        "/opt/vf/share/man/man5/virt-forward-config.toml.5",
        "/opt/vf/share/bash-completion/completions/virt-forward",
        "/opt/vf/share/zsh/site-functions/_virt-forward",
        "/opt/vf/share/fish/vendor_completions.d/virt-forward.fish",
        "/etc/libvirt/hooks",
        "/etc/systemd/system/virt-forward.service",
        "/etc/systemd/system/nftables.service.d/virt-forward.conf",
    }


def test_labels_that_cannot_be_set_are_no_failure(tmp_path: Path) -> None:
    path = only_stub(tmp_path, "restorecon", "exit 1")
    done = functions(f"PATH={path}; places; list_files; label_files")
    assert "note: 'restorecon -R -- /usr/local/lib/virt-forward " in done.out


def test_labels_come_before_libvirt_looks_for_hooks() -> None:
    steps = "label_files selinux_note reload_systemd start_service reload_libvirt act"
    stubs = "; ".join(f"{step}() {{ echo {step}; }}" for step in steps.split())
    said = functions(f"{stubs}; start_work").out.split()
    assert said.index("label_files") < said.index("start_service") < said.index("reload_libvirt")


@pytest.mark.root
@pytest.mark.parametrize("options", [[], ["--uninstall"], ["--demo"]])
def test_without_root_one_sentence(options: list[str]) -> None:
    # The checkout may be where only root can read it.
    copy = 'copy=$(mktemp -d); chmod 755 "$copy"; cp -r "$repo"/install.sh "$repo"/installer "$copy"'
    nobody = f'setpriv --reuid 65534 --clear-groups bash "$copy/install.sh" {" ".join(options)}'
    done = functions(f'{copy}; status=0; {nobody} || status=$?; rm -r "$copy"; exit $status', check=False)
    assert (done.status, done.out) == (1, "")
    assert done.err == "install.sh: error: only root may do this: run it with sudo\n"


def test_demo_can_be_asked_what_it_would_do() -> None:
    done = install("--demo", "--dry-run")
    assert done.out.startswith("would ")
    assert "demo/demo.py" in done.out
