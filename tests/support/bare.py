"""A Debian with nothing but what every Debian has: where the README's first command has to work."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from support import cache, netns
from support.machine import MIRROR, SOURCE
from support.proc import REPO, Done, run

HERE = Path(__file__).parent
SUITES = ("bookworm", "trixie")
# What a test may install is fetched beforehand and waits where apt keeps it; not one of them is installed.
FETCHED = ("python3", "python3-lxml", "python3-libvirt", "nftables", "iproute2")
FETCH = "apt-get -qq update && apt-get -qq install --download-only --no-install-recommends " + " ".join(
    FETCHED
)
ENV = {"PATH": netns.PATH, "HOME": "/root"}


def rootfs(suite: str) -> Path:
    """Return a minbase root file system of a suite, made when it is first wanted."""
    return cache.kept(f"bare-{suite}", lambda folder: _bootstrap(suite, folder), f"a bare Debian {suite}")


def _bootstrap(suite: str, folder: Path) -> None:
    words: list[str | Path] = [
        "mmdebstrap",
        "--mode=root",
        "--variant=minbase",
        "--format=directory",
        "--quiet",
    ]
    run([*words, "--dpkgopt=force-unsafe-io", suite, folder, MIRROR], timeout=600)
    shutil.copy("/etc/resolv.conf", folder / "etc/resolv.conf")
    # A fresh one has Debian's own apt configuration, which keeps what it fetches.
    run(["chroot", folder, "sh", "-c", FETCH], env={**ENV, "DEBIAN_FRONTEND": "noninteractive"}, timeout=600)


def run_bare(suite: str, argv: Sequence[str], *, check: bool = True, timeout: float = 120) -> Done:
    """Run a command as root of a bare Debian, in namespaces that end with it; the checkout is at SOURCE.

    It has no network: apt finds what was fetched.
    """
    return run_in(rootfs(suite), argv, check=check, timeout=timeout)


def run_in(
    root: Path, argv: Sequence[str], *, stdin: str = "", check: bool = True, timeout: float = 120
) -> Done:
    """Run a command in a root file system that stays as it is; see :func:`run_bare`."""
    own = ["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "--uts", "--ipc"]
    enter: list[str | Path] = ["unshare", *own, "bash", HERE / "bare.sh", root, REPO, SOURCE]
    return run([*enter, *argv], stdin=stdin, env=ENV, check=check, timeout=timeout)
