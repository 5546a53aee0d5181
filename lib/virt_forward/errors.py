"""The errors of the package: messages for users, with an optional hint.

Only entry points (the hooks, the command) print it and choose an exit status.
"""

from __future__ import annotations

from collections.abc import Iterable

from virt_forward.namedtuple import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Literal

    from virt_forward.model import Address

    Kind = Literal[
        "bridge", "leases", "neighbours", "answers", "route", "sockets", "details", "owners", "device"
    ]


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
    """nft is missing or hangs, or the kernel does not answer: another transaction would fail as well."""


class NftMissingError(NftUnusableError):
    """nft is not installed."""


class NftTimeout(NftUnusableError):  # noqa: N818 - named like TimeoutError
    """nft hangs, or the table is larger than what it can load in the time that is left."""


class StateError(VirtForwardError):
    """The run directory cannot be read or written."""


class StateRemovedError(StateError):
    """The run directory was removed by somebody who did not hold the lock."""


class Question(NamedTuple):
    """One fact that is to be read.

    ``bridge`` is what the host knows about the bridge ``name``, ``leases`` and ``neighbours`` are those on
    it, ``answers`` tells at which of ``addresses`` the NIC with ``mac`` there answers a probe. ``route`` is
    the one to each of ``addresses``. ``sockets`` are those that listen, ``details`` and ``owners`` more
    about them, ``device`` the indexes of the device ``name``.
    """

    kind: Kind
    name: str = ""
    mac: str = ""
    addresses: tuple[Address, ...] = ()


class UnreadError(Exception):
    """A pure function needs a fact of the host that it was not given: the answer to ``question``.

    Whoever has called it reads the fact, and calls it again with that (host/collect.py). So an event reads
    what it needs, in whatever order that turns out, and what decides it does no I/O. Users never see it.
    """

    def __init__(self, question: Question) -> None:
        self.question = question
        super().__init__(f"not read: {question}")
