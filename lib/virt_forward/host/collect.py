"""Reading the host's facts, each once a change and when it is first needed. Nothing is changed."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cached_property
from types import MappingProxyType

from virt_forward import ports
from virt_forward.addresses import leases, networkd, probe
from virt_forward.addresses.attachments import Attachment, BridgeFacts, HostFacts
from virt_forward.addresses.probe import Sightings
from virt_forward.claims import absent
from virt_forward.claims.sockets import Interfaces, SocketFacts
from virt_forward.config import Config
from virt_forward.errors import Question, UnreadError, VirtForwardError
from virt_forward.host import libvirt_networks
from virt_forward.host.files import list_directory, read_text
from virt_forward.host.interfaces import device_names, read_interfaces, route
from virt_forward.host.process import run
from virt_forward.model import Address, Endpoint, Network, Nic, Reservation, Sighting, Subnet
from virt_forward.namedtuple import TYPE_CHECKING
from virt_forward.text import output

if TYPE_CHECKING:
    from typing import Any, TypeVar

    T = TypeVar("T")

Answers = Mapping[tuple[str, str, Address], bool]
"""By bridge, MAC and address whether the NIC has answered a probe there."""

NO_SIGHTINGS: Sightings = MappingProxyType({})

VERIFY_SECONDS = 0.1
"""How long a NIC may take to answer a probe that verifies an address."""


class Reader:
    """The host as one change sees it, however many guests the change is about.

    ``recorded`` returns the libvirt networks of our records, which libvirt's own status files override. In
    an event of a network, ``current`` is that network as the event has it (libvirt writes the status
    file of a network after its ``started`` hook), or ``without`` names it where it was stopped.

    NICs are asked for their addresses by ``ask`` only, those of all guests at once, as each may take its
    time; an address at which a NIC was not asked counts as one at which it has not answered. Whoever has
    asked before gives the ``answers``, and then nobody is asked again while the lock is held (``may_ask``).
    """

    def __init__(  # noqa: PLR0913 - each is another thing that is known already
        self,
        config: Config,
        recorded: Callable[[], Iterable[Network]],
        sightings: Sightings = NO_SIGHTINGS,
        *,
        current: Network | None = None,
        without: Collection[str] = (),
        answers: Answers | None = None,
    ) -> None:
        self.config = config
        self.may_ask = answers is None
        self._answers = answers or {}
        self._unasked: list[Question] = []
        self._recorded = recorded
        self._sightings = sightings
        self._current = {current.name: current} if current else {}
        self._without = without
        self._networks: dict[str, Network] = {}
        self._names: set[str] = set()
        self._facts: HostFacts | VirtForwardError | None = None

    def own_addresses(self) -> frozenset[Address]:
        """Return all addresses of the host. Raises VirtForwardError where they cannot be read."""
        return self.facts(()).own_addresses

    def facts(self, nics: Iterable[Nic]) -> HostFacts:
        """Return what has been read, the libvirt networks of some NICs included.

        Raises VirtForwardError where the host's addresses cannot be read. What fails once is not tried
        again for the next guest: each attempt may take its full time.
        """
        if self._facts is None:
            try:
                self._facts = host_facts(self.config)._replace(answers=self._answers)
            except VirtForwardError as error:
                self._facts = error
        if isinstance(self._facts, VirtForwardError):
            raise self._facts
        names = {nic.source for nic in nics if nic.type == "network"} - self._names
        if names:
            self._facts = self._facts._replace(networks=self._with_networks(names))
        return self._facts

    def complete(self, decide: Callable[[HostFacts], T], nics: Iterable[Nic]) -> T:
        """Return what a pure function makes of the facts, with all that it turns out to need of them.

        ``nics`` are those of the guest that it is about. Raises VirtForwardError as ``facts`` does.
        """
        facts = self.facts(nics)
        asked: set[Question] = set()
        while True:
            try:
                return decide(facts)
            except UnreadError as error:
                if error.question in asked:
                    raise
                asked.add(error.question)
                self._facts = facts = self._answered(facts, error.question)

    @property
    def must_ask(self) -> bool:
        """Whether an answer was needed for which no NIC has been asked."""
        return bool(self._unasked)

    def ask(self) -> Answers:
        """Ask NICs at all addresses for which an answer was needed, and return all answers that have come."""
        questions, self._unasked = self._unasked, []
        if questions:
            facts = self.facts(())
            self._answers = {**self._answers, **ask_nics(questions, facts.bridges)}
            self._facts = facts._replace(answers={**facts.answers, **self._answers})
        return self._answers

    def _with_networks(self, names: set[str]) -> tuple[Network, ...]:
        """Return the networks that are known once the status files of those in ``names`` have been read."""
        known = self._networks.values() if self._names else self._recorded()
        self._networks = libvirt_networks.current(known, names) | self._current
        self._names |= names
        return tuple(network for name, network in self._networks.items() if name not in self._without)

    @cached_property
    def _networkd_files(self) -> dict[str, str]:
        return networkd_files()

    def _answered(self, facts: HostFacts, question: Question) -> HostFacts:
        """Return the facts with the answer to a question."""
        name = question.name
        if question.kind == "bridge":
            seen = self._sightings.get(name, ())
            found = bridge_facts(name, facts.interfaces, self._networkd_files, seen)
            return _with_bridge(facts, name, found)
        if question.kind == "leases":
            return _with_bridge(facts, name, facts.bridges[name]._replace(leases=dhcp_leases(name)))
        if question.kind == "neighbours":
            known = neighbours(name)
            return _with_bridge(facts, name, facts.bridges[name]._replace(neighbours=known))
        if question.kind == "answers":
            self._unasked.append(question)
            silent = {(name, question.mac, ip): False for ip in question.addresses}
            return facts._replace(answers={**silent, **facts.answers})
        if question.kind == "route":
            found_to = {ip: route(ip) for ip in question.addresses}
            return facts._replace(routes={**facts.routes, **found_to})
        return facts._replace(sockets=socket_facts(facts.sockets, question))


def _with_bridge(facts: HostFacts, name: str, found: BridgeFacts) -> HostFacts:
    return facts._replace(bridges={**facts.bridges, name: found})


def host_facts(config: Config) -> HostFacts:
    """Return the host's addresses. Raises VirtForwardError where the interfaces cannot be read."""
    interfaces = read_interfaces()
    return HostFacts(
        (), {}, _own_addresses(interfaces), config.learn, interfaces=interfaces, subnets=subnets(interfaces)
    )


