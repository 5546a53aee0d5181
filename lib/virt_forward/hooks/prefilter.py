"""Whether an event needs us at all: asked before anything is imported, as most need nothing."""

import os

NAMESPACE = b"urn:virt-forward:1"
OPERATIONS = ("prepare", "started", "reconnect", "restore", "stopped", "release")


def concerns_us(arguments: list[str], data: bytes) -> bool:
    """Tell whether a call of the qemu hook is about a guest of ours.

    It is where the XML mentions our namespace, or where we know the guest by its UUID.
    """
    operation = arguments[1] if len(arguments) > 1 else ""
    if operation not in OPERATIONS:
        return False
    if operation not in ("stopped", "release") and NAMESPACE in data:
        return True
    directory = os.environ.get("VIRT_FORWARD_RUN_DIR") or "/run/virt-forward"
    uuid = uuid_of(data)
    return bool(uuid) and "/" not in uuid and known(directory, uuid)


def uuid_of(data: bytes) -> str:
    """Return the text of the first ``<uuid>`` of a domain, in lower case; not checked."""
    return data.partition(b"<uuid>")[2].partition(b"</uuid>")[0].decode("ascii", "replace").strip().lower()


def known(directory: str, uuid: str) -> bool:
    """Tell whether there is a record of a guest, a change left for it, or one that was cut off."""
    if os.path.exists(f"{directory}/guests/{uuid}.json"):
        return True
    return any(name.startswith(uuid) for name in _left(directory)) or uuid.encode() in _unfinished(directory)


def _left(directory: str) -> list[str]:
    try:
        return os.listdir(f"{directory}/todo")
    except OSError:
        return []


def _unfinished(directory: str) -> bytes:
    try:
        with open(f"{directory}/unfinished", "rb") as file:
            return file.read()
    except OSError:
        return b""
