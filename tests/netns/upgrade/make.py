"""Save what an older version leaves behind, as root: see data/README.md.

    PYTHONPATH=lib:tests python -m netns.upgrade.make CHECKOUT NAME

CHECKOUT is a folder with that version's ``hooks/`` and ``lib/``. The result is ``data/NAME/rest/``, with no
change under way, and ``data/NAME/interrupted/``.
"""

from __future__ import annotations

import fcntl
import shutil
import sys
import threading
from pathlib import Path

from netns.support import PHASES
from netns.upgrade import scenario
from support import netns, xml
from support.netns import HOOK_ENV, PATH, Lab

KILLER = "#!/bin/sh\nkill -KILL $PPID\n"
"""Stands in for nft: the hook dies before its change reaches the kernel."""

LOCK_TIMEOUT = 30.0


class Old:
    """The hooks of another version in a lab."""

    def __init__(self, lab: Lab, checkout: Path) -> None:
        self.lab, self.hooks = lab, checkout / "hooks"

    def event(self, name: str, operation: str, *, path: str = PATH, check: bool = True) -> None:
        """Run the qemu hook for one event of a guest."""
        self._run("qemu", [name, operation, PHASES[operation][0], "-"], scenario.domain(name, operation),
                  path, check)  # fmt: skip

    def network_started(self) -> None:
        """Run the network hook for the start of the libvirt network."""
        self._run("network", [scenario.HOUSE.name, "started", "begin", "-"], xml.network_hook(scenario.HOUSE))

    def _run(self, hook: str, words: list[str], text: str, path: str = PATH, check: bool = True) -> None:
        env = {**HOOK_ENV, **self.lab.env, "PATH": path}
        self.lab.host.run([self.hooks / hook, *words], stdin=text, env=env, check=check, timeout=LOCK_TIMEOUT)


def play(old: Old) -> None:
    """Bring every guest of the scenario as far as an undisturbed host takes it."""
    old.network_started()
    for name in ("web", "db", "wire", "gone"):
        old.event(name, "prepare")
        old.event(name, "started")
    old.event("twin", "reconnect")
    for name in ("mail", "ready", "late"):
        old.event(name, "prepare")


def _killed(old: Old) -> None:
    killer = old.lab.dir / "bin" / "nft"
    killer.parent.mkdir()
    killer.write_text(KILLER)
    killer.chmod(0o755)
    old.event("mail", "started", path=f"{killer.parent}:{PATH}", check=False)


def _queued(old: Old) -> None:
    with (old.lab.run_dir / "lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        events = (("ready", "started"), ("gone", "stopped"))
        hooks = [threading.Thread(target=old.event, args=words, kwargs={"check": False}) for words in events]
        for hook in hooks:
            hook.start()
        for hook in hooks:
            hook.join()


def save(lab: Lab, target: Path) -> None:
    """Write the run directory, libvirt's table and the switches to a folder."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(lab.run_dir, target / "run", ignore=shutil.ignore_patterns("lock"))
    (target / "libvirt.nft").write_text(lab.host.ruleset("table", "ip", "libvirt_network"))
    (target / "flags").write_text(scenario.flags(lab) + "\n")


def main(checkout: str, name: str) -> None:
    """Make data/NAME from a checkout."""
    with netns.lab() as lab:
        scenario.build(lab)
        old = Old(lab, Path(checkout).resolve())
        play(old)
        save(lab, scenario.DATA / name / "rest")
        _killed(old)
        _queued(old)
        save(lab, scenario.DATA / name / "interrupted")


if __name__ == "__main__":
    main(*sys.argv[1:])