def subnets(interfaces: Interfaces) -> tuple[tuple[Subnet, str], ...]:
    """Return the subnets of interfaces as HostFacts has them."""
    found = (
        (address.network, name)
        for name, addresses in interfaces.items()
        for address in addresses
        if not address.is_link_local
    )
    return tuple(sorted(found, key=lambda place: -place[0].prefixlen))


def socket_facts(known: SocketFacts, question: Question) -> SocketFacts:
    """Return facts about listening sockets with the answer to a question about them."""
    from virt_forward.host import hostports

    if question.kind == "sockets":
        return known._replace(listening=ports.by_port(hostports.listeners()))
    if question.kind == "details":
        return known._replace(details=hostports.socket_details())
    if question.kind == "owners":
        return known._replace(owners=hostports.socket_owners())
    indexes = hostports.device_indexes(question.name)
    return known._replace(devices={**known.devices, question.name: indexes})


def bridge_facts(
    name: str, interfaces: Interfaces, files: Mapping[str, str], sightings: tuple[Sighting, ...] = ()
) -> BridgeFacts:
    """Return what the kernel and networkd's configuration have about a bridge, without what is learned."""
    configured = networkd.bridge_config(files, name, read_text(f"/sys/class/net/{name}/address").strip())
    addresses = dict.fromkeys([*interfaces.get(name, ()), *configured.addresses])
    return BridgeFacts(
        tuple(addresses),
        configured.leases,
        None,
        None,
        tuple(reversed(sightings)),
        uplink=name in default_route_devices(),
    )


def lease_files(bridge_name: str) -> tuple[str, str]:
    """Return the paths of the lease files of networkd and of libvirt's dnsmasq for a bridge."""
    return (
        f"/var/lib/systemd/network/dhcp-server-lease/{bridge_name}",
        f"/var/lib/libvirt/dnsmasq/{bridge_name}.status",
    )


