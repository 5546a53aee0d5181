"""The run directory: records, index of claims, include file, and the lock over them.

guests/UUID.json     one record a guest
networks/UUID.json   one record a libvirt network
claims               the index over all guests' claims, derived from their records
ruleset.nft          the table as text, derived from the records and the configuration
unfinished           there while a change is being made, and after one that was cut off
todo/UUID.*.json     changes left by whoever could not have the lock in time
config.toml          the last valid configuration
effects              what we have set outside our table
lock                 held by whoever changes any of these
"""

import contextlib
import errno
import fcntl
import os
import signal
import time
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import NamedTuple

from virt_forward.errors import LockTimeout, StateError
from virt_forward.host import process
from virt_forward.model import Guest, Network
from virt_forward.state import records

DEFAULT_PATH = "/run/virt-forward"
LOCK_SECONDS = 12.0
"""How long a hook waits for its turn. It has time left then to plan a change, and to queue it."""


STARTED = ".started"
"""How the name of a change ends that was queued without a record: the guest that is prepared runs."""


class Queued(NamedTuple):
    """A queued change: the file's name, whose change it is, and what the guest is to be."""

    name: str
    uuid: str
    guest: Guest | None


class Store:
    """The run directory at ``path``. Nothing here is changed but under ``lock()``."""

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

    def knows(self, uuid: str) -> bool:
        """Tell, without the lock, whether a guest has a record."""
        return os.path.exists(self._at("guests", f"{uuid}.json"))

    @contextlib.contextmanager
    def lock(self, seconds: float | None = None) -> Iterator[None]:
        """Hold the lock; raises LockTimeout after ``seconds``, StateError where it cannot be had."""
        limit = process.left(LOCK_SECONDS if seconds is None else seconds)
        fd = self._locked(limit, time.monotonic() + limit)
        process.held.add(fd)
        try:
            process.end_if_unwanted()
            yield
        finally:
            process.release(fd)

    def _locked(self, limit: float, until: float) -> int:
        while True:
            fd = self._open_lock()
            try:
                _flock(fd, limit, until)
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
            raise self._unusable(error) from None

    def _is_lock(self, fd: int) -> bool:
        """Tell whether others would open this very file: somebody may have removed the directory."""
        try:
            return os.path.samestat(os.fstat(fd), os.stat(self._at("lock")))
        except FileNotFoundError:
            return False

    def _make_directories(self) -> None:
        try:
            for path in (self.path, *map(self._at, ("guests", "networks", "todo"))):
                if not os.path.isdir(path):
                    os.makedirs(path, 0o700, exist_ok=True)
        except OSError as error:
            raise self._unusable(error) from None

    def _unusable(self, error: OSError) -> StateError:
        hint = (
            "run it as root" if isinstance(error, PermissionError) else "see df and mount for this directory"
        )
        return StateError(f"{error.filename or self.path}: {error.strerror}", hint)

    def read(self, name: str) -> str | None:
        """Return the text of a file, or None where there is none or it cannot be read as text."""
        try:
            with open(self._at(name), encoding="utf-8") as file:
                return file.read()
        except (OSError, UnicodeDecodeError):
            return None

    def write(self, name: str, text: str) -> None:
        """Replace a file as a whole: whoever reads it sees the old or the new text."""
        path = self._at(name)
        # Not everybody who writes has the lock, so each process has a name of its own.
        temporary = self._at(f".{os.path.basename(name)}.{os.getpid()}.new")
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(fd, "w", encoding="utf-8") as file:
                file.write(text)
            os.rename(temporary, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise self._unusable(error) from None

    def sweep(self) -> None:
        """Remove what processes left that were killed while they wrote."""
        for name in self._list(""):
            pid = name.rpartition(".new")[0].rpartition(".")[2]
            if name.startswith(".") and pid.isdigit() and not os.path.exists(f"/proc/{pid}"):
                self.remove(name)

    def remove(self, name: str) -> None:
        """Remove a file; no error where there is none."""
        try:
            os.unlink(self._at(name))
        except FileNotFoundError:
            pass
        except OSError as error:
            raise self._unusable(error) from None

    def guest(self, uuid: str) -> Guest | None:
        """Return a guest's record, or None; raises StateError where it is damaged."""
        text = self.read(f"guests/{uuid}.json")
        if text is None and self.knows(uuid):
            raise StateError(f"{self._at('guests', uuid)}.json: cannot be read as text")
        return None if text is None else self._checked(uuid, text, f"guests/{uuid}.json")

    def _checked(self, uuid: str, text: str, name: str) -> Guest:
        where = self._at(name)
        guest = records.load_guest(text, where)
        if guest.uuid != uuid:
            raise StateError(f"{where}: is the record of another guest, {guest.uuid}")
        return guest

    def age_of_guest(self, uuid: str) -> float:
        """Return how many seconds ago a guest's record was written; infinity where there is none."""
        try:
            return abs(time.time() - os.stat(self._at("guests", f"{uuid}.json")).st_mtime)
        except OSError:
            return float("inf")

    def guests(self) -> tuple[list[Guest], list[StateError]]:
        """Return all records, and what is wrong with those that are damaged."""
        found, errors = [], []
        for uuid in self._names("guests"):
            try:
                guest = self.guest(uuid)
            except StateError as error:
                errors.append(error)
            else:
                found += [guest] if guest else []
        return found, errors

    def put(self, uuid: str, guest: Guest | None) -> None:
        """Write or remove a guest's record."""
        if guest is None:
            self.remove(f"guests/{uuid}.json")
        else:
            self.write(f"guests/{uuid}.json", records.dump_guest(guest))

    def queue(self, uuid: str, guest: Guest | None) -> None:
        """Queue a change for whoever holds the lock next, as it could not be had in time."""
        process.end_if_unwanted()
        # The time since boot does not jump, and sorts what was queued for one guest.
        name = f"{uuid}.{time.monotonic_ns():020}.{os.getpid()}"
        self.write(f"todo/{name}.json", records.dump_guest(guest) if guest else "")

    def queue_started(self, uuid: str) -> None:
        """Queue that a guest which is recorded as prepared runs now: an empty file needs no space."""
        process.end_if_unwanted()
        self.write(f"todo/{uuid}.{time.monotonic_ns():020}.{os.getpid()}{STARTED}.json", "")

    def queued(self) -> tuple[list[Queued], list[StateError]]:
        """Return the queued changes, the oldest of each guest first, and what cannot be read."""
        found, errors = [], []
        for name in self._names("todo"):
            uuid, path = name.partition(".")[0], f"todo/{name}.json"
            text = self.read(path)
            try:
                if name.endswith(STARTED):
                    guest = self.guest(uuid)
                    running = guest and guest._replace(phase="running")
                    found.append(Queued(name, uuid if running else "", running))
                else:
                    found.append(Queued(name, uuid, self._checked(uuid, text, path) if text else None))
            except StateError as error:
                errors.append(error)
                found.append(Queued(name, "", None))
        return found, errors

    def dequeue(self, names: Iterable[str]) -> None:
        """Remove queued changes that have been made."""
        for name in names:
            self.remove(f"todo/{name}.json")

    def networks(self) -> list[Network]:
        """Return the records of networks; damaged ones count as absent."""
        found = []
        for uuid in self._names("networks"):
            name = f"networks/{uuid}.json"
            with contextlib.suppress(StateError):
                found.append(records.load_network(self.read(name) or "", self._at(name)))
        return found

    def put_network(self, uuid: str, network: Network | None) -> None:
        """Write or remove a network's record."""
        if network is None:
            self.remove(f"networks/{uuid}.json")
        else:
            self.write(f"networks/{uuid}.json", records.dump_network(network))

    def _names(self, directory: str) -> list[str]:
        names = self._list(directory)
        return sorted(name[:-5] for name in names if name.endswith(".json") and not name.startswith("."))

    def _list(self, directory: str) -> list[str]:
        try:
            return os.listdir(self._at(directory))
        except OSError:
            return []


def _flock(fd: int, limit: float, until: float) -> None:
    """Wait for the lock in the kernel's queue, which is fair, for a bounded time."""

    def expired(_signal: int, _frame: FrameType | None) -> None:
        raise LockTimeout(f"another virt-forward process has held the lock for {limit:.2g} seconds")

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
