"""Files of the host that may not exist: /proc, /sys, /etc and what other programs keep in /run."""

import os


def list_directory(directory: str) -> list[str]:
    """Return the names in a directory; none if it does not exist or cannot be read."""
    try:
        return os.listdir(directory)
    except OSError:
        return []


def read_text(path: str) -> str:
    """Return the text of a file; empty if it does not exist or cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
