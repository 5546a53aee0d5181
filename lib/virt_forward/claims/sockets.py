"""Sockets on which the host itself listens: /proc/net text to values, and whom they stand against."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from types import MappingProxyType

from virt_forward import ports
from virt_forward.errors import Question, UnreadError
from virt_forward.model import MAX_PORT, Address, Forward, Proto
from virt_forward.namedtuple import TYPE_CHECKING, NamedTuple

LISTEN = {"tcp": "0A", "udp": "07"}
"""Socket states in /proc/net: TCP_LISTEN, and what an unconnected UDP socket shows (TCP_CLOSE)."""


class Listener(NamedTuple):
    """A socket of the host; ``address`` is the unspecified one where it takes any."""

    proto: Proto
    address: Address
    port: int
    inode: int = 0


if TYPE_CHECKING:
    ByPort = ports.ByPort[Listener]


class Details(NamedTuple):
    """What sock_diag tells of sockets beyond /proc, by inode.

    ``v6only`` take IPv6 alone; the port of ``autobound`` ones (UDP) was the kernel's choice;
    ``devices`` are the indexes of the devices that sockets are bound to.
    """

    v6only: frozenset[int] = frozenset()
    autobound: frozenset[int] = frozenset()
    devices: Mapping[int, int] = {}


Interfaces = Mapping[str, Sequence[IPv4Interface | IPv6Interface]]
"""The host's addresses, with their prefix, by interface."""

NO_INTERFACES: Interfaces = MappingProxyType({})


class SocketFacts(NamedTuple):
    """The host's listening sockets and facts about them; what is None, or a device left out, was not read.

    ``owners`` are the names of programs by inode; ``devices`` are by name the index of a device and of the
    VRF that it is in.
    """

    listening: ByPort | None = None
    details: Details | None = None
    owners: Mapping[int, str] | None = None
    devices: Mapping[str, frozenset[int]] = {}


class Reach(NamedTuple):
    """Which packets the forwards of a guest take.

    ``localhost`` tells whether forwards without an address listen on 127.0.0.1, too; ``excluded``
    are addresses where no forward listens (the guest network's gateway); ``families`` are the IP
    versions that the guest may have; ``interfaces`` are the host's.
    """

    localhost: bool = False
    excluded: frozenset[Address] = frozenset()
    families: frozenset[int] = frozenset((4, 6))
    interfaces: Interfaces = NO_INTERFACES


def parse(proto: Proto, text: str) -> Iterator[Listener]:
    """Yield the listeners in the text of /proc/net/tcp, tcp6, udp or udp6 (proc_net_tcp.rst).

    A line that is damaged is skipped, here and below.
    """
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 9 and fields[3] == LISTEN[proto]:
            host, _, port = fields[1].rpartition(":")
            with suppress(ValueError, OverflowError):
                yield _listener(proto, _address(host), int(port, 16), int(fields[9]))


def parse_sctp(text: str) -> Iterator[Listener]:
    """Yield the listeners in the text of /proc/net/sctp/eps: state 10, port and addresses last."""
    from ipaddress import ip_address

    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 8 and fields[3] == "10":
            for host in fields[8:]:
                with suppress(ValueError):
                    yield _listener("sctp", ip_address(host), int(fields[5]), int(fields[7]))


def _listener(proto: Proto, address: Address, port: int, inode: int) -> Listener:
    if not 0 <= port <= MAX_PORT or inode < 0:
        raise ValueError(f"no port, or no inode: {port}, {inode}")
    return Listener(proto, address, port, inode)


def _address(digits: str) -> Address:
    # Each 32-bit word stands in the machine's byte order.
    import sys

    words = [int(digits[i : i + 8], 16).to_bytes(4, sys.byteorder) for i in range(0, len(digits), 8)]
    data = b"".join(words)
    return unmapped(IPv4Address(data) if len(data) == 4 else IPv6Address(data))


