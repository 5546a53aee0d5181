"""The include file: a new text is written beside it, and takes its place when all else is done."""

import contextlib
import os
from collections.abc import Iterable

from virt_forward.host import log
from virt_forward.state import database


class IncludeFile:
    """The include file at ``path``; ``name`` tells which file is to take its place, empty for none.

    A name is made of what stat(2) says of a file and a rename keeps: any other file there, and one that
    somebody has edited, has another.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._staged = os.path.join(os.path.dirname(path), ".ruleset.nft.new")
        self.name = ""

    def is_named(self, name: str) -> bool:
        """Tell whether the file is the one of that name."""
        try:
            return _name(os.stat(self.path)) == name
        except OSError:
            return False

    def size(self) -> int:
        """Return the size in bytes; 0 where there is none."""
        try:
            return os.stat(self.path).st_size
        except OSError:
            return 0

    def read(self) -> bytes:
        """Return the text; empty where there is none."""
        try:
            with open(self.path, "rb") as file:
                return file.read()
        except OSError:
            return b""

    def stage(self, pieces: Iterable[bytes | memoryview]) -> None:
        """Write a new text; where that fails it is logged, and there is nothing to publish."""
        pieces = tuple(pieces)
        self.name = ""
        try:
            try:
                self._write(pieces)
            except OSError as error:
                # Rather none than a wrong one; and the old text may be what takes the space.
                log.warning(f"{database.unusable(self._staged, error)}; another attempt without the old text")
                os.unlink(self.path)
                self._write(pieces)
        except OSError as error:
            self.discard()
            log.error(f"{database.unusable(self.path, error)}; the include file is out of date")

    def _write(self, pieces: Iterable[bytes | memoryview]) -> None:
        fd = os.open(self._staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.writelines(pieces)
            file.flush()
            self.name = _name(os.fstat(fd))

    def discard(self) -> None:
        """Remove what was staged, if anything."""
        self.name = ""
        with contextlib.suppress(OSError):
            os.unlink(self._staged)

    def publish(self) -> None:
        """Put what was staged, if anything, in the place of the file: whoever reads sees one or the other."""
        if self.name:
            try:
                os.rename(self._staged, self.path)
            except OSError as error:
                log.error(f"{database.unusable(self.path, error)}; the include file is out of date")


def _name(found: os.stat_result) -> str:
    return f"{found.st_ino}:{found.st_size}:{found.st_mtime_ns}"
