"""Asking guests for their addresses: a socket on their bridge that asks, and hears the answers."""

import array
import contextlib
import socket
import struct
import time
from collections.abc import Iterable, Mapping
from select import POLLIN, poll

from virt_forward.addresses import asking
from virt_forward.addresses.asking import Heard, Question
from virt_forward.model import Sighting

ETH_P_IP, ETH_P_ARP, ETH_P_ALL = 0x0800, 0x0806, 0x0003
PACKET_HOST, PACKET_OUTGOING = 0, 4
SO_ATTACH_FILTER = 26
"""linux/if_ether.h, linux/if_packet.h (packet(7)), asm-generic/socket.h."""

FILTER = (
    (0x28, 0, 0, 0xFFFFF000),  # ldh proto (SKF_AD_OFF + SKF_AD_PROTOCOL)
    (0x15, 8, 0, ETH_P_ARP),  # jeq arp
    (0x15, 0, 9, ETH_P_IP),  # jeq ip, else drop
    (0x30, 0, 0, 9),  # ldb the protocol in the IP header
    (0x15, 0, 7, asking.UDP),  # jeq udp, else drop
    (0x28, 0, 0, 6),  # ldh flags and fragment offset
    (0x45, 5, 0, 0x1FFF),  # a later fragment: drop
    (0xB1, 0, 0, 0),  # ldxb length of the IP header
    (0x48, 0, 0, 0),  # ldh the source port
    (0x15, 3, 2, asking.DHCP_SERVER),  # a DHCP server's: keep, else drop
    (0x28, 0, 0, 6),  # ldh the ARP operation
    (0x15, 1, 0, asking.REPLY),  # a reply: keep, else drop
    (0x06, 0, 0, 0),  # drop
    (0x06, 0, 0, 0xFFFF),  # keep
)
"""What the kernel lets through to us of all the packets on a bridge (linux/filter.h, classic BPF)."""

ECHO_REQUEST = struct.pack("!BBHHH", 128, 0, 0, 0, 1)
"""ICMPv6 (RFC 4443); the kernel puts the checksum in."""


class Ear:
    """A socket on a bridge. Raises OSError where the bridge is not there, or we may not listen."""

    def __init__(self, bridge: str) -> None:
        self.bridge = bridge
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, 0)
        try:
            # Before it is bound, or it would begin with packets that nobody has filtered.
            _attach(self._socket)
            self._socket.bind((bridge, ETH_P_ALL))
            self._socket.setblocking(False)
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """Return the descriptor to wait for."""
        return self._socket.fileno()

    def ask(self, question: Question) -> None:
        """Ask a NIC, and it alone, for its IPv4 address."""
        target = bytes.fromhex(question.mac.replace(":", ""))
        with contextlib.suppress(OSError):
            for request in asking.arp_requests(question, self._socket.getsockname()[4]):
                self._socket.sendto(request, (self.bridge, ETH_P_ARP, 0, 0, target))

    def read(self) -> list[Sighting]:
        """Return what was heard since the last call, the newest last."""
        found: list[Sighting | None] = []
        with contextlib.suppress(OSError):
            while True:
                data, (_, protocol, kind, *_rest) = self._socket.recvfrom(2048)
                if (protocol, kind) == (ETH_P_ARP, PACKET_HOST):
                    found.append(asking.arp_answer(data))
                elif (protocol, kind) == (ETH_P_IP, PACKET_OUTGOING):
                    # Leases that the host itself gives out; what a guest claims to lease is no news.
                    found.append(asking.dhcp_answer(data))
        return [lease for lease in found if lease]

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def _ask_all(question: Question) -> None:
    """Make all on a bridge answer to an IPv6 address of their own subnet.

    The kernel learns their addresses as they do, so that nobody needs to listen.
    """
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sender,
    ):
        index = socket.if_nametoindex(question.bridge)
        sender.bind((str(question.own), 0))
        sender.sendto(ECHO_REQUEST, socket.MSG_DONTWAIT, ("ff02::1", 0, 0, index))


def ask(question: Question, ears: Mapping[str, Ear]) -> None:
    """Ask a question by the ear on its bridge, or without one where the kernel listens."""
    if question.own.version == 6:
        _ask_all(question)
    elif question.bridge in ears:
        ears[question.bridge].ask(question)


def once(questions: Iterable[Question], seconds: float = 0.3) -> Heard:
    """Ask every question, wait for the answers, and return them; what cannot be asked is left out."""
    questions = tuple(questions)
    ears: dict[str, Ear] = {}
    with contextlib.ExitStack() as closing:
        for bridge in asking.listened(questions):
            with contextlib.suppress(OSError):
                ears[bridge] = closing.enter_context(contextlib.closing(Ear(bridge)))
        for question in questions:
            ask(question, ears)
        return _answers(ears, time.monotonic() + seconds)


def _answers(ears: dict[str, Ear], until: float) -> Heard:
    heard: dict[str, tuple[Sighting, ...]] = {}
    poller = poll()
    for ear in ears.values():
        poller.register(ear.fileno(), POLLIN)
    while (left := until - time.monotonic()) > 0:
        poller.poll(left * 1000)
        for bridge, ear in ears.items():
            heard[bridge] = (*heard.get(bridge, ()), *ear.read())
    return heard


def _attach(packets: socket.socket) -> None:
    program = array.array("B", b"".join(struct.pack("=HBBI", *step) for step in FILTER))
    # struct sock_fprog: how many steps, and where they are; the kernel makes a copy.
    packets.setsockopt(
        socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", len(FILTER), program.buffer_info()[0])
    )