def unmapped(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 one stands for (RFC 4291, 2.5.5.2); any other as it is."""
    return getattr(address, "ipv4_mapped", None) or address


def against(facts: SocketFacts, forward: Forward, reach: Reach) -> Iterator[Listener]:
    """Yield the sockets that would lose connections to ``forward``, by port, autobound ones included.

    Raises UnreadError, as do all functions that are given SocketFacts.
    """
    if facts.listening is None:
        raise UnreadError(Question("sockets"))
    found = ports.between(facts.listening, forward.proto, forward.span)
    return (listener for listener in found if _meets(listener, forward, reach, facts))


def _details(facts: SocketFacts) -> Details:
    if facts.details is None:
        raise UnreadError(Question("details"))
    return facts.details


def owner(listener: Listener, facts: SocketFacts) -> str:
    """Return the name of the program that has a socket open; empty where none is found."""
    if facts.owners is None:
        raise UnreadError(Question("owners"))
    return facts.owners.get(listener.inode, "")


def autobound(listener: Listener, facts: SocketFacts) -> bool:
    """Tell whether a socket is a UDP client's, on a port that the kernel chose when it first sent.

    It is no listener: nobody was told of the port, and answers to what it sent go by the entry
    that conntrack has of that, past any forward. Neither the port's number nor the wildcard
    address tells such a socket from a server's (WireGuard's 51820, mosh, QUIC); that no program
    asked for the port (SOCK_BINDPORT_LOCK) does. TCP and SCTP sockets that listen, listen.
    """
    return listener.proto == "udp" and listener.inode in _details(facts).autobound


def _meets(listener: Listener, forward: Forward, reach: Reach, facts: SocketFacts) -> bool:
    limit = forward.address or forward.source
    if not _takes(listener, frozenset((limit.version,)) if limit else reach.families, facts):
        return False
    if forward.dev and _on_another_device(listener, forward.dev, reach.interfaces, facts):
        return False
    address = listener.address
    if address.is_unspecified:
        return True
    if forward.address is not None:
        return address == forward.address
    if address.is_loopback:
        return reach.localhost and address.version == 4 and forward.dev is None
    # What is sent to many, and to fe80::, never comes to the rules that look for a forward.
    elsewhere = address.is_multicast or (address.version == 6 and address.is_link_local)
    return address not in reach.excluded and not elsewhere


def _takes(listener: Listener, families: frozenset[int], facts: SocketFacts) -> bool:
    """Tell whether a socket takes packets of one of the families."""
    if listener.address.version in families:
        return True
    # One on :: takes IPv4 as well, unless it says that it does not.
    unspecified6 = listener.address.version == 6 and listener.address.is_unspecified
    return unspecified6 and listener.inode not in _details(facts).v6only


def _on_another_device(listener: Listener, dev: str, interfaces: Interfaces, facts: SocketFacts) -> bool:
    """Tell whether a socket is bound to another device than ``dev``, or to an address of another link.

    The kernel takes packets for any of its addresses by any device (the weak host model), so the
    forward does get those for the other link's address that come by ``dev``. But nobody is sent
    there by that way, unlike the socket's own link, where the forward takes nothing.
    """
    bound = _details(facts).devices.get(listener.inode)
    if bound is not None:
        if dev not in facts.devices:
            raise UnreadError(Question("device", dev))
        if bound not in facts.devices[dev]:
            return True
    return not listener.address.is_unspecified and _is_elsewhere(listener.address, dev, interfaces)


def _is_elsewhere(ip: Address, dev: str, interfaces: Interfaces) -> bool:
    """Tell whether an address is one of another link than that of ``dev``.

    One of lo, or without a subnet (a floating or anycast one), is meant to be reached by every device.
    """
    if any(address.ip == ip for address in interfaces.get(dev, ())):
        return False
    others = (address for name, found in interfaces.items() if name not in (dev, "lo") for address in found)
    return any(address.ip == ip and address.network.num_addresses > 1 for address in others)
