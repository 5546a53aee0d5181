"""Probing the NICs of guests whose address no source has: when, and what to do with the answers."""

import math
import select
import time
from collections.abc import Iterable
from ipaddress import ip_network
from typing import NamedTuple

from virt_forward.addresses import probe
from virt_forward.addresses.probe import Probe
from virt_forward.host import log
from virt_forward.host.probe_socket import ProbeSocket, send
from virt_forward.model import Address, Sighting

PROBE_AFTER = (0.0, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)
"""When a NIC is probed, in seconds since its address was first missed; after the last one, no more."""

VERIFY_LEASE_AFTER = (0.1, 0.3, 0.6, 1.0, 2.0, 4.0, 8.0)
"""When a NIC is probed at an address of a new lease, in seconds since the lease."""

INTERVAL_SECONDS = 60.0
"""The least time between probes of a NIC after its schedule has ended, however many events there are."""

ANSWER_SECONDS = 5.0
"""How long after a request a packet counts as an answer to it."""

MAX_LINK_LOCAL = 16
"""The most link-local addresses of a NIC that restart its schedule."""

Key = tuple[str, str, int]
"""A NIC and IP version: bridge, MAC address, 4 or 6."""


class ProbeSchedule:
    """When one NIC is probed. All times are monotonic, in seconds.

    The schedule is PROBE_AFTER. The first event at the NIC restarts it; later ones add one probe each,
    INTERVAL_SECONDS apart at least.
    """

    def __init__(self, now: float) -> None:
        self.last = -math.inf
        self._start = now
        self._count = 0
        self._restarted = False
        self._link_local: set[Address] = set()

    def due_at(self) -> float:
        """Return when the next probe is due; infinity if there is none."""
        return self._start + PROBE_AFTER[self._count] if self._count < len(PROBE_AFTER) else math.inf

    def next_at(self, now: float) -> float:
        """Return when the next probe is due or, after the last one, when the wait for answers ends."""
        end = self.last + ANSWER_SECONDS
        return end if self.due_at() == math.inf and end > now else self.due_at()

    def is_finished(self, now: float) -> bool:
        """Tell whether no probe is due any more, and the wait for answers is over."""
        return self.due_at() == math.inf and self.last + ANSWER_SECONDS <= now

    def record_probe(self, now: float) -> None:
        """Record that the probe that is due is sent at ``now``."""
        self._count += 1
        self.last = now

    def add_link_local(self, now: float, ip: Address) -> None:
        """Restart for a link-local address that is new: the network of the NIC has come up."""
        if ip not in self._link_local and len(self._link_local) < MAX_LINK_LOCAL:
            self._link_local.add(ip)
            self.restart(now)

    def restart(self, now: float) -> None:
        """Start again the first time; later, add one probe to a schedule that has ended."""
        if not self._restarted:
            self._start, self._count, self._restarted = now, 0, True
        elif self._count == len(PROBE_AFTER):
            self._count -= 1
            self._start = max(now, self.last + INTERVAL_SECONDS) - PROBE_AFTER[-1]


class LeaseProbe(NamedTuple):
    """A probe of the address that a NIC has a new lease for, and the times when it is still to be sent."""

    probe: Probe
    times: tuple[float, ...]


