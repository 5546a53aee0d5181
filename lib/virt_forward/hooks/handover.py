"""Handing an event over to the service, which has all modules loaded: the hook's side, and the protocol.

One connection an event, to the unix stream socket ``socket`` in the run directory. The hook sends
two sizes in bytes as a line, then what they count: a head of words separated by NUL, and libvirt's
XML. The head has what both sides must have in common (:func:`common`), the PATH to find programs in,
the driver and the hook's arguments. The answer is a line with the exit status and the size of what
is to be printed, then that text. Without a complete answer in time, the hook does the work itself.
"""

import os
import sys
import time

# The module socket takes 5 ms to import, and builds on this one.
from _socket import AF_UNIX, SO_PEERCRED, SOCK_CLOEXEC, SOCK_STREAM, SOL_SOCKET, socket

PROTOCOL = "1"
NAME = "socket"
SECONDS = 5.0
"""How long a hook waits for the answer."""

_UCRED = 12
"""The size of struct ucred, three integers: process, user, group (unix(7))."""


def _program() -> str:
    """Return a word that tells this installation of the package from any other one."""
    found = os.stat(__file__)
    return f"{found.st_dev}:{found.st_ino}:{found.st_mtime_ns}"


PROGRAM = _program()
"""Of the code that is loaded, not of what a later installation has put in its place."""


def open_directory() -> int:
    """Return a descriptor of the run directory; raises OSError."""
    path = os.environ.get("VIRT_FORWARD_RUN_DIR") or "/run/virt-forward"
    return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def socket_path(directory: int, name: str = NAME) -> str:
    """Return a short path of the socket in an open run directory: unix(7) allows 108 bytes."""
    return f"/proc/self/fd/{directory}/{name}"


def common(directory: int) -> list[str]:
    """Return what hook and service must have in common, for either to be able to do the other's work.

    The version of protocol and program, the network namespace, the run directory, the configuration.
    """
    places = (os.stat("/proc/self/ns/net"), os.fstat(directory))
    inodes = [f"{place.st_dev}:{place.st_ino}" for place in places]
    return [PROTOCOL, PROGRAM, *inodes, os.environ.get("VIRT_FORWARD_CONFIG", "")]


def is_own_peer(connection: socket) -> bool:
    """Tell whether a connection's other end is a process of our own user, which is root."""
    credentials = connection.getsockopt(SOL_SOCKET, SO_PEERCRED, _UCRED)
    return int.from_bytes(credentials[4:8], sys.byteorder) == os.geteuid()


def ask_service(driver: str, arguments: list[str], data: bytes) -> int | None:
    """Have the service handle an event, and return the exit status; None if the hook is to do it."""
    until = time.monotonic() + SECONDS
    connection = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
    try:
        _send(connection, [driver, *arguments], data)
        status, text = _receive(connection, until)
    except (OSError, ValueError):
        return None
    finally:
        # The service leaves what it has not begun by now.
        connection.close()
    os.write(2, text)
    return status


def _send(connection: socket, words: list[str], data: bytes) -> None:
    """Connect to the service and send an event. Raises OSError."""
    directory = open_directory()
    try:
        connection.settimeout(SECONDS)
        connection.connect(socket_path(directory))
        head = os.fsencode("\0".join([*common(directory), os.environ.get("PATH", ""), *words]))
    finally:
        os.close(directory)
    if not is_own_peer(connection):
        raise PermissionError("the socket is another user's")
    connection.sendall(b"%d %d\n%b%b" % (len(head), len(data), head, data))


def _receive(connection: socket, until: float) -> tuple[int, bytes]:
    """Return the exit status and the text for stderr. Raises OSError or ValueError without a whole answer.

    The end of the connection is not waited for, which takes the worker some more milliseconds.
    """
    found = b""
    while True:
        connection.settimeout(max(until - time.monotonic(), 0.0))
        more = connection.recv(65536)
        found += more
        line, end, text = found.partition(b"\n")
        if end:
            status, size = map(int, line.split())
            if len(text) == size:
                return status, text
        if not more:
            raise ValueError("no answer, or another one than it says")
