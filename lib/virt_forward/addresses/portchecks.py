"""The host's own use of its ports, where it stands against a guest's forwards.

What the host listens on and what the configuration reserves (claims/sockets.py, claims/vetoes.py),
as it concerns a guest with these attachments.
"""

from collections.abc import Iterable

from virt_forward import ports
from virt_forward.addresses.attachments import Attachment, HostFacts
from virt_forward.claims import sockets, vetoes
from virt_forward.config import Config
from virt_forward.model import Forward, HostAddress, PortForward, Span


class PortChecks:
    """What the host has against forwards to a guest with some attachments.

    ``hosts`` are the guest's declared addresses (None: not known), ``held`` the forwards that it has:
    against their ports the host has nothing. Both methods raise UnreadError.
    """

    def __init__(
        self,
        config: Config,
        attachments: Iterable[Attachment],
        facts: HostFacts,
        *,
        hosts: Iterable[HostAddress] | None = None,
        held: Iterable[Forward] = (),
    ) -> None:
        self._reach = _reach(config, list(attachments), facts, hosts)
        self._reserved = ports.by_port(config.reserved)
        self._sockets = facts.sockets
        self._own = ports.merged(held)

    def veto(self, forward: Forward) -> str | None:
        """Return the reason against a forward (claims/vetoes.py), or None."""
        for piece in self._new(forward):
            for item in ports.between(self._reserved, piece.proto, piece.span):
                return vetoes.reserved(item.proto, item.port)
            for found in sockets.against(self._sockets, piece, self._reach):
                if not sockets.autobound(found, self._sockets):
                    program = sockets.owner(found, self._sockets)
                    return vetoes.listening(found.proto, found.port, found.address, program)
        return None

    def excluded(self, item: PortForward) -> list[Span]:
        """Return the ports that a ``<portForward>`` leaves to the host, in order."""
        # A listener on a named port is a conflict, so that only a forward without ports excludes it. The port
        # of a client's socket is excluded from any range.
        all_ports = ports.names_no_port(item)
        forwards = ports.expand_one(item)
        if not any(forward.start < forward.end and self._new(forward) for forward in forwards):
            return []
        taken: set[int] = set()
        for piece in (piece for forward in forwards for piece in self._new(forward)):
            if all_ports:
                taken.update(each.port for each in ports.between(self._reserved, piece.proto, piece.span))
            for found in sockets.against(self._sockets, piece, self._reach):
                if all_ports or sockets.autobound(found, self._sockets):
                    taken.add(found.port)
        return [Span(port, port) for port in sorted(taken)]

    def _new(self, forward: Forward) -> list[Forward]:
        """Return the pieces of a forward with ports that the guest does not have."""
        return ports.cut(forward, self._own)[1]


def _reach(
    config: Config, attachments: list[Attachment], facts: HostFacts, hosts: Iterable[HostAddress] | None
) -> sockets.Reach:
    gateways = frozenset(
        ip for attachment in attachments if not attachment.facts.uplink for ip in attachment.host_addresses()
    )
    return sockets.Reach(config.localhost, gateways, _families(attachments, hosts), facts.interfaces)


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
