"""Switches of the kernel: files of one word in /proc/sys and /sys."""

from virt_forward import log


def read(path: str) -> str:
    """Return what a switch says; nothing where it is not there."""
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def turn(path: str, value: str, otherwise: str) -> None:
    """Set a switch; ``otherwise`` is what to log of the consequences where that fails."""
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(value)
    except FileNotFoundError:
        pass  # the interface is gone, and its switches with it
    except OSError as error:
        log.error(f"{path}: {error.strerror}; {otherwise}")
