"""The facts from which problems are found."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

from virt_forward.check.clone.verdict import Report
from virt_forward.check.live_metadata import Difference
from virt_forward.claims import absent
from virt_forward.config import Config
from virt_forward.metadata.domain import MetadataError
from virt_forward.model import Domain, Endpoint, Forward, Guest, Network


class Hook(NamedTuple):
    """A hook file; ``changed`` is its ctime, in seconds since the epoch as ``loaded_at``.

    ``loaded_at`` is when libvirt's daemon last looked for hooks, 0 if no daemon is running; ``daemon`` is
    the name of its unit.
    """

    driver: str
    path: str
    ours: bool
    executable: bool
    changed: float
    loaded_at: float
    daemon: str = "libvirtd"


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


class Clash(NamedTuple):
    """A libvirt network that wants the name of a bridge that is not its own; ``owner`` has that bridge."""

    network: str
    bridge: str
    owner: str


Answer = Literal["accepted", "refused", "filtered", "silent", "foreign", "unasked"]


class Response(NamedTuple):
    """How a guest answers its host at an endpoint; ``forward`` is the one whose (first) port was asked.

    ``excuse`` is why that is no fault of the guest, or why it was not asked; empty otherwise.
    """

    uuid: str
    endpoint: Endpoint
    forward: Forward
    answer: Answer
    excuse: str = ""


class Veto(NamedTuple):
    """The host's reason against a forward that is open already."""

    uuid: str
    forward: Forward
    reason: str


Definition = Literal["live", "config", "only"]
"""That of a running guest, its configuration for the next start, and that of a domain that does not run."""


class Invalid(NamedTuple):
    """What is wrong with the metadata in a definition of a domain."""

    error: MetadataError
    definition: Definition = "only"


class Facts(NamedTuple):
    """All facts about the host and its guests.

    ``running`` are the running domains that declare forwards, None if libvirt is not reachable;
    ``table`` and ``expected_table`` are listings by nft, None if there is no table. ``host`` is what
    forwards can listen on; ``invalid`` is what is wrong with metadata of domains.
    ``report`` is what became of packets in a copy of the host, ``unverified`` why that is not known.
    ``ports`` has the bridge of each bridge port. ``without_hairpin`` are guests that br_netfilter keeps from
    their own forwards, by UUID, each with its bridge port. ``systemd`` is its version, 0 if not known.
    ``paused`` are the UUIDs of guests that are suspended. ``networkd_bridges`` are the bridges that networkd
    makes; ``networkd`` tells whether it is running, and is enabled, True where that is not known.
    ``packaged`` tells whether the hooks are those of the Debian package. ``differences`` is what is not in
    force of live metadata.
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
    vetoes: tuple[Veto, ...] = ()
    invalid: tuple[Invalid, ...] = ()
    config: Config = Config()
    report: Report = Report()
    unverified: str = ""
    responses: tuple[Response, ...] = ()
    ports: Mapping[str, str] = MappingProxyType({})
    clashes: tuple[Clash, ...] = ()
    without_hairpin: tuple[tuple[str, str], ...] = ()
    systemd: int = 0
    paused: frozenset[str] = frozenset()
    networkd_bridges: frozenset[str] = frozenset()
    networkd: tuple[bool, bool] = (True, True)
    packaged: bool = False
    differences: tuple[Difference, ...] = ()

    @property
    def unanswered(self) -> tuple[Response, ...]:
        """Where guests do not answer, and should."""
        return tuple(item for item in self.responses if item.answer != "accepted" and not item.excuse)

    def lacks(self, bridge: str) -> bool:
        """Tell whether the host is known to have no such interface."""
        return self.host is not None and bridge not in self.host.devices
