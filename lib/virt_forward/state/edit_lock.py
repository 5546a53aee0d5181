"""The lock of those who edit metadata: libvirt has no way to change it only if it is still as it was read.

It is not the lock of the state, which nobody may hold who calls libvirt: libvirt may be waiting for a hook
that waits for it.
"""

import contextlib
import os
import time
from collections.abc import Iterator

from virt_forward.errors import StateError
from virt_forward.state.store import Store, wait_for_lock

SECONDS = 30.0


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
        message = "another virt-forward add or remove does not come to its end"
        wait_for_lock(fd, time.monotonic() + seconds, message)
        yield
    finally:
        os.close(fd)
