"""Messages to the journal, with the identifier virt-forward. Hooks have no other output."""

import os

from virt_forward import text

SOCKET = "/dev/log"
"""The socket of syslog(3): systemd-journald.socket(8), RFC 3164."""

SECONDS = 0.2
"""How long to wait for a journal that does not read. syslog(3) would wait forever, and with it libvirtd."""

WINDOW_SECONDS = 15.0
"""In which time that is the sum for all messages: those that it does not take at once then are lost."""

_left, _until = 0.0, 0.0
"""How long to wait yet, and until when that is so, on the monotonic clock."""

DAEMON = 3 << 3
ERROR, WARNING, INFO = 3, 4, 6
"""Facility and severities of syslog(3)."""


def error(message: str) -> None:
    """Log a failure that needs attention."""
    _log(ERROR, message)


def warning(message: str) -> None:
    """Log something unexpected that has no bad effect."""
    _log(WARNING, message)


def info(message: str) -> None:
    """Log a normal event."""
    _log(INFO, message)


def _log(severity: int, message: str) -> None:
    import time

    head = f"<{DAEMON | severity}>{time.strftime('%b %e %H:%M:%S')} virt-forward[{os.getpid()}]: "
    _send((head + text.line(message)).encode())


def _send(data: bytes) -> None:
    global _left, _until  # noqa: PLW0603 - of this process's messages together
    # Imported here, as most events log nothing. The module socket takes 5 ms, and builds on this one.
    import time
    from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_DGRAM, socket

    now = time.monotonic()
    if now >= _until:
        _left, _until = SECONDS, now + WINDOW_SECONDS
    try:
        journal = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC)
        try:
            journal.settimeout(_left)
            journal.connect(SOCKET)
            journal.send(data)
        finally:
            journal.close()
    except OSError:
        pass
    _left = max(0.0, _left - (time.monotonic() - now))
