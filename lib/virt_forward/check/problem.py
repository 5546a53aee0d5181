"""What ``virt-forward check`` finds."""

from typing import Literal, NamedTuple

Severity = Literal["error", "warning"]


class Problem(NamedTuple):
    """One finding: ``id`` is fixed for scripts, ``message`` and ``fix`` are for people."""

    id: str
    severity: Severity
    domain: str | None
    message: str
    fix: str
