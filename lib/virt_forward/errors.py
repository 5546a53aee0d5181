"""The errors of the package: messages for users, with an optional hint.

Only entry points (the hooks, the command) print it and choose an exit status.
"""

from collections.abc import Iterable


class VirtForwardError(Exception):
    """An error that a user can understand and fix.

    ``messages`` has one sentence for each error, without a full stop; ``hint`` is how to fix it, or
    empty.
    """

    def __init__(self, messages: str | Iterable[str], hint: str = "") -> None:
        self.messages: tuple[str, ...] = (messages,) if isinstance(messages, str) else tuple(messages)
        self.hint = hint
        super().__init__("; ".join(self.messages))


class UsageError(VirtForwardError):
    """A command line is wrong (exit status 2)."""


class LockTimeout(VirtForwardError):  # noqa: N818 - named like TimeoutError
    """Another process held the lock of the state for too long."""


class NftError(VirtForwardError):
    """nft is missing, hangs, or has refused a transaction."""


class NftUnusableError(NftError):
    """nft is missing or hangs, so that another transaction would fail as well."""


class StateError(VirtForwardError):
    """The run directory cannot be read or written."""
