"""Places to install into: a packager's directory, or this host seen through private mounts."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path

from support.proc import REPO, Done, run

INSTALL = REPO / "install.sh"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# /etc is a copy, /usr/local and /run are empty, and there is no network but lo.
PRIVATE = """
set -euo pipefail
mount --make-rprivate /
mount -t tmpfs private /run
mount -t tmpfs private /usr/local
cp -a /etc /run/etc
mount --bind /run/etc /etc
rm -rf /etc/libvirt/hooks /etc/systemd/system/nftables.service.d /etc/virt-forward
mkdir -p /etc/libvirt/hooks
ip link set lo up
"""


def install(*options: str, check: bool = True, env: Mapping[str, str] | None = None, **more: str) -> Done:
    """Run install.sh with this environment and no other."""
    clean = {"PATH": PATH, "HOME": "/nonexistent", **(env or {}), **more}
    return run([INSTALL, *options], env=clean, check=check)


def functions(script: str, *, check: bool = True) -> Done:
    """Run shell text that has all functions of install.sh, of which nothing has run yet."""
    return run(["bash", "-c", f'. "{INSTALL}"; {script}'], env={"PATH": PATH}, check=check)


def private_host(script: str, *, timeout: float = 90) -> str:
    """Run shell text as root on a host of its own; INSTALL is the installer."""
    # Processes of its own: libvirt waits until a destroyed guest is reaped, which pytest would not do.
    own = ["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    argv = ["unshare", *own, "bash", "-c", PRIVATE + textwrap.dedent(script)]
    env = {"PATH": PATH, "HOME": "/nonexistent", "INSTALL": str(INSTALL)}
    return run(argv, timeout=timeout, env=env).out


def tree(root: Path) -> dict[str, int]:
    """Map all that is under a directory to its permissions."""
    return {str(path.relative_to(root)): path.lstat().st_mode & 0o7777 for path in root.rglob("*")}


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
