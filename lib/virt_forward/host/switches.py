"""Kernel settings: files of one word in /proc/sys and /sys."""

from virt_forward.host import log
from virt_forward.host.files import read_text


def read(path: str) -> str:
    """Return the value of a setting; empty if the file does not exist."""
    return read_text(path).strip()


def is_on(path: str) -> bool | None:
    """Tell whether a switch is on; None where it is neither on nor off, or not found."""
    return {"1": True, "0": False}.get(read(path))


def turn(path: str, value: str, otherwise: str) -> bool:
    """Write a setting, and tell whether it is written; ``otherwise`` is the consequence to log if not.

    A file that does not exist is no error: the interface was removed.
    """
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(value)
    except FileNotFoundError:
        return False
    except OSError as error:
        log.error(f"{path}: {error.strerror}; {otherwise}")
        return False
    return True
