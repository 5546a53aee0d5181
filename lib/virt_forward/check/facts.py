"""The facts from which problems are found."""

from typing import NamedTuple

from virt_forward.claims import absent
from virt_forward.metadata.domain import MetadataError
from virt_forward.model import Domain, Forward, Guest, Network


class Hook(NamedTuple):
    """A hook file; ``changed`` is its ctime, in seconds since the epoch as ``loaded_at``.

    ``loaded_at`` is when libvirt's daemon last looked for hooks, 0 if no daemon is running.
    """

    driver: str
    path: str
    ours: bool
    executable: bool
    changed: float
    loaded_at: float


class Flush(NamedTuple):
    """What a reload of the ruleset at ``path`` does to our table."""

    path: str
    flushes: bool
    included_after: bool
    drop_in: bool
    service: bool


class Forwarding(NamedTuple):
    """Whether the kernel forwards packets of an IP version that arrive on an interface."""

    device: str
    version: int
    on: bool


class Veto(NamedTuple):
    """The host's reason against a forward that is open already."""

    uuid: str
    forward: Forward
    reason: str


class Facts(NamedTuple):
    """All facts about the host and its guests.

    ``running`` are the running domains that declare forwards, None if libvirt is not reachable;
    ``table`` and ``expected_table`` are listings by nft, None if there is no table. ``host`` is what
    forwards can listen on, ``uplinks`` the interfaces that the configuration limits them to;
    ``invalid`` are the errors in the metadata of domains, running or not.
    """

    guests: tuple[Guest, ...] = ()
    networks: tuple[Network, ...] = ()
    running: tuple[Domain, ...] | None = None
    table: str | None = None
    expected_table: str | None = None
    hooks: tuple[Hook, ...] = ()
    flush: Flush | None = None
    forwarding: tuple[Forwarding, ...] = ()
    networkd_ipforward: tuple[str, ...] = ()
    host: absent.Host | None = None
    uplinks: tuple[str, ...] = ()
    vetoes: tuple[Veto, ...] = ()
    invalid: tuple[MetadataError, ...] = ()
