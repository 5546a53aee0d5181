"""The running guests as the service needs them: to tell which events affect one."""

import os
from collections.abc import Iterable

from virt_forward.addresses import attachments, probe
from virt_forward.addresses.probe import Probe
from virt_forward.host import collect
from virt_forward.model import Address, Guest, Network
from virt_forward.state.database import DamagedStateError
from virt_forward.state.store import Store
from virt_forward.watch.kernel_events import Neighbour


class RunningGuests:
    """The addresses, NICs, lease files and probes of all running guests, from the state.

    ``lost`` tells that the state was deleted, damaged or replaced since it was read: what other guests
    had is not in it any more, and only libvirt knows them.
    """

    def __init__(self) -> None:
        self._counter = -2
        self._identity = ""
        self.lost = False
        self._leases: dict[str, int] = {}
        self.any_running = False
        self.probes: list[Probe] = []
        self._lease_files: set[str] = set()
        self._macs: set[str] = set()
        self._macs_by_address: dict[Address, set[str]] = {}

    def reload(self, store: Store) -> bool:
        """Read the state if it has changed, and tell whether it has."""
        counter = store.change_counter()
        if counter == self._counter:
            return False
        self._counter = counter
        try:
            # Without the lock, for which the service would have to wait: a later change is read later.
            with store.peek() as state:
                guests, networks = (state.guests(), state.networks()) if state else ({}, [])
                before, self._identity = self._identity, state.value("identity") if state else ""
        except DamagedStateError:
            self.lost = True
            return False
        self.lost |= before not in ("", self._identity)
        self.update((guest for guest in guests.values() if guest.phase == "running"), networks)
        return True

    def update(self, guests: Iterable[Guest], networks: Iterable[Network]) -> None:
        """Make ``guests`` the running guests, on these libvirt networks."""
        guests, networks = tuple(guests), tuple(networks)
        bridges = {
            attachment.bridge
            for guest in guests
            for attachment in attachments.named_attachments(guest.nics, networks)
        }
        self.any_running = bool(guests)
        self.probes = [item for guest in guests for item in probe.probes(guest, networks)]
        self._lease_files = {path for bridge in bridges for path in collect.lease_files(bridge)}
        self._macs = {nic.mac for guest in guests for nic in guest.nics}
        self._macs_by_address = {}
        for endpoint in (endpoint for guest in guests for endpoint in guest.endpoints):
            self._macs_by_address.setdefault(endpoint.ip, set()).add(endpoint.mac)

    def leases_changed(self) -> bool:
        """Tell whether a DHCP server has written a lease file since the last call."""
        before, self._leases = self._leases, {path: modified_at(path) for path in self._lease_files}
        return any(before.get(path) != at for path, at in self._leases.items())

    def affects_guest(self, neighbour: Neighbour) -> bool:
        """Tell whether the address of a guest may have changed.

        It may if a NIC of a guest is at an unknown address, or if the address of a guest is at
        another NIC or removed.
        """
        macs = self._macs_by_address.get(neighbour.ip)
        if macs is not None:
            return neighbour.removed or neighbour.mac not in macs
        return not neighbour.removed and neighbour.mac in self._macs and not neighbour.ip.is_link_local


def modified_at(path: str) -> int:
    """Return when a file was modified, in nanoseconds since the epoch; 0 if it does not exist."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0