class Prober:
    """Probes NICs by a socket on each bridge concerned, and keeps the sightings that answer.

    There is no socket on other bridges, as it costs time for each packet there. An IPv4 socket stays
    open for as long as an address is missing, to receive DHCP answers; an IPv6 one only until the
    schedule ends.
    """

    def __init__(self, poller: select.poll) -> None:
        self._poller = poller
        self._probes: dict[Key, list[Probe]] = {}
        self._schedules: dict[Key, ProbeSchedule] = {}
        self._sockets: dict[tuple[str, int], ProbeSocket] = {}
        self._lease_probes: dict[Key, LeaseProbe] = {}
        self._warned: set[str] = set()
        self._next = math.inf
        self.sightings: dict[str, tuple[Sighting, ...]] = {}

    def set_probes(self, probes: Iterable[Probe]) -> None:
        """Make ``probes`` the ones to be sent from now on, instead of all others."""
        now = time.monotonic()
        before, self._probes = self._probes, {}
        for item in probes:
            self._probes.setdefault((item.bridge, item.mac, item.own.version), []).append(item)
        for key in self._probes:
            if key not in self._schedules:
                self._schedules[key] = ProbeSchedule(now)
            elif key not in before:
                self._schedules[key].restart(now)
        # A NIC that is removed and added again keeps its schedule, so that it is not probed more often.
        kept = {key for key, schedule in self._schedules.items() if schedule.last + INTERVAL_SECONDS > now}
        self._schedules = {k: s for k, s in self._schedules.items() if k in self._probes or k in kept}
        self._update_sockets(now)

    def next_at(self) -> float:
        """Return when ``work`` has something to do even without an answer, on the monotonic clock."""
        return self._next

    def has_probe(self, mac: str) -> bool:
        """Tell whether an address of the NIC with ``mac`` is missing."""
        return any(mac == other for _, other, _ in self._probes)

    def add_link_local(self, mac: str, ip: Address) -> None:
        """Restart the schedules of a NIC at which the link-local address ``ip`` was seen, if it is new."""
        now = time.monotonic()
        for key, schedule in self._schedules.items():
            if key[1] == mac:
                schedule.add_link_local(now, ip)
        self._update_sockets(now)

    def work(self) -> bool:
        """Send the probes that are due, read the answers, and tell whether there were any."""
        now = time.monotonic()
        found = [self._read(opened, now) for opened in self._sockets.values()]
        if any(found):
            self._update_sockets(now)
        if now >= self._next:
            self._send(now)
            self._update_sockets(now)
        return any(found)

    def close(self) -> None:
        """Close all sockets."""
        self.set_probes(())

    def _send(self, now: float) -> None:
        due = [key for key in self._probes if self._schedules[key].due_at() <= now]
        for key in due:
            self._schedules[key].record_probe(now)
        send((item for key in due for item in self._probes[key]), self._sockets)
        self._lease_probes = {key: item for key, item in self._lease_probes.items() if key in self._probes}
        for key, (single, times) in tuple(self._lease_probes.items()):
            if times[0] > now:
                continue
            self._schedules[key].last = now
            send([single], self._sockets)
            later = tuple(at for at in times if at > now)
            if later:
                self._lease_probes[key] = LeaseProbe(single, later)
            else:
                del self._lease_probes[key]

    def _read(self, opened: ProbeSocket, now: float) -> bool:
        found = [item for item in opened.read(self._probes_for(opened)) if self._counts(item, opened, now)]
        if found:
            self.sightings[opened.bridge] = probe.merge(self.sightings.get(opened.bridge, ()), found)
        for sighting in found:
            self._verify_lease((opened.bridge, sighting.mac, opened.version), sighting, now)
        return bool(found)

    def _verify_lease(self, key: Key, sighting: Sighting, now: float) -> None:
        """Probe the NIC at an address of a new lease: clients can forge the MAC address."""
        if sighting.origin == "leased" and key not in self._lease_probes:
            whole = next(item for item in self._probes[key] if sighting.ip in item.subnet)
            times = tuple(now + seconds for seconds in VERIFY_LEASE_AFTER)
            self._lease_probes[key] = LeaseProbe(whole._replace(subnet=ip_network(sighting.ip)), times)

    def clear_sightings(self) -> None:
        """Drop the sightings, except leases of NICs whose address is still missing."""
        kept = {
            bridge: tuple(
                sighting
                for sighting in sightings
                if sighting.origin == "leased" and (bridge, sighting.mac, sighting.ip.version) in self._probes
            )
            for bridge, sightings in self.sightings.items()
        }
        self.sightings = {bridge: sightings for bridge, sightings in kept.items() if sightings}

    def _probes_for(self, opened: ProbeSocket) -> Iterable[Probe]:
        return (
            item
            for (bridge, _, version), items in self._probes.items()
            if (bridge, version) == (opened.bridge, opened.version)
            for item in items
        )

    def _counts(self, sighting: Sighting, opened: ProbeSocket, now: float) -> bool:
        """Tell whether a sighting is a lease, or the answer to a recent probe."""
        last = self._schedules[opened.bridge, sighting.mac, opened.version].last
        return sighting.origin == "leased" or now <= last + ANSWER_SECONDS

    def _update_sockets(self, now: float) -> None:
        """Open the sockets that are needed, close the others, and compute when the next probe is due."""
        needed = {
            (bridge, version)
            for bridge, mac, version in self._probes
            if version == 4 or not self._schedules[bridge, mac, version].is_finished(now)
        }
        for key in set(self._sockets) - needed:
            self._close(key)
        for key in needed - set(self._sockets):
            self._open(*key)
        times = [self._schedules[nic].next_at(now) for nic in self._probes]
        times += [at for item in self._lease_probes.values() for at in item.times[:1]]
        self._next = min(times, default=math.inf)

    def _open(self, bridge: str, version: int) -> None:
        try:
            opened = ProbeSocket(bridge, version)
        except OSError as error:
            if bridge not in self._warned:
                self._warned.add(bridge)
                log.warning(f"watch: cannot probe guests on {bridge} for their addresses: {error.strerror}")
            return
        self._warned.discard(bridge)
        self._sockets[bridge, version] = opened
        self._poller.register(opened.fileno(), select.POLLIN)

    def _close(self, key: tuple[str, int]) -> None:
        opened = self._sockets.pop(key)
        self._poller.unregister(opened.fileno())
        opened.close()
