"""Creating files that do not exist yet, all of them or none."""

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
