"""The host's own use of its ports, where it stands against a guest's forwards.

What the host listens on and what the configuration reserves (claims/sockets.py, claims/vetoes.py),
as it concerns a guest with these attachments.
"""

from collections.abc import Iterable, Sequence

from virt_forward import ports
from virt_forward.addresses.attachments import Attachment, HostFacts
from virt_forward.claims import sockets, vetoes
from virt_forward.config import Config
from virt_forward.model import Forward, HostAddress, Listen, PortForward, Span


class PortChecks:
    """What the host has against forwards to a guest with some attachments.

    ``hosts`` are the guest's declared addresses (None: not known), ``held`` its open forwards.
    Both methods raise UnreadError.
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
        self._own = _spans(held)

    def veto(self, forward: Forward) -> str | None:
        """Return the reason against a forward (claims/vetoes.py), or None."""
        for item in ports.between(self._reserved, forward.proto, forward.span):
            return vetoes.reserved(item.proto, item.port)
        for found in sockets.against(self._sockets, forward, self._reach):
            if not sockets.autobound(found, self._sockets):
                program = sockets.owner(found, self._sockets)
                return vetoes.listening(found.proto, found.port, found.address, program)
        return None

    def excluded(self, item: PortForward) -> list[Span]:
        """Return the ports that a ``<portForward>`` leaves to the host, in order."""
        # A listener on a named port is a conflict, so that only a forward without ports excludes it. The port
        # of a client's socket is excluded from any range, unless the guest has it already.
        all_ports = ports.names_no_port(item)
        own = self._own.get(item.listen, ())
        forwards = ports.expand_one(item)
        if not any(_may_exclude(forward, own) for forward in forwards):
            return []
        numbers, _ = self._reserved.get(item.proto, ((), ()))
        taken = set(numbers if all_ports else ())
        for forward in forwards:
            for found in sockets.against(self._sockets, forward, self._reach):
                client = sockets.autobound(found, self._sockets)
                if not ports.overlapping(own, Span(found.port, found.port)) if client else all_ports:
                    taken.add(found.port)
        return [Span(port, port) for port in sorted(taken)]


def _may_exclude(forward: Forward, own: Sequence[Span]) -> bool:
    """Tell whether a port of ``forward`` could be excluded: it has several, and some that are new."""
    return forward.start < forward.end and bool(ports.subtract(forward.span, own))


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


def _spans(forwards: Iterable[Forward]) -> dict[Listen, list[Span]]:
    groups = ports.by_listen(forwards)
    return {listen: ports.merge(forward.span for forward in group) for listen, group in groups.items()}
