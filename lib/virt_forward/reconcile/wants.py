"""What should be true of which guest: the values that every event, command and timer comes down to."""

from __future__ import annotations

from virt_forward.model import Domain, Nic, Phase
from virt_forward.namedtuple import NamedTuple


class Present(NamedTuple):
    """The guest is to have the forwards that its domain declares; ``phase`` is prepared or running."""

    domain: Domain
    phase: Phase

    @property
    def uuid(self) -> str:
        """Return the guest's UUID, as every want does."""
        return self.domain.uuid


class Absent(NamedTuple):
    """The guest is to have no forwards, claims and connections any more."""

    uuid: str


class Restoring(NamedTuple):
    """libvirt is about to restore the guest: the start that follows is not refused."""

    uuid: str
    name: str


class Replugged(NamedTuple):
    """The guest has these NICs now; all else is as it was declared."""

    uuid: str
    nics: tuple[Nic, ...]


class Readdressed(NamedTuple):
    """The guest may have other addresses now."""

    uuid: str


ON_HOST = Present | Replugged | Readdressed
"""Those that need facts of the host."""

Lasting = Present | Restoring | Replugged | Readdressed
"""Of a guest that there is afterwards, too."""

Want = Lasting | Absent
