"""What planning a change needs to know of the host: each thing is read once, when it is first needed."""

from collections.abc import Callable, Collection, Iterable
from functools import cache, cached_property

from virt_forward.addresses import attachments
from virt_forward.addresses.attachments import HostFacts
from virt_forward.addresses.probe import Sightings
from virt_forward.claims import index as claims
from virt_forward.config import Config
from virt_forward.errors import VirtForwardError
from virt_forward.host import collect, hostports, libvirt_networks
from virt_forward.model import Address, Forward, Guest, HostAddress, Network, Nic, PortForward, Span

Excluded = Callable[[PortForward], list[Span]]


class HostView:
    """The host as one change sees it, however many guests the change is about.

    ``known`` are the libvirt networks of our records, which libvirt's own status files override. In
    an event of a network, ``current`` is that network as the event has it (libvirt writes the status
    file of a network after its ``started`` hook), or ``without`` names it where it was stopped.
    Raises VirtForwardError where the host's addresses cannot be read.
    """

    def __init__(
        self,
        config: Config,
        known: Callable[[], Iterable[Network]],
        sightings: Sightings = collect.NO_SIGHTINGS,
        *,
        current: Network | None = None,
        without: Collection[str] = (),
    ) -> None:
        self.config = config
        self._known = cache(lambda: tuple(known()))
        self._sightings = sightings
        self._current = {current.name: current} if current else {}
        self._without = without
        self._listening = hostports.socket_facts()

    @property
    def _base(self) -> HostFacts:
        found = self._collected
        if isinstance(found, VirtForwardError):
            raise found
        return found

    @cached_property
    def _collected(self) -> HostFacts | VirtForwardError:
        # What fails once is not tried again for the next guest: each attempt may take its full time.
        try:
            return collect.host_facts(self.config, (), (), self._sightings)
        except VirtForwardError as error:
            return error

    @property
    def own(self) -> frozenset[Address]:
        """Return all addresses of the host."""
        return self._base.own_addresses

    def facts(self, nics: Iterable[Nic]) -> HostFacts:
        """Return what is known of the libvirt networks and bridges of some NICs."""
        names = sorted({nic.source for nic in nics if nic.type == "network"})
        return self._base._replace(networks=self._networks(tuple(names)) if names else ())

    def _networks(self, names: tuple[str, ...]) -> tuple[Network, ...]:
        known = libvirt_networks.current(self._known(), names) | self._current
        return tuple(network for name, network in known.items() if name not in self._without)

    def port_checks(
        self, nics: Iterable[Nic], hosts: Iterable[HostAddress], held: Iterable[Forward] = ()
    ) -> tuple[claims.Veto, Excluded]:
        """Return what the host has against a forward to some NICs, and which ports are left to the host.

        ``hosts`` are the declared addresses, ``held`` the forwards that the guest has already.
        """
        nics = tuple(nics)
        attached = attachments.find_attachments(nics, self.facts(nics))
        return hostports.port_checks(self.config, attached, self._listening, hosts=hosts, held=held)

    def veto(self, guest: Guest) -> claims.Veto:
        """Return what the host has against a forward of a guest."""
        return self.port_checks(guest.nics, guest.hosts)[0]
