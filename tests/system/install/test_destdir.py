"""What packagers do: files into a directory, and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from support.proc import REPO, run
from system.install.support import PATH, contents, install, tree

LIB = "usr/local/lib/virt-forward"
OUTSIDE_THE_PACKAGE = {
    "usr/local/bin/virt-forward": 0o755,
    "usr/local/share/man/man1/virt-forward.1": 0o644,
    "usr/local/share/man/man5/virt-forward-config.toml.5": 0o644,
    "usr/local/share/bash-completion/completions/virt-forward": 0o644,
    "usr/local/share/zsh/site-functions/_virt-forward": 0o644,
    "usr/local/share/fish/vendor_completions.d/virt-forward.fish": 0o644,
    "etc/libvirt/hooks/qemu": 0o755,
    "etc/libvirt/hooks/network": 0o755,
    "etc/systemd/system/nftables.service.d/virt-forward.conf": 0o644,
    "etc/systemd/system/virt-forward.service": 0o644,
}


def put(path: Path, text: str = "#!/bin/sh\necho somebody else\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_installs_exactly_these_files(tmp_path: Path) -> None:
    install(DESTDIR=str(tmp_path))
    files = {name: mode for name, mode in tree(tmp_path).items() if not (tmp_path / name).is_dir()}
    outside = {name: mode for name, mode in files.items() if not name.startswith(LIB)}
    assert outside == OUTSIDE_THE_PACKAGE
    links = [name for name in tree(tmp_path) if (tmp_path / name).is_symlink()]
    assert links == [f"{LIB}/virt_forward"], "hooks are files, as AppArmor wants them"
    assert not [name for name, mode in tree(tmp_path).items() if mode & 0o022 and name not in links]


def test_package_is_the_whole_package_compiled(tmp_path: Path) -> None:
    install(DESTDIR=str(tmp_path))
    package = tmp_path / LIB / "virt_forward"
    there = {name for name in contents(package) if "__pycache__" not in name}
    source = REPO / "lib/virt_forward"
    assert there == {name for name in contents(source) if "__pycache__" not in name}
    for module in package.rglob("*.py"):
        assert list(module.parent.glob(f"__pycache__/{module.stem}.*.pyc")), f"{module} is not compiled"


def test_tracebacks_name_the_installed_place(tmp_path: Path) -> None:
    install(DESTDIR=str(tmp_path))
    compiled = b"".join(path.read_bytes() for path in (tmp_path / LIB).rglob("*.pyc"))
    assert b"/usr/local/lib/virt-forward/virt_forward/errors.py" in compiled
    assert str(tmp_path).encode() not in compiled


def test_no_configuration_is_made(tmp_path: Path) -> None:
    install(DESTDIR=str(tmp_path))
    assert not (tmp_path / "etc/virt-forward").exists()


def test_second_time_changes_nothing(tmp_path: Path) -> None:
    install(DESTDIR=str(tmp_path))
    before = (tree(tmp_path), {n: c for n, c in contents(tmp_path).items() if not n.endswith(".pyc")})
    install(DESTDIR=str(tmp_path))
    assert before == (tree(tmp_path), {n: c for n, c in contents(tmp_path).items() if not n.endswith(".pyc")})


def test_module_that_is_no_more_goes_with_the_update(tmp_path: Path) -> None:
    install(DESTDIR=str(tmp_path))
    old = put(tmp_path / LIB / "virt_forward/of_yesterday.py")
    install(DESTDIR=str(tmp_path))
    assert not old.exists()


def test_bytecode_is_valid_whatever_the_times_of_the_sources(tmp_path: Path) -> None:
    """A packager, a backup or cp may change the times: that must not make every hook compile again."""
    install(DESTDIR=str(tmp_path))
    for compiled in (tmp_path / LIB).rglob("*.pyc"):
        flags = int.from_bytes(compiled.read_bytes()[4:8], "little")
        assert flags == 1, f"{compiled} is not an unchecked hash-based pyc (PEP 552)"


def test_update_switches_the_link_and_removes_the_package_of_before(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    shutil.copytree(REPO / "lib/virt_forward", checkout / "lib/virt_forward")
    for part in ("installer", "hooks"):
        shutil.copytree(REPO / part, checkout / part)
    shutil.copy(REPO / "install.sh", checkout)
    root, env = tmp_path / "root", {"PATH": PATH, "DESTDIR": str(tmp_path / "root")}
    install(DESTDIR=str(root))
    before = (root / LIB / "virt_forward").readlink()
    (checkout / "lib/virt_forward/of_tomorrow.py").touch()
    done = run([checkout / "install.sh"], env=env)
    after = (root / LIB / "virt_forward").readlink()
    assert after != before
    assert (root / LIB / after / "of_tomorrow.py").exists()
    assert f"remove {root}/{LIB}/{before.parent}, which was replaced" in done.out
    assert sorted(path.name for path in (root / LIB).iterdir()) == sorted(
        ["made-directories", str(after.parent), "virt_forward"]
    )


def test_update_replaces_the_directory_of_a_version_before_the_link(tmp_path: Path) -> None:
    install(DESTDIR=str(tmp_path))
    link = tmp_path / LIB / "virt_forward"
    package = link.resolve()
    link.unlink()
    package.rename(link)
    package.parent.rmdir()
    put(link / "of_yesterday.py")
    install(DESTDIR=str(tmp_path))
    assert link.is_symlink()
    assert not (link / "of_yesterday.py").exists()
    assert len(list(link.parent.iterdir())) == 3


def test_strict_umask_does_not_lock_anybody_out(tmp_path: Path) -> None:
    run(["bash", "-c", f"umask 077; DESTDIR={tmp_path} exec {REPO}/install.sh"])
    assert not [name for name, mode in tree(tmp_path).items() if not mode & 0o004]


def test_another_prefix_is_written_into_what_needs_it(tmp_path: Path) -> None:
    install(DESTDIR=str(tmp_path), PREFIX="/opt/vf")
    for file in ("opt/vf/bin/virt-forward", "etc/libvirt/hooks/qemu", "etc/libvirt/hooks/network"):
        assert 'LIB = "/opt/vf/lib/virt-forward"' in (tmp_path / file).read_text()
    assert not (tmp_path / "usr").exists()


def test_installed_hook_finds_its_package(tmp_path: Path) -> None:
    install(DESTDIR=str(tmp_path), PREFIX="/opt/vf")
    hook = tmp_path / "etc/libvirt/hooks/qemu"
    hook.write_text(hook.read_text().replace('"/opt/vf', f'"{tmp_path}/opt/vf'))
    before = tree(tmp_path)
    run(
        [hook, "web", "start", "begin", "-"],
        stdin="<domain><name>web</name></domain>",
        env={"PATH": "/usr/bin"},
    )
    assert tree(tmp_path) == before, "a hook wrote into the package: it was not compiled for this Python"


def test_uninstall_leaves_nothing(tmp_path: Path) -> None:
    install(DESTDIR=str(tmp_path))
    install("--uninstall", DESTDIR=str(tmp_path))
    assert tree(tmp_path) == {}


def test_uninstall_finds_the_prefix_by_itself(tmp_path: Path) -> None:
    install(DESTDIR=str(tmp_path), PREFIX="/opt/vf")
    install("--uninstall", DESTDIR=str(tmp_path))
    assert tree(tmp_path) == {}


def test_uninstall_keeps_directories_that_were_there(tmp_path: Path) -> None:
    for name in ("etc/libvirt/hooks", "usr/local/share/man", "etc/systemd/system/nftables.service.d"):
        (tmp_path / name).mkdir(parents=True)
    before = tree(tmp_path)
    install(DESTDIR=str(tmp_path))
    install(DESTDIR=str(tmp_path))
    install("--uninstall", DESTDIR=str(tmp_path))
    assert tree(tmp_path) == before


def test_uninstall_twice_is_no_error(tmp_path: Path) -> None:
    assert install("--uninstall", DESTDIR=str(tmp_path)).status == 0
    assert tree(tmp_path) == {}


def test_uninstall_keeps_a_configuration_and_says_so(tmp_path: Path) -> None:
    install(DESTDIR=str(tmp_path))
    config = put(tmp_path / "etc/virt-forward/config.toml", "[policy]\n")
    done = install("--uninstall", DESTDIR=str(tmp_path))
    assert contents(tmp_path) == {"etc/virt-forward/config.toml": b"[policy]\n"}
    assert f"{config} is yours and stays" in done.out


def test_uninstall_keeps_a_drop_in_of_the_unit_and_says_so(tmp_path: Path) -> None:
    install(DESTDIR=str(tmp_path))
    drop_in = put(tmp_path / "etc/systemd/system/virt-forward.service.d/mine.conf", "[Service]\n")
    done = install("--uninstall", DESTDIR=str(tmp_path))
    assert [*contents(tmp_path)] == [str(drop_in.relative_to(tmp_path))]
    assert f"{drop_in.parent} is not from this installer and stays" in done.out


@pytest.mark.parametrize("driver", ["qemu", "network"])
def test_foreign_hook_is_left_untouched(tmp_path: Path, driver: str) -> None:
    foreign = put(tmp_path / "etc/libvirt/hooks" / driver)
    before = (foreign.read_bytes(), foreign.stat())
    done = install(DESTDIR=str(tmp_path))
    assert (foreign.read_bytes(), foreign.stat()) == before
    assert f"{foreign} is not ours" in done.out
    ours = foreign.with_name(f"{driver}.d") / "virt-forward"
    assert "# virt-forward hook" in ours.read_text()
    assert ours.stat().st_mode & 0o7777 == 0o755
    install("--uninstall", DESTDIR=str(tmp_path))
    assert contents(tmp_path) == {f"etc/libvirt/hooks/{driver}": before[0]}
    assert not ours.parent.exists()


@pytest.mark.parametrize("driver", ["qemu", "network"])
@pytest.mark.parametrize("link", [False, True])
def test_foreign_hook_in_our_second_place_is_refused_and_kept(
    tmp_path: Path, driver: str, *, link: bool
) -> None:
    first = put(tmp_path / "etc/libvirt/hooks" / driver)
    second = put(first.with_name(f"{driver}.d") / "virt-forward")
    if link:
        second.rename(second.with_name("10-other"))
        second.symlink_to("10-other")
    before = (tree(tmp_path), contents(tmp_path))
    done = install(DESTDIR=str(tmp_path), check=False)
    assert (done.status, done.out) == (1, "")
    says = f"neither {first} nor {second} is ours: rename the second, libvirt runs it under any name\n"
    assert done.err == f"install.sh: error: {says}"
    install("--uninstall", DESTDIR=str(tmp_path))
    assert (tree(tmp_path), contents(tmp_path)) == before


def test_foreign_hook_in_our_second_place_is_kept_where_the_first_is_free(tmp_path: Path) -> None:
    foreign = put(tmp_path / "etc/libvirt/hooks/qemu.d/virt-forward")
    before = tree(tmp_path)
    text = foreign.read_bytes()
    install(DESTDIR=str(tmp_path))
    install("--uninstall", DESTDIR=str(tmp_path))
    assert foreign.read_bytes() == text
    assert tree(tmp_path) == before


def test_link_to_nowhere_is_a_foreign_hook(tmp_path: Path) -> None:
    link = tmp_path / "etc/libvirt/hooks/qemu"
    link.parent.mkdir(parents=True)
    link.symlink_to("/somewhere/else")
    install(DESTDIR=str(tmp_path))
    assert link.is_symlink()
    assert (link.parent / "qemu.d/virt-forward").is_file()


def test_ours_never_runs_twice_once_the_foreign_hook_has_gone(tmp_path: Path) -> None:
    foreign = put(tmp_path / "etc/libvirt/hooks/qemu")
    other = put(tmp_path / "etc/libvirt/hooks/qemu.d/10-other")
    install(DESTDIR=str(tmp_path))
    foreign.unlink()
    install(DESTDIR=str(tmp_path))
    assert "# virt-forward hook" in foreign.read_text()
    assert [path.name for path in other.parent.iterdir()] == ["10-other"]


@pytest.mark.parametrize(("options", "remedy"), [((), "--uninstall it first"), (("--uninstall",), "none")])
def test_second_prefix_is_refused_before_anything_is_changed(
    tmp_path: Path, options: tuple[str, ...], remedy: str
) -> None:
    install(DESTDIR=str(tmp_path))
    before = tree(tmp_path)
    done = install(*options, DESTDIR=str(tmp_path), PREFIX="/opt/vf", check=False)
    says = f"install.sh: error: it is installed with PREFIX=/usr/local: use that, or {remedy}\n"
    assert (done.status, done.out, done.err) == (1, "", says)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("options", [(), ("--uninstall",)])
def test_dry_run_tells_what_the_real_run_does_and_touches_nothing(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    if options:
        install(DESTDIR=str(tmp_path))
    before = (tree(tmp_path), contents(tmp_path))
    would = install(*options, "--dry-run", DESTDIR=str(tmp_path)).out.splitlines()
    assert (tree(tmp_path), contents(tmp_path)) == before
    did = install(*options, DESTDIR=str(tmp_path)).out.splitlines()
    # Without a directory made, its children are "made" in the dry run, too: compare what is said of files.
    files = [line.removeprefix("would ") for line in would if "directory" not in line]
    assert files == [line for line in did if "directory" not in line]
    assert all(line.startswith("would ") for line in would)


def test_stopped_half_way_it_says_so_and_leaves_no_stage(tmp_path: Path) -> None:
    blocked = tmp_path / "usr/local/share/man"
    put(blocked, "not a directory\n")
    done = install(DESTDIR=str(tmp_path), check=False)
    assert done.status != 0
    assert "stopped half-way" in done.err
    assert not [
        name for name in tree(tmp_path) if Path(name).name in {".stage", ".new", ".old", ".virt-forward"}
    ]
    assert not (tmp_path / "etc/libvirt/hooks/qemu").exists(), "a hook without a command"
    blocked.unlink()
    install(DESTDIR=str(tmp_path))
    install("--uninstall", DESTDIR=str(tmp_path))
    assert contents(tmp_path) == {}
