"""The host's own word on host ports: sockets that listen, and ports that are reserved. Reads only."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import NamedTuple

from virt_forward import ports
from virt_forward.addresses.attachments import Attachment
from virt_forward.claims import index as claims
from virt_forward.claims import sockets, vetoes
from virt_forward.config import Config
from virt_forward.host.collect import Interfaces, names, read_interfaces, text
from virt_forward.model import Address, Forward, HostAddress, Listen, PortForward, Span


class Listening(NamedTuple):
    """The host's listening sockets and what concerns them, each read once, when first asked for."""

    sockets: Callable[[], sockets.ByPort]
    details: Callable[[], sockets.Details]
    owners: Callable[[], Mapping[int, str]]
    interfaces: Callable[[], Interfaces]


def listening_now() -> Listening:
    """Return what tells of the host's listening sockets, for one event."""
    return Listening(
        cache(lambda: ports.by_port(listeners())),
        cache(_details),
        cache(socket_owners),
        cache(read_interfaces),
    )


def port_vetoes(
    config: Config,
    attached: Iterable[Attachment],
    listening: Listening | None = None,
    *,
    hosts: Iterable[HostAddress] | None = None,
    held: Iterable[Forward] = (),
) -> tuple[claims.Veto, Callable[[PortForward], list[Span]]]:
    """Return what the host has against a forward, and what a ``<portForward>`` leaves to the host.

    ``hosts`` are the guest's declared addresses (None: not known), ``held`` the forwards it has.
    """
    listening = listening or listening_now()
    reach = _reach(config, list(attached), listening, hosts)
    reserved = ports.by_port(config.reserved)
    kept = _spans(held)

    def veto(forward: Forward) -> str | None:
        for item in ports.between(reserved, forward.proto, forward.start, forward.end):
            return vetoes.reserved(item.proto, item.port)
        meeting = sockets.against(listening.sockets(), forward, reach)
        listener = next((item for item in meeting if not sockets.autobound(item, reach)), None)
        return None if listener is None else _taken(listener, listening)

    def spared(item: PortForward) -> list[Span]:
        # Where ports are named, somebody who listens there is a conflict; a client's socket is none,
        # but a range can do without its port. What the guest has already it keeps.
        every = ports.names_no_port(item)
        had = kept.get(item.listen, ())
        if not any(_may_leave_out(forward, had) for forward in ports.expand_one(item)):
            return []
        taken = {found.port for found in config.reserved if every and found.proto == item.proto}
        for forward in ports.expand_one(item):
            for found in sockets.against(listening.sockets(), forward, reach):
                client = sockets.autobound(found, reach)
                if not ports.overlapping(had, found.port, found.port) if client else every:
                    taken.add(found.port)
        return [Span(port, port) for port in sorted(taken)]

    return veto, spared


def _may_leave_out(forward: Forward, had: Sequence[Span]) -> bool:
    """Tell whether a port of ``forward`` could be left to the host: it has several, and some that are new."""
    return forward.start < forward.end and bool(ports.subtract(forward.span, had))


def _reach(
    config: Config, attached: list[Attachment], listening: Listening, hosts: Iterable[HostAddress] | None
) -> sockets.Reach:
    gateways = frozenset(
        ip for attachment in attached if not attachment.facts.uplink for ip in attachment.gateways()
    )
    return sockets.Reach(
        config.localhost,
        gateways,
        _families(attached, hosts),
        listening.details,
        cache(lambda dev: _elsewhere(dev, listening.interfaces())),
        cache(_devices),
    )


def _families(attached: list[Attachment], hosts: Iterable[HostAddress] | None) -> frozenset[int]:
    """Return the IP versions that a guest may come to have an address of; both where that is not known.

    An address is learned only in a family in which the host has a subnet on the bridge. A bridge
    that has none yet, or that an uplink is part of, may get one at any time.
    """
    if (
        hosts is None
        or not attached
        or any(attachment.facts.uplink or not attachment.lans() for attachment in attached)
    ):
        return frozenset((4, 6))
    found = {host.ip.version for host in hosts}
    for attachment in attached:
        reserved = (
            *attachment.facts.reservations,
            *(attachment.network.reservations if attachment.network else ()),
        )
        found |= {subnet.version for subnet in attachment.lans()} | {item.ip.version for item in reserved}
    return frozenset(found)


def _elsewhere(dev: str, interfaces: Interfaces) -> frozenset[Address]:
    """Return the addresses of other links than that of ``dev``.

    One of lo, or without a subnet (a floating or anycast one), is no link's: it is meant to be
    reached by every device.
    """
    own = {address.ip for address in interfaces.get(dev, ())}
    others = (address for name, found in interfaces.items() if name not in (dev, "lo") for address in found)
    return frozenset(address.ip for address in others if address.network.num_addresses > 1) - own


def _devices(dev: str) -> frozenset[int]:
    """Return the indexes of a device and of the VRF it is in."""
    import socket

    with contextlib.suppress(OSError):
        master = text(f"/sys/class/net/{dev}/master/ifindex").strip()
        return frozenset((socket.if_nametoindex(dev), int(master or 0)))
    return frozenset()


def _spans(forwards: Iterable[Forward]) -> dict[Listen, list[Span]]:
    groups = ports.by_listen(forwards)
    return {listen: ports.merge(forward.span for forward in group) for listen, group in groups.items()}


def _taken(listener: sockets.Listener, listening: Listening) -> str:
    program = listening.owners().get(listener.inode, "")
    return vetoes.listening(listener.proto, listener.port, listener.address, program)


def listeners() -> Iterator[sockets.Listener]:
    """Yield the sockets on which the host listens, in this network namespace."""
    yield from (item for name in ("tcp", "tcp6") for item in sockets.parse("tcp", text(f"/proc/net/{name}")))
    yield from (item for name in ("udp", "udp6") for item in sockets.parse("udp", text(f"/proc/net/{name}")))
    yield from sockets.parse_sctp(text("/proc/net/sctp/eps"))


def _details() -> sockets.Details:
    from virt_forward.host import sockdiag

    return sockdiag.details()


def socket_owners() -> dict[int, str]:
    """Return by inode the name of the first process that has a socket open."""
    found: dict[int, str] = {}
    for pid in filter(str.isdigit, names("/proc")):
        new = [inode for inode in _open_sockets(pid) if inode not in found]
        if new:
            found |= dict.fromkeys(new, text(f"/proc/{pid}/comm").strip())
    return found


def _open_sockets(pid: str) -> Iterator[int]:
    for fd in names(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            kind, _, inode = os.readlink(f"/proc/{pid}/fd/{fd}").partition(":")
            if kind == "socket":
                yield int(inode[1:-1])
