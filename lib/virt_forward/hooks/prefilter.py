"""Whether an event needs us at all: asked before anything is imported, as most need nothing."""

import os

NAMESPACE = b"urn:virt-forward:1"
OPERATIONS = ("prepare", "started", "reconnect", "restore", "stopped", "release")
NETWORK_OPERATIONS = ("started", "updated", "stopped")
PORT_OPERATIONS = ("port-created", "port-deleted")


def concerns_us(arguments: list[str], data: bytes) -> bool:
    """Tell whether a call of the qemu hook is about a guest of ours.

    It is where the XML mentions our namespace, or where we know the guest by its UUID. Whoever stops has
    to be known, unless what we knew is lost.
    """
    operation = arguments[1] if len(arguments) > 1 else ""
    if operation not in OPERATIONS:
        return False
    if NAMESPACE in data and (operation not in ("stopped", "release") or _is_lost()):
        return True
    return _known(uuid_of(data))


def network_concerns_us(arguments: list[str], data: bytes) -> bool:
    """Tell whether a call of the network hook is about a whole network, or about a port of a guest of ours.

    A guest of ours is known at its ``prepare``, which is before its port is created; and when its
    port is deleted after ``stopped``, nothing of it is left to do.
    """
    operation = arguments[1] if len(arguments) > 1 else ""
    if operation in PORT_OPERATIONS:
        uuid = owner_of(data)
        return not uuid or _known(uuid)
    return operation in NETWORK_OPERATIONS


def owner_of(data: bytes) -> str:
    """Return the text of the ``<uuid>`` of a port's ``<owner>``, in lower case; not checked.

    The port is the last thing in ``<hookData>``. The network before it may have any text in its metadata.
    """
    return uuid_of(data.rpartition(b"<networkport")[2].partition(b"<owner>")[2])


def _directory() -> str:
    return os.environ.get("VIRT_FORWARD_RUN_DIR") or "/run/virt-forward"


def _is_lost() -> bool:
    """Tell whether somebody has removed the state, or the markers of its guests."""
    directory = _directory()
    return not (os.path.isfile(f"{directory}/state.db") and os.path.isdir(f"{directory}/guests"))


def _known(uuid: str) -> bool:
    return bool(uuid) and "/" not in uuid and known(_directory(), uuid)


def uuid_of(data: bytes) -> str:
    """Return the text of the first ``<uuid>``, which is that of a domain, in lower case; not checked."""
    return data.partition(b"<uuid>")[2].partition(b"</uuid>")[0].decode("ascii", "replace").strip().lower()


def known(directory: str, uuid: str) -> bool:
    """Tell whether a guest may be in the state; of an older version's state (state/upgrade.py) any may."""
    return os.path.isfile(f"{directory}/guests/{uuid}") or os.path.isdir(f"{directory}/networks")
