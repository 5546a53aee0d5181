"""A problem that ``virt-forward check`` finds."""

from typing import Literal, NamedTuple

Severity = Literal["error", "warning"]


class Problem(NamedTuple):
    """One problem: ``id`` is stable for scripts, ``message`` and ``fix`` are for people.

    ``domain`` is the name of the guest, None for a problem of the host.
    """

    id: str
    severity: Severity
    domain: str | None
    message: str
    fix: str
