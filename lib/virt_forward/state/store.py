"""The run directory: the state, the table as text, and the lock over both.

state.db      the state (state/database.py)
ruleset.nft   the table as text, derived from guests and configuration
guests/UUID   an empty file for each guest in the state, for hooks/prefilter.py; it may be there
              without a guest, but never the other way round
lock          held by whoever changes any of these
"""

import contextlib
import errno
import fcntl
import os
import signal
import time
from collections.abc import Iterable, Iterator
from types import FrameType

from virt_forward.errors import LockTimeout, StateError, StateRemovedError
from virt_forward.host import log, process
from virt_forward.host.files import list_directory
from virt_forward.model import Guest
from virt_forward.state import database
from virt_forward.state.snapshot import Snapshot

DEFAULT_PATH = "/run/virt-forward"
LOCK_SECONDS = 12.0
"""How long a hook waits for its turn. It has time left then to plan a change, and to queue it."""

MARKERS = "guests"


class Store:
    """The run directory at ``path``."""

    def __init__(self, path: str | None = None) -> None:
        self.path = path or os.environ.get("VIRT_FORWARD_RUN_DIR") or DEFAULT_PATH

    def _at(self, *parts: str) -> str:
        return os.path.join(self.path, *parts)

    @property
    def include_path(self) -> str:
        """The path of the include file."""
        return self._at("ruleset.nft")

    def exists(self) -> bool:
        """Tell whether there is any state at all."""
        return os.path.isdir(self.path)

    @contextlib.contextmanager
    def open(self, seconds: float | None = None, *, create: bool = True) -> Iterator[Snapshot]:
        """Open the state, with the lock held; the state of an older version is taken over first.

        A damaged database is renamed, and its place taken by an empty one. Without ``create``, where
        there is no state it is empty and nothing is written. Raises LockTimeout after ``seconds``, and
        StateError where the state cannot be had.
        """
        if not create and not (os.path.exists(self._at(database.FILE)) or self._is_old()):
            yield Snapshot(database.in_memory(), self.path, created=True)
            return
        with self.lock(seconds), contextlib.closing(self._snapshot()) as snapshot:
            try:
                yield snapshot
            except database.DamagedStateError as error:
                self._set_aside(error)
                raise

    def _snapshot(self) -> Snapshot:
        path = self._at(database.FILE)
        try:
            connection = database.connect(self.path)
        except database.DamagedStateError as error:
            self._set_aside(error)
            connection = None
        if connection is None:
            return self._create(path)
        if self._is_old():
            from virt_forward.state import upgrade

            upgrade.remove(self.path)
        snapshot = Snapshot(connection, path)
        if not os.path.isdir(self._at(MARKERS)):
            with snapshot.transaction():
                self._restore_markers(snapshot)
        return snapshot

    def _set_aside(self, error: StateError) -> None:
        log.error(f"{error}; it is replaced, and kept as {database.FILE}.{database.UNUSED}")
        database.set_aside(self.path)

    def replace_newer(self) -> None:
        """Put a new state in the place of a newer version's, if that is what is there; raises StateError."""
        with self.lock():
            try:
                connection = database.connect(self.path)
                if connection:
                    connection.close()
            except database.NewerStateError as error:
                effects = database.effects_of_newer(self.path)
                self._set_aside(error)
                with contextlib.closing(self._snapshot()) as snapshot:
                    snapshot.set_effects(effects)
            except database.DamagedStateError:
                return  # open() replaces it

    def _is_old(self) -> bool:
        """Tell whether the directory is, at least in part, that of an older version."""
        return os.path.isdir(self._at("networks"))

    def _create(self, path: str) -> Snapshot:
        """Return a new state, with what an older version has left in it: all of it, or no state at all."""
        from virt_forward.state import upgrade

        old = upgrade.read(self.path)
        snapshot = Snapshot(database.create(self.path), path, created=True)
        try:
            with database.failing(self._at(MARKERS)):
                os.makedirs(self._at(MARKERS), 0o700, exist_ok=True)
            self.mark([*old.guests, *old.queued])
            # What is in the kernel may be the table of a state that was lost: never its revision by chance.
            snapshot.fill(old, int.from_bytes(os.urandom(3)) + 1)
        except BaseException:
            snapshot.close()
            raise
        upgrade.remove(self.path)
        return snapshot

    @contextlib.contextmanager
    def peek(self) -> Iterator[Snapshot | None]:
        """Open the state without the lock, to read a little of it or to queue a change.

        SQLite's own locks are enough for that. Gives None where there is no state yet.
        """
        connection = database.connect(self.path)
        if connection is None:
            yield None
            return
        with contextlib.closing(Snapshot(connection, self._at(database.FILE))) as snapshot:
            yield snapshot

    def change_counter(self) -> int:
        """Return a number that changes with the state; it is read without the lock."""
        return database.change_counter(self.path)

    def _restore_markers(self, state: Snapshot) -> None:
        """Make the folder of the markers where there is none, with those of all guests in it from the start.

        Called in a transaction, as ``mark`` is without the lock. Raises StateError.
        """
        folder, temporary = self._at(MARKERS), f".{MARKERS}.new"
        if not os.path.isdir(folder):
            with database.failing(folder):
                os.makedirs(self._at(temporary), 0o700, exist_ok=True)
                self.mark(state.versions(), temporary)
                os.rename(self._at(temporary), folder)

    def mark(self, uuids: Iterable[str], folder: str = MARKERS) -> None:
        """Make sure that guests which are to be in the state have their markers; raises StateError."""
        for path in (self._at(folder, uuid) for uuid in uuids):
            if not os.path.exists(path):
                with database.failing(path):
                    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def marked(self) -> set[str]:
        """Return the UUIDs of the guests with markers."""
        return set(list_directory(self._at(MARKERS)))

    def queue(self, state: Snapshot, uuid: str, guest: Guest | None) -> None:
        """Queue a change of a guest, with its marker if it is to run; without the lock, see ``peek``.

        Raises StateError.
        """

        def mark() -> None:
            self._restore_markers(state)
            self.mark([uuid] if guest else ())

        state.queue(uuid, guest, mark)

    def unmark(self, state: Snapshot, uuids: set[str]) -> None:
        """Remove the markers of guests that are recorded no more, but for those queued meanwhile.

        A failure is only logged. A guest that is queued without the lock gets its marker in the
        transaction that queues it, and one transaction looks at the queue and removes markers: so
        whichever of both comes first, the guest's marker is there once it is queued, at any time.
        """
        if not uuids:
            return
        try:
            with state.transaction():
                for uuid in uuids - state.queued_now():
                    self._unmark(uuid)
        except StateError as error:
            log.warning(str(error))

    def _unmark(self, uuid: str) -> None:
        try:
            os.unlink(self._at(MARKERS, uuid))
        except FileNotFoundError:
            pass
        except OSError as error:
            log.warning(str(database.unusable(self._at(MARKERS, uuid), error)))

    @contextlib.contextmanager
    def lock(self, seconds: float | None = None) -> Iterator[None]:
        """Hold the lock; raises LockTimeout after ``seconds``, StateError where it cannot be had.

        A StateError of what is done meanwhile becomes StateRemovedError where the run directory was removed.
        """
        limit = process.left(LOCK_SECONDS if seconds is None else seconds)
        fd = self._locked(limit, time.monotonic() + limit)
        process.inherited.add(fd)
        try:
            process.end_if_unwanted()
            yield
        except StateError:
            if self._is_lock(fd):
                raise
            raise StateRemovedError(f"{self.path} was removed while it was in use") from None
        finally:
            process.release(fd)

    def _locked(self, limit: float, until: float) -> int:
        while True:
            fd = self._open_lock()
            try:
                message = f"another virt-forward process has held the lock for {limit:.2g} seconds"
                wait_for_lock(fd, until, message)
                if self._is_lock(fd):
                    return fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def _open_lock(self) -> int:
        self._make_directories()
        try:
            try:
                return os.open(self._at("lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                if error.errno != errno.EROFS or not os.path.exists(self._at("lock")):
                    raise
                # What is there already can be locked on a read-only file system, too.
                return os.open(self._at("lock"), os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise database.unusable(error.filename or self.path, error) from None

    def _is_lock(self, fd: int) -> bool:
        """Tell whether others would open this very file: somebody may have removed the directory."""
        try:
            return os.path.samestat(os.fstat(fd), os.stat(self._at("lock")))
        except FileNotFoundError:
            return False

    def _make_directories(self) -> None:
        try:
            if not os.path.isdir(self.path):
                os.makedirs(self.path, 0o700, exist_ok=True)
        except OSError as error:
            raise database.unusable(error.filename or self.path, error) from None


def wait_for_lock(fd: int, until: float, message: str) -> None:
    """Lock an open file (flock(2)): wait in the kernel's queue, which is fair, up to a monotonic time.

    Raises LockTimeout with ``message`` after that.
    """

    def expired(_signal: int, _frame: FrameType | None) -> None:
        raise LockTimeout(message)

    before = signal.signal(signal.SIGALRM, expired)
    # Zero would switch the timer off; one that rings just before the wait begins has to ring again.
    signal.setitimer(signal.ITIMER_REAL, max(until - time.monotonic(), 0.001), 1)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
    except OSError as error:
        raise StateError(f"the lock cannot be had: {error.strerror}") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
