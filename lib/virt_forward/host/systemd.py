"""systemd, the service manager of this host."""

from functools import cache

from virt_forward.host.process import run


@cache
def version() -> int:
    """Return the version of systemd, 0 where it is not known."""
    words = run(["systemctl", "--version"]).stdout.split()
    return int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
