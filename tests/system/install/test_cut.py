"""An installation or removal killed before any one of its commands: --uninstall still leaves nothing."""

from __future__ import annotations

import itertools
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.proc import REPO, Done, run
from system.install.support import PATH, install, tree

# Commands that change something, as bash shows them before it expands them.
CHANGES = r'^("\$@"|mkdir|mv|cp|rm|rmdir|chmod|find|ln|sed .*>|printf .*>>|"\$python")'
# A package of one module, and a few files: what is copied does not matter here, and all are copied alike.
CUT = """
. "$INSTALL"
repo=$CHECKOUT data=$CHECKOUT/lib/virt_forward/data commands=0
count() { [[ $BASH_COMMAND =~ $CHANGES ]] && ((++commands == CUT)) && kill -KILL $$; return 0; }
compile_package() { :; }
list_files() {
    one_file 0755 "$prefix/bin/virt-forward" "$data/launcher"
    one_file 0644 "$prefix/share/man/man1/virt-forward.1" "$data/virt-forward.1"
    one_file 0644 "$unit" "$data/virt-forward.service"
    one_file 0644 /etc/systemd/system/nftables.service.d/virt-forward.conf "$data/nftables-virt-forward.conf"
}
set -T
trap count DEBUG
main "$@"
"""
THERE = ("etc/libvirt/hooks", "etc/systemd/system", "usr/local/bin", "usr/local/lib", "opt")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    made = tmp_path / "checkout"
    shutil.copytree(REPO / "lib/virt_forward/data", made / "lib/virt_forward/data")
    (made / "lib/virt_forward/__init__.py").touch()
    shutil.copytree(REPO / "hooks", made / "hooks")
    return made


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with directories that were there before us, some of them empty."""
    made = tmp_path / "root"
    for name in THERE:
        (made / name).mkdir(parents=True)
    return made


def cut(checkout: Path, root: Path, before: int, *options: str, prefix: str) -> Done:
    """Run install.sh, and end it before its ``before``-th command that changes something."""
    env = {"PATH": PATH, "INSTALL": str(REPO / "install.sh"), "CHECKOUT": str(checkout), "CHANGES": CHANGES}
    env |= {"DESTDIR": str(root), "PREFIX": prefix, "CUT": str(before)}
    return run(["bash", "-c", CUT, "install.sh", *options], env=env, check=False)


def cuts(checkout: Path, root: Path, *options: str, prefix: str) -> Iterator[int]:
    """End a run before each of its commands in turn; the loop's body finds what the cut left."""
    for before in itertools.count(1):
        done = cut(checkout, root, before, *options, prefix=prefix)
        if done.status == 0:
            assert before > 5, "the commands were not counted"
            return
        assert done.status == -signal.SIGKILL, done
        yield before


@pytest.mark.parametrize("prefix", ["/usr/local", "/opt/vf"])
def test_uninstall_after_an_install_cut_anywhere_leaves_nothing(
    checkout: Path, root: Path, prefix: str
) -> None:
    before = tree(root)
    for number in cuts(checkout, root, prefix=prefix):
        install("--uninstall", DESTDIR=str(root), PREFIX=prefix)
        assert tree(root) == before, f"cut before command {number}"
    for _ in range(2):
        install("--uninstall", DESTDIR=str(root))


def test_uninstall_cut_anywhere_is_finished_by_the_next_without_a_prefix(checkout: Path, root: Path) -> None:
    before = tree(root)
    whole = root.with_name("whole")
    assert cut(checkout, root, 0, prefix="/opt/vf").status == 0
    root.rename(whole)
    shutil.copytree(whole, root, symlinks=True)
    for number in cuts(checkout, root, "--uninstall", prefix=""):
        install("--uninstall", DESTDIR=str(root))
        assert tree(root) == before, f"cut before command {number}"
        shutil.rmtree(root)
        shutil.copytree(whole, root, symlinks=True)
    assert tree(root) == before


def test_install_after_one_cut_anywhere_is_whole(checkout: Path, root: Path) -> None:
    whole = root.with_name("whole")
    shutil.copytree(root, whole)
    assert cut(checkout, whole, 0, prefix="/opt/vf").status == 0
    fresh = tree(root)
    for number in cuts(checkout, root, prefix="/opt/vf"):
        assert cut(checkout, root, 0, prefix="/opt/vf").status == 0
        assert tree(root) == tree(whole), f"cut before command {number}"
        shutil.rmtree(root)
        for name in fresh:
            (root / name).mkdir(parents=True, exist_ok=True)