def dhcp_leases(bridge_name: str) -> tuple[Reservation, ...]:
    """Return the leases on a bridge that have not expired, networkd's first."""
    networkd_text, libvirt_text = map(read_text, lease_files(bridge_name))
    now = time.time()
    return (*leases.networkd(networkd_text, now), *leases.dnsmasq(libvirt_text, now))


def neighbours(bridge_name: str) -> leases.Neighbours:
    """Return the neighbour table of a bridge; empty where the bridge does not exist."""
    return leases.neighbours(run(["ip", "-j", "neighbour", "show", "dev", bridge_name]).stdout)


def ask_nics(questions: Iterable[Question], bridges: Mapping[str, BridgeFacts]) -> Answers:
    """Probe the NICs of some questions, all at once; return what is answered within VERIFY_SECONDS."""
    from virt_forward.host import probe_socket

    probes: list[probe.Probe] = []
    for _, name, mac, addresses in questions:
        attachment = Attachment(Nic(mac, "bridge", name), name, None, bridges[name])
        probes += probe.verification_probes(attachment, addresses)
    return {
        (bridge, sighting.mac, sighting.ip): True
        for bridge, sightings in probe_socket.probe_once(probes, VERIFY_SECONDS).items()
        for sighting in sightings
        if sighting.origin == "probed"
    }


def confirm_neighbour(endpoint: Endpoint) -> None:
    """Make the kernel confirm a neighbour entry, as if it had a packet to send to it.

    NTF_USE of rtnetlink(7): the kernel probes an entry that was not confirmed recently by ARP or ND
    after five seconds, and marks it failed without an answer. No entry is added or changed.
    """
    run(["ip", "neighbour", "change", str(endpoint.ip), "dev", endpoint.bridge, "use"])


def default_route_devices() -> set[str]:
    """Return the interfaces with a default route (proc_net_route(5), /proc/net/ipv6_route)."""
    ipv4 = (line.split() for line in read_text("/proc/net/route").splitlines()[1:])
    ipv6 = (line.split() for line in read_text("/proc/net/ipv6_route").splitlines())
    found = {words[0] for words in ipv4 if len(words) > 7 and words[1] == words[7] == "0" * 8}
    return found | {words[9] for words in ipv6 if len(words) > 9 and words[:2] == ["0" * 32, "00"]} - {"lo"}


def _own_addresses(interfaces: Interfaces) -> frozenset[Address]:
    return frozenset(address.ip for addresses in interfaces.values() for address in addresses)


def listen_targets() -> absent.Host:
    """Return the addresses, local subnets and devices that a forward can listen on."""
    words = ["route", "show", "table", "local", "type", "local"]
    routes = (absent.parse_local_routes(run(["ip", "-j", family, *words]).stdout) for family in ("-4", "-6"))
    subnets = tuple(subnet for found in routes for subnet in found)
    return absent.Host(_own_addresses(read_interfaces()), subnets, device_names())


def read_ip(*words: str) -> list[dict[str, Any]]:
    """Return the objects that ``ip -j`` prints (ip(8)). Raises VirtForwardError where it fails."""
    result = run(["ip", "-j", *words])
    if result.status:
        raise VirtForwardError(
            f"ip: {output(result.stderr) or result.status}", "install the package iproute2"
        )
    # ip does not escape control characters in the name of an interface.
    found: list[dict[str, Any]] = json.loads(result.stdout or "[]", strict=False)
    return found


def networkd_files() -> dict[str, str]:
    """Return by name the text of each .network file in use, its drop-ins appended (systemd.network(5))."""
    return {name: "\n".join(_with_dropins(name, path)) for name, path in networkd_paths(".network").items()}


def _with_dropins(name: str, path: str) -> Iterator[str]:
    yield read_text(path)
    yield from (read_text(dropin) for _, dropin in sorted(networkd_paths(".conf", f"{name}.d").items()))


def networkd_paths(suffix: str, folder: str = "") -> dict[str, str]:
    """Return by name the path of each of networkd's files with a suffix, or of those in a folder beside them.

    A file in /etc replaces one of the same name in /run, and that one those in /usr (systemd.network(5)).
    """
    paths: dict[str, str] = {}
    for directory in (os.path.join(each, folder) for each in reversed(networkd.DIRECTORIES)):
        names = (name for name in list_directory(directory) if name.endswith(suffix))
        paths |= {name: os.path.join(directory, name) for name in names}
    return paths
