"""What the findings are made of."""

from typing import NamedTuple

from virt_forward.claims import absent
from virt_forward.metadata.domain import MetadataError
from virt_forward.model import Domain, Forward, Guest, Network


class Hook(NamedTuple):
    """A hook of ours as it is on the disk; ``changed`` and ``looked_at`` are seconds since the epoch.

    ``looked_at`` is when libvirt's daemon last looked which hooks there are, 0 where none runs.
    """

    driver: str
    path: str
    ours: bool
    executable: bool
    changed: float
    looked_at: float


class Flush(NamedTuple):
    """What happens to the table when somebody reloads their ruleset."""

    path: str
    flushes: bool
    included_after: bool
    drop_in: bool
    service: bool


class Forwarding(NamedTuple):
    """Whether the kernel forwards what comes in by an interface, per family."""

    device: str
    version: int
    on: bool


class Veto(NamedTuple):
    """What the host has against a forward that a running guest holds."""

    uuid: str
    forward: Forward
    reason: str


class Facts(NamedTuple):
    """All of them.

    ``running`` are the running domains that declare forwards, None without libvirt; ``host`` is
    what forwards can listen on, ``uplinks`` the interfaces that the configuration limits them to;
    ``invalid`` are the domains, running or not, whose metadata is wrong.
    """

    guests: tuple[Guest, ...] = ()
    networks: tuple[Network, ...] = ()
    running: tuple[Domain, ...] | None = None
    table_is: str | None = None
    table_should_be: str | None = None
    hooks: tuple[Hook, ...] = ()
    flush: Flush | None = None
    forwarding: tuple[Forwarding, ...] = ()
    networkd_ipforward: tuple[str, ...] = ()
    host: absent.Host | None = None
    uplinks: tuple[str, ...] = ()
    vetoes: tuple[Veto, ...] = ()
    invalid: tuple[MetadataError, ...] = ()
