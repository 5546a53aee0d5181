"""The protocol of sd_notify(3), without a library."""

import contextlib
import os
import socket


def notify(state: str) -> None:
    """Send ``state``, such as READY=1, to the service manager, if there is one."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(state.encode(), address)
