"""The host's own use of its ports: listening sockets, and the ports that the configuration reserves."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache

from virt_forward import ports
from virt_forward.addresses.attachments import Attachment
from virt_forward.claims import index as claims
from virt_forward.claims import sockets, vetoes
from virt_forward.config import Config
from virt_forward.host.collect import Interfaces, read_interfaces
from virt_forward.host.files import list_directory, read_text
from virt_forward.model import Address, Forward, HostAddress, Listen, PortForward, Span
from virt_forward.namedtuple import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Literal


class SocketFacts(NamedTuple):
    """The host's listening sockets and facts about them; each function reads once, when first called."""

    sockets: Callable[[], sockets.ByPort]
    details: Callable[[], sockets.Details]
    owners: Callable[[], Mapping[int, str]]
    interfaces: Callable[[], Interfaces]


def socket_facts() -> SocketFacts:
    """Return functions that read the host's listening sockets, to be used for one event."""
    return SocketFacts(
        cache(lambda: ports.by_port(listeners())),
        cache(_details),
        cache(socket_owners),
        cache(read_interfaces),
    )


def port_checks(
    config: Config,
    attachments: Iterable[Attachment],
    facts: SocketFacts | None = None,
    *,
    hosts: Iterable[HostAddress] | None = None,
    held: Iterable[Forward] = (),
) -> tuple[claims.Veto, Callable[[PortForward], list[Span]]]:
    """Return two functions: the host's veto against a forward, and the excluded ports of a ``<portForward>``.

    The veto returns the reason (claims/vetoes.py) or None; the excluded ports are returned as spans in
    order. ``hosts`` are the guest's declared addresses (None: not known), ``held`` its open forwards.
    """
    facts = facts or socket_facts()
    reach = _reach(config, list(attachments), facts, hosts)
    reserved = ports.by_port(config.reserved)
    own_spans = _spans(held)

    def veto(forward: Forward) -> str | None:
        for item in ports.between(reserved, forward.proto, forward.span):
            return vetoes.reserved(item.proto, item.port)
        conflicting = sockets.against(facts.sockets(), forward, reach)
        listener = next((item for item in conflicting if not sockets.autobound(item, reach)), None)
        return None if listener is None else _listener_veto(listener, facts)

    def excluded(item: PortForward) -> list[Span]:
        # A listener on a named port is a conflict, so that only a forward without ports excludes it. The port
        # of a client's socket is excluded from any range, unless the guest has it already.
        all_ports = ports.names_no_port(item)
        own = own_spans.get(item.listen, ())
        if not any(_may_exclude(forward, own) for forward in ports.expand_one(item)):
            return []
        taken = {found.port for found in config.reserved if all_ports and found.proto == item.proto}
        for forward in ports.expand_one(item):
            for found in sockets.against(facts.sockets(), forward, reach):
                client = sockets.autobound(found, reach)
                if not ports.overlapping(own, Span(found.port, found.port)) if client else all_ports:
                    taken.add(found.port)
        return [Span(port, port) for port in sorted(taken)]

    return veto, excluded


def _may_exclude(forward: Forward, own: Sequence[Span]) -> bool:
    """Tell whether a port of ``forward`` could be excluded: it has several, and some that are new."""
    return forward.start < forward.end and bool(ports.subtract(forward.span, own))


def _reach(
    config: Config, attachments: list[Attachment], facts: SocketFacts, hosts: Iterable[HostAddress] | None
) -> sockets.Reach:
    gateways = frozenset(
        ip for attachment in attachments if not attachment.facts.uplink for ip in attachment.host_addresses()
    )
    return sockets.Reach(
        config.localhost,
        gateways,
        _families(attachments, hosts),
        facts.details,
        cache(lambda dev: _elsewhere(dev, facts.interfaces())),
        cache(_devices),
    )


def _families(attachments: list[Attachment], hosts: Iterable[HostAddress] | None) -> frozenset[int]:
    """Return the IP versions that a guest can have an address of; both if that is not known.

    An address is learned only in a family in which the host has a subnet on the bridge. A bridge
    that has none yet, or has an uplink, can get one at any time.
    """
    if (
        hosts is None
        or not attachments
        or any(attachment.facts.uplink or not attachment.subnets() for attachment in attachments)
    ):
        return frozenset((4, 6))
    found = {host.ip.version for host in hosts}
    for attachment in attachments:
        reserved = (
            *attachment.facts.reservations,
            *(attachment.network.reservations if attachment.network else ()),
        )
        found |= {subnet.version for subnet in attachment.subnets()} | {item.ip.version for item in reserved}
    return frozenset(found)


def _elsewhere(dev: str, interfaces: Interfaces) -> frozenset[Address]:
    """Return the addresses of other links than that of ``dev``.

    One of lo, or without a subnet (a floating or anycast one), is meant to be reached by every
    device, and is left out.
    """
    own = {address.ip for address in interfaces.get(dev, ())}
    others = (address for name, found in interfaces.items() if name not in (dev, "lo") for address in found)
    return frozenset(address.ip for address in others if address.network.num_addresses > 1) - own


def _devices(dev: str) -> frozenset[int]:
    """Return the interface indexes of a device and of the VRF it is in; empty if it does not exist."""
    import socket

    with contextlib.suppress(OSError):
        master = read_text(f"/sys/class/net/{dev}/master/ifindex").strip()
        return frozenset((socket.if_nametoindex(dev), int(master or 0)))
    return frozenset()


def _spans(forwards: Iterable[Forward]) -> dict[Listen, list[Span]]:
    groups = ports.by_listen(forwards)
    return {listen: ports.merge(forward.span for forward in group) for listen, group in groups.items()}


def _listener_veto(listener: sockets.Listener, facts: SocketFacts) -> str:
    program = facts.owners().get(listener.inode, "")
    return vetoes.listening(listener.proto, listener.port, listener.address, program)


def listeners() -> Iterator[sockets.Listener]:
    """Yield the listening sockets of this network namespace."""
    from virt_forward.host import sockdiag

    tcp = sockdiag.tcp_listeners()
    yield from _listed("tcp") if tcp is None else tcp
    yield from _listed("udp")
    yield from sockets.parse_sctp(read_text("/proc/net/sctp/eps"))


def _listed(proto: Literal["tcp", "udp"]) -> Iterator[sockets.Listener]:
    """Yield the listening sockets in /proc/net."""
    for name in (proto, f"{proto}6"):
        yield from sockets.parse(proto, read_text(f"/proc/net/{name}"))


def _details() -> sockets.Details:
    from virt_forward.host import sockdiag

    return sockdiag.details()


def socket_owners() -> dict[int, str]:
    """Return by inode of a socket the name of the first process found that has it open (proc_pid_fd(5))."""
    found: dict[int, str] = {}
    for pid in filter(str.isdigit, list_directory("/proc")):
        new = [inode for inode in _open_sockets(pid) if inode not in found]
        if new:
            found |= dict.fromkeys(new, read_text(f"/proc/{pid}/comm").strip())
    return found


def _open_sockets(pid: str) -> Iterator[int]:
    for fd in list_directory(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            kind, _, inode = os.readlink(f"/proc/{pid}/fd/{fd}").partition(":")
            if kind == "socket":
                yield int(inode[1:-1])
