"""The lock of those who edit metadata: libvirt has no way to change it only if it is still as it was read.

It is not the lock of the state, which nobody may hold who calls libvirt: libvirt may be waiting for a hook
that waits for it.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator

from virt_forward.errors import LockTimeout, StateError
from virt_forward.state.store import Store

SECONDS = 30.0
PAUSE = 0.02


@contextlib.contextmanager
def edit_lock(store: Store, seconds: float = SECONDS) -> Iterator[None]:
    """Hold the lock, which is on the run directory itself.

    Raises LockTimeout after ``seconds``, StateError if there can be no run directory.
    """
    try:
        os.makedirs(store.path, 0o700, exist_ok=True)
        fd = os.open(store.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise StateError(f"{store.path} cannot be used: {error.strerror}") from None
    try:
        _lock(fd, time.monotonic() + seconds)
        yield
    finally:
        os.close(fd)


def _lock(fd: int, until: float) -> None:
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > until:
                raise LockTimeout("another virt-forward add or remove does not come to its end") from None
            time.sleep(PAUSE)
