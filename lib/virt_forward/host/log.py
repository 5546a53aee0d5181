"""Messages to the journal, identifier virt-forward. Hooks have no other place to speak."""

import os

from virt_forward import text

SOCKET = "/dev/log"
"""Where syslog(3) writes to, too: systemd-journald.socket(8), RFC 3164."""

SECONDS = 0.2
"""How long to wait for a journal that does not read. syslog(3) waits without end, and libvirtd with it."""

DAEMON = 3 << 3
ERROR, WARNING, INFO = 3, 4, 6
"""Facility and severities of syslog(3)."""


def error(message: str) -> None:
    """Log something that a person should look at."""
    _log(ERROR, message)


def warning(message: str) -> None:
    """Log something that was not as it should be and did no harm."""
    _log(WARNING, message)


def info(message: str) -> None:
    """Log what was done."""
    _log(INFO, message)


def _log(severity: int, message: str) -> None:
    import time

    head = f"<{DAEMON | severity}>{time.strftime('%b %e %H:%M:%S')} virt-forward[{os.getpid()}]: "
    _send((head + text.line(message)).encode())


def _send(data: bytes) -> None:
    # Most events have nothing to say, and need no sockets.
    import contextlib
    import socket

    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as journal,
    ):
        journal.settimeout(SECONDS)
        journal.connect(SOCKET)
        journal.send(data)
