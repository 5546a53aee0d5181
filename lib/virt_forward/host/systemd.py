"""systemd, the service manager of this host."""

import os
from functools import cache

from virt_forward.host.process import run

NETWORKD = "systemd-networkd.service"


@cache
def version() -> int:
    """Return the version of systemd, 0 where it is not known."""
    words = run(["systemctl", "--version"]).stdout.split()
    return int(words[1]) if len(words) > 1 and words[1].isdigit() else 0


def is_manager() -> bool:
    """Tell whether systemd is the service manager of this host (sd_booted(3))."""
    return os.path.isdir("/run/systemd/system")


def is_active(unit: str) -> bool:
    """Tell whether a unit is running."""
    return run(["systemctl", "-q", "is-active", unit]).status == 0


def is_enabled(unit: str) -> bool:
    """Tell whether a unit is started at boot."""
    return run(["systemctl", "-q", "is-enabled", unit]).status == 0
