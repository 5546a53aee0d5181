"""What a hook's arguments ask of us: the policy table, as data.

libvirt calls ``/etc/libvirt/hooks/qemu GUEST OPERATION SUB-OPERATION EXTRA`` with XML on
stdin, and likewise ``network`` (docs/hooks.rst).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from virt_forward.namedtuple import NamedTuple


class Action(Enum):
    """What is to be done for an event."""

    NOTHING = "nothing"
    RESTORE = "restore"
    CLAIM = "claim"
    OPEN = "open"
    CLOSE = "close"
    NETWORK_SEEN = "network seen"
    NETWORK_GONE = "network gone"
    PORT_GONE = "port gone"


class Policy(NamedTuple):
    """An action, and whether a failure of it may be told to libvirt (a non-zero exit status)."""

    action: Action
    may_refuse: bool = False


class Event(NamedTuple):
    """One call of a hook: the driver (``qemu`` or ``network``), the object and its operation."""

    driver: str
    name: str
    operation: str
    sub_operation: str
    policy: Policy


QEMU = {
    ("prepare", "begin"): Policy(Action.CLAIM, may_refuse=True),
    ("started", "begin"): Policy(Action.OPEN),
    ("reconnect", "begin"): Policy(Action.OPEN),
    ("restore", "begin"): Policy(Action.RESTORE),
    ("stopped", "end"): Policy(Action.CLOSE),
    ("release", "end"): Policy(Action.CLOSE),
}
"""Everything else (start, attach, migrate, operations yet unknown) is none of our business:
an incoming guest's ports are judged at the ``prepare`` that follows ``migrate``."""

NETWORK = {
    ("started", "begin"): Policy(Action.NETWORK_SEEN),
    ("updated", "begin"): Policy(Action.NETWORK_SEEN),
    ("port-created", "begin"): Policy(Action.NETWORK_SEEN),
    ("port-deleted", "begin"): Policy(Action.PORT_GONE),
    ("stopped", "end"): Policy(Action.NETWORK_GONE),
}


def parse_event(driver: str, arguments: Sequence[str]) -> Event:
    """Return the event of a hook's arguments; missing ones count as empty."""
    name, operation, sub_operation = (*arguments, "", "", "")[:3]
    table = QEMU if driver == "qemu" else NETWORK
    policy = table.get((operation, sub_operation), Policy(Action.NOTHING))
    return Event(driver, name, operation, sub_operation, policy)
