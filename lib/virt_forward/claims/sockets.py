"""Sockets on which the host itself listens: /proc/net text to values, and whom they stand against."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address

from virt_forward import ports
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


class Reach(NamedTuple):
    """Which packets the forwards of a guest take. The functions are called only where that matters.

    ``localhost`` tells whether forwards without an address listen on 127.0.0.1, too; ``excluded``
    are addresses where no forward listens (the guest network's gateway); ``families`` are the IP
    versions that the guest may have. ``details`` tells of sockets what /proc does not;
    ``elsewhere`` tells the addresses of other links than a device's, ``devices`` the indexes of
    the devices to which a socket may be bound and still get what arrives by one.
    """

    localhost: bool = False
    excluded: frozenset[Address] = frozenset()
    families: frozenset[int] = frozenset((4, 6))
    details: Callable[[], Details] = Details
    elsewhere: Callable[[str], frozenset[Address]] = lambda _: frozenset()
    devices: Callable[[str], frozenset[int]] = lambda _: frozenset()


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


def against(listening: ByPort, forward: Forward, reach: Reach) -> Iterator[Listener]:
    """Yield the sockets that would lose connections to ``forward``, by port, autobound ones included."""
    found = ports.between(listening, forward.proto, forward.span)
    return (listener for listener in found if _meets(listener, forward, reach))


def autobound(listener: Listener, reach: Reach) -> bool:
    """Tell whether a socket is a UDP client's, on a port that the kernel chose when it first sent.

    It is no listener: nobody was told of the port, and answers to what it sent go by the entry
    that conntrack has of that, past any forward. Neither the port's number nor the wildcard
    address tells such a socket from a server's (WireGuard's 51820, mosh, QUIC); that no program
    asked for the port (SOCK_BINDPORT_LOCK) does. TCP and SCTP sockets that listen, listen.
    """
    return listener.proto == "udp" and listener.inode in reach.details().autobound


def _meets(listener: Listener, forward: Forward, reach: Reach) -> bool:
    limit = forward.address or forward.source
    if not _takes(listener, frozenset((limit.version,)) if limit else reach.families, reach):
        return False
    if forward.dev and _on_another_device(listener, forward.dev, reach):
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


def _takes(listener: Listener, families: frozenset[int], reach: Reach) -> bool:
    """Tell whether a socket takes packets of one of the families."""
    if listener.address.version in families:
        return True
    # One on :: takes IPv4 as well, unless it says that it does not.
    unspecified6 = listener.address.version == 6 and listener.address.is_unspecified
    return unspecified6 and listener.inode not in reach.details().v6only


def _on_another_device(listener: Listener, dev: str, reach: Reach) -> bool:
    """Tell whether a socket is bound to another device than ``dev``, or to an address of another link.

    The kernel takes packets for any of its addresses by any device (the weak host model), so the
    forward does get those for the other link's address that come by ``dev``. But nobody is sent
    there by that way, unlike the socket's own link, where the forward takes nothing.
    """
    bound = reach.details().devices.get(listener.inode)
    if bound is not None and bound not in reach.devices(dev):
        return True
    return not listener.address.is_unspecified and listener.address in reach.elsewhere(dev)
