"""Creating files that do not exist yet, all of them or none; and replacing one as a whole."""

import contextlib
import os
from collections.abc import Iterable

from virt_forward.errors import VirtForwardError


def create_all(files: Iterable[tuple[str, str]]) -> None:
    """Create files, given by path and text, with mode 0644, and the directories that they need.

    Raises VirtForwardError, and creates none of them, if one exists or cannot be written.
    """
    created: list[str] = []
    try:
        for path, text in files:
            os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            created.append(path)
            with open(descriptor, "w", encoding="utf-8") as file:
                os.fchmod(descriptor, 0o644)
                file.write(text)
    except OSError as error:
        for path in created:
            with contextlib.suppress(OSError):
                os.unlink(path)
        raise VirtForwardError(f"{error.filename or path}: {error.strerror}; nothing was written") from None


def replace(path: str, text: str) -> None:
    """Write a file with mode 0644 by a rename: whoever reads it sees the old or the new text as a whole.

    Raises VirtForwardError if it cannot be written.
    """
    folder, name = os.path.split(os.path.abspath(path))
    # Not the name of the file with something after it: collectors take every file with their suffix.
    temporary = os.path.join(folder, f".{name}.{os.getpid()}.new")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(text)
        os.rename(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise VirtForwardError(f"{path}: cannot be written: {error.strerror}") from None
