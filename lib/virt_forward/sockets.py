"""Sockets on which the host itself listens: /proc/net text to values, and whom they stand against."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from virt_forward.model import MAX_PORT, Address, Forward, Proto

LISTEN = {"tcp": "0A", "udp": "07"}
"""Socket states in /proc/net: TCP_LISTEN, and what an unconnected UDP socket shows (TCP_CLOSE)."""


class Listener(NamedTuple):
    """A socket of the host; ``address`` is the unspecified one where it takes any."""

    proto: Proto
    address: Address
    port: int
    inode: int = 0


def parse(proto: Proto, text: str) -> Iterator[Listener]:
    """Yield the listeners in the text of /proc/net/tcp, tcp6, udp or udp6 (proc_net_tcp.rst).

    A line that is damaged is passed over, here and below.
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


def parse_v6only(text: str) -> frozenset[int]:
    """Return the inodes of the sockets that take IPv6 alone, from ``ss -6Hlntue`` (ss(8), IPV6_V6ONLY)."""
    lines = (line.split() for line in text.splitlines())
    inodes = (word for words in lines if "v6only:1" in words for word in words if word.startswith("ino:"))
    # No inode has more digits; isdigit() takes other scripts' digits, too.
    return frozenset(int(word[4:]) for word in inodes if len(word) < 24 and word[4:].isdecimal())


def _address(digits: str) -> Address:
    # Each 32-bit word stands in the machine's byte order.
    import sys

    words = [int(digits[i : i + 8], 16).to_bytes(4, sys.byteorder) for i in range(0, len(digits), 8)]
    data = b"".join(words)
    address = IPv4Address(data) if len(data) == 4 else IPv6Address(data)
    return getattr(address, "ipv4_mapped", None) or address


def against(
    listeners: Iterable[Listener],
    forward: Forward,
    *,
    localhost: bool,
    spared: frozenset[Address],
    v6only: Callable[[], frozenset[int]] = frozenset,
) -> Iterator[Listener]:
    """Yield the listeners that would lose connections to ``forward``.

    ``localhost`` tells whether forwards without an address listen on 127.0.0.1, too;
    ``spared`` are addresses where no forward listens (the guest network's gateway);
    ``v6only`` tells the inodes of sockets that take IPv6 alone; one on :: that is not among
    them takes IPv4 as well. It is asked only where that matters.
    """
    for listener in listeners:
        if (
            listener.proto == forward.proto
            and forward.start <= listener.port <= forward.end
            and _meets(listener, forward, localhost, spared, v6only)
        ):
            yield listener


def _meets(
    listener: Listener,
    forward: Forward,
    localhost: bool,
    spared: frozenset[Address],
    v6only: Callable[[], frozenset[int]],
) -> bool:
    address = listener.address
    limit = forward.address or forward.source
    if address.is_unspecified:
        if limit is None or limit.version == address.version:
            return True
        return address.version == 6 and listener.inode not in v6only()
    if forward.address is not None:
        return address == forward.address
    if limit is not None and limit.version != address.version:
        return False
    if address.is_loopback:
        return localhost and address.version == 4
    # What is sent to many, and to fe80::, never comes to the rules that look for a forward.
    elsewhere = address.is_multicast or (address.version == 6 and address.is_link_local)
    return address not in spared and not elsewhere
