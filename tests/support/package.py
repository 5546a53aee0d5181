"""The Debian package, built from the checkout in a root file system that is made once."""

from __future__ import annotations

import base64
import functools
from pathlib import Path
from typing import NamedTuple

from support import bare, cache
from support.machine import MIRROR, SOURCE
from support.proc import run

SUITE = "trixie"
TOOLS = ("debhelper", "dh-python", "lintian", "python3")
# The compilers of build-essential are not needed for it. What git and the tools of development keep in a
# checkout is no part of a source package.
BUILD = f"""
set -e
mkdir -p /tmp/build/virt-forward
cd {SOURCE}
tar -c --exclude=./.[a-z]* --exclude=./tests --exclude=__pycache__ . | tar -x -C /tmp/build/virt-forward
cd /tmp/build/virt-forward
dpkg-buildpackage --no-sign --no-check-builddeps --build=full >../log 2>&1 || {{ cat ../log; exit 1; }}
cd ..
lintian --allow-root --tag-display-limit 0 --info --pedantic --display-info *.changes \\
    >lintian 2>&1 || echo "exit status $?" >>lintian
base64 -w 0 *.deb
echo
cat lintian
"""


class Package(NamedTuple):
    """The package as a file's content, and what lintian says of source and package."""

    deb: bytes
    lintian: str


def rootfs() -> Path:
    """Return a root file system with what builds Debian packages, made when it is first wanted."""
    return cache.kept(f"build-{SUITE}", _bootstrap, f"a Debian {SUITE} that builds packages")


def _bootstrap(folder: Path) -> None:
    words = ["mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory", "--quiet"]
    words += ["--aptopt=APT::Install-Recommends false", "--dpkgopt=force-unsafe-io"]
    run([*words, f"--include={','.join(TOOLS)}", SUITE, str(folder), MIRROR], timeout=900)


@functools.cache
def build() -> Package:
    """Build the package from the checkout, without network; raises where that fails."""
    encoded, _, said = bare.run_in(rootfs(), ["sh", "-c", BUILD], timeout=180).out.partition("\n")
    return Package(base64.b64decode(encoded), said)
