"""What the service knows of the running guests: what of all events can matter to them."""

import os
from collections.abc import Iterable

from virt_forward.addresses import attachments, probe
from virt_forward.addresses.probe import Probe
from virt_forward.host import collect
from virt_forward.model import Address, Guest, Network
from virt_forward.state.store import Store
from virt_forward.watch.kernel_events import Neighbour


class Watched:
    """The running guests, by what their events are told from; read again only where a record has changed."""

    def __init__(self) -> None:
        self._changed = -1
        self._leases: dict[str, int] = {}
        self.running = False
        self.probes: list[Probe] = []
        self._lease_files: set[str] = set()
        self._macs: set[str] = set()
        self._known: dict[Address, set[str]] = {}

    def follow(self, store: Store) -> bool:
        """Read the records where these have changed, and tell whether they have."""
        at = changed_at(os.path.join(store.path, "guests"))
        if at == self._changed:
            return False
        self._changed = at
        self.set((guest for guest in store.guests()[0] if guest.phase == "running"), store.networks())
        return True

    def set(self, guests: Iterable[Guest], networks: Iterable[Network]) -> None:
        """Take these guests for the running ones."""
        guests, networks = tuple(guests), tuple(networks)
        facts = attachments.HostFacts(networks)
        bridges = {
            attachment.bridge
            for guest in guests
            for attachment in attachments.find_attachments(guest.nics, facts)
        }
        self.running = bool(guests)
        self.probes = [item for guest in guests for item in probe.probes(guest, networks)]
        self._lease_files = {path for bridge in bridges for path in collect.lease_files(bridge)}
        self._macs = {nic.mac for guest in guests for nic in guest.nics}
        self._known = {}
        for endpoint in (endpoint for guest in guests for endpoint in guest.endpoints):
            self._known.setdefault(endpoint.ip, set()).add(endpoint.mac)

    def leases_changed(self) -> bool:
        """Tell whether a DHCP server has written its leases since the last call."""
        before, self._leases = self._leases, {path: changed_at(path) for path in self._lease_files}
        return any(before.get(path) != at for path, at in self._leases.items())

    def matters(self, neighbour: Neighbour) -> bool:
        """Tell whether a guest may have another address now.

        That is a NIC of a guest at an address that we do not know, and an address of a guest
        at another NIC, or at none.
        """
        holders = self._known.get(neighbour.ip)
        if holders is not None:
            return neighbour.gone or neighbour.mac not in holders
        return not neighbour.gone and neighbour.mac in self._macs and not neighbour.ip.is_link_local


def changed_at(path: str) -> int:
    """Return when a file was changed, in nanoseconds since the epoch; 0 where it does not exist."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0
