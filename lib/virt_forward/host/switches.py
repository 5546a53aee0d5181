"""Switches of the kernel: files of one word in /proc/sys and /sys."""

from virt_forward.host import log


def read(path: str) -> str:
    """Return what a switch says; nothing where it is not there."""
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def is_on(path: str) -> bool | None:
    """Tell whether a switch is on; None where it is neither on nor off, or not found."""
    return {"1": True, "0": False}.get(read(path))


def turn(path: str, value: str, otherwise: str) -> bool:
    """Set a switch, and tell whether it is set; ``otherwise`` is logged as what follows where it is not."""
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(value)
    except FileNotFoundError:
        return False  # the interface is gone, and its switches with it
    except OSError as error:
        log.error(f"{path}: {error.strerror}; {otherwise}")
        return False
    return True
