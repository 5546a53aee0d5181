"""systemd, the service manager of this host."""

import os
from functools import cache

from virt_forward.host.process import run


@cache
def version() -> int:
    """Return the version of systemd, 0 where it is not known."""
    words = run(["systemctl", "--version"]).stdout.split()
    return int(words[1]) if len(words) > 1 and words[1].isdigit() else 0


def has_networkd() -> tuple[bool, bool]:
    """Tell whether networkd is running, and is enabled; both where systemd is not the service manager."""
    if not os.path.isdir("/run/systemd/system"):
        return True, True
    asked = ("is-active", "is-enabled")
    running, enabled = (
        run(["systemctl", "-q", word, "systemd-networkd.service"]).status == 0 for word in asked
    )
    return running, enabled
