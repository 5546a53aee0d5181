"""Fetch everything now, so that no test has to wait for it: ``python -m support.prepare``."""

from __future__ import annotations

from support import bare, guest, machine, package


def main() -> None:
    guest.assets()
    for suite in machine.SUITES:
        machine.rootfs(suite)
    machine.layer(machine.SUITES[0], machine.PROGRAMS)
    for suite in bare.SUITES:
        bare.rootfs(suite)
    package.rootfs()


if __name__ == "__main__":
    main()
