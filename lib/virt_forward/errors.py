"""The one error type of the package: sentences for a person, and a hint where there is one.

Only entry points (the hooks, the command) print it and choose an exit status.
"""

from collections.abc import Iterable


class VirtForwardError(Exception):
    """Something that a person can understand and mend.

    ``messages`` holds one sentence for each thing that is wrong, without a trailing
    full stop; ``hint`` says what to do about it, or is empty.
    """

    def __init__(self, messages: str | Iterable[str], hint: str = "") -> None:
        self.messages: tuple[str, ...] = (messages,) if isinstance(messages, str) else tuple(messages)
        self.hint = hint
        super().__init__("; ".join(self.messages))


class UsageError(VirtForwardError):
    """The words of a command line are wrong (exit status 2)."""


class LockTimeout(VirtForwardError):  # noqa: N818 - named like TimeoutError
    """Another process held the state for too long."""


class NftError(VirtForwardError):
    """nft is missing, hung, or refused a transaction."""


class NftUnusableError(NftError):
    """nft is missing or hangs: another attempt with other words would be no better."""


class StateError(VirtForwardError):
    """The run directory cannot be read or written."""
