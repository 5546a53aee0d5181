"""The functions of the Debian package's maintainer scripts, on a directory of hooks."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.proc import REPO, Done, run
from system.install.support import PATH, contents, tree

FOREIGN = "#!/bin/sh\necho somebody else\n"


def call(hooks: Path, script: str, *, check: bool = True) -> Done:
    """Run shell text that has the functions, with the checkout as the installed package."""
    read = f'. "{REPO}/debian/hooks.sh"; HOOKS="{hooks}" LIB="{REPO}"'
    return run(["sh", "-ec", f"{read}; {script}"], env={"PATH": PATH}, check=check)


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(FOREIGN)
    return path


@pytest.mark.parametrize("driver", ["qemu", "network"])
def test_foreign_hook_gets_ours_beside_it(tmp_path: Path, driver: str) -> None:
    foreign = put(tmp_path / driver)
    call(tmp_path, 'put_hooks "$LIB"')
    ours = tmp_path / f"{driver}.d/virt-forward"
    assert foreign.read_text() == FOREIGN
    assert f'LIB = "{REPO}"' in ours.read_text()
    call(tmp_path, "remove_hooks")
    assert contents(tmp_path) == {driver: FOREIGN.encode()}
    assert not ours.parent.exists()


@pytest.mark.parametrize("driver", ["qemu", "network"])
@pytest.mark.parametrize("step", ["refuse_two_foreign", 'put_hooks "$LIB"'])
@pytest.mark.parametrize("link", [False, True])
def test_foreign_hook_in_our_second_place_is_refused_and_kept(
    tmp_path: Path, driver: str, step: str, *, link: bool
) -> None:
    first, second = put(tmp_path / driver), tmp_path / f"{driver}.d/virt-forward"
    if link:
        second.parent.mkdir()
        second.symlink_to("/nowhere")
    else:
        put(second)
    before = (tree(tmp_path), contents(tmp_path))
    done = call(tmp_path, step, check=False)
    says = f"neither {first} nor {second} is ours: rename the second, libvirt runs it under any name\n"
    assert (done.status, done.err) == (1, f"virt-forward: {says}")
    call(tmp_path, "remove_hooks")
    assert (tree(tmp_path), contents(tmp_path)) == before
