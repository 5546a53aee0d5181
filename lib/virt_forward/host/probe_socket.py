"""Asking guests for their addresses: a socket on their bridge that asks, and hears the answers."""

import array
import contextlib
import os
import socket
import struct
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from select import POLLIN, poll

from virt_forward.addresses import probe
from virt_forward.addresses.probe import ETH_P_ARP, ETH_P_IPV6, Heard, Question
from virt_forward.model import Address, Sighting, Subnet

ETH_P_IP, ETH_P_ALL = 0x0800, 0x0003
PACKET_HOST, PACKET_OUTGOING = 0, 4
SO_ATTACH_FILTER = 26
SKF_AD_PKTTYPE, SKF_AD_VLAN_TAG_PRESENT = 0xFFFFF004, 0xFFFFF030
"""linux/if_ether.h, linux/if_packet.h (packet(7)), asm-generic/socket.h, linux/filter.h."""

MOST_FRAMES = 256
"""How many frames are read at once: whoever floods us does not keep us from other work."""

Step = tuple[int, int, int, int]
Ears = Mapping[tuple[str, int], "Ear"]
"""The open ones, by bridge and IP version."""

FILTER4: Sequence[Step] = (
    (0x28, 0, 0, SKF_AD_VLAN_TAG_PRESENT),
    (0x15, 0, 18, 0),  # in a VLAN, which is another network: drop
    (0x28, 0, 0, 12),  # ldh type
    (0x15, 12, 0, ETH_P_ARP),  # jeq arp
    (0x15, 0, 15, ETH_P_IP),  # jeq ip, else drop
    (0x28, 0, 0, SKF_AD_PKTTYPE),
    (0x15, 0, 13, PACKET_OUTGOING),  # leaves by the bridge, else drop
    (0x30, 0, 0, 14 + 9),  # ldb the protocol in the IP header
    (0x15, 0, 11, probe.UDP),  # jeq udp, else drop
    (0x28, 0, 0, 14 + 6),  # ldh flags and fragment offset
    (0x45, 9, 0, 0x3FFF),  # a fragment: drop
    (0xB1, 0, 0, 14),  # ldxb length of the IP header
    (0x48, 0, 0, 14),  # ldh the source port
    (0x15, 0, 6, probe.DHCP_SERVER),  # a DHCP server's, else drop
    (0x48, 0, 0, 14 + 2),  # ldh the destination port
    (0x15, 5, 4, probe.DHCP_CLIENT),  # to a DHCP client: keep, else drop
    (0x28, 0, 0, SKF_AD_PKTTYPE),
    (0x15, 0, 2, PACKET_HOST),  # to us, else drop
    (0x28, 0, 0, 14 + 6),  # ldh the ARP operation
    (0x15, 1, 0, probe.REPLY),  # a reply: keep, else drop
    (0x06, 0, 0, 0),  # drop
    (0x06, 0, 0, 0xFFFF),  # keep
)
"""What the kernel lets through to us of all the packets on a bridge (linux/filter.h, classic BPF)."""


def filter6(identifier: int) -> Sequence[Step]:
    """Return the filter for echo replies of our own: of the IPv6 packets that come in at a bridge."""
    return (
        (0x28, 0, 0, SKF_AD_VLAN_TAG_PRESENT),
        (0x15, 0, 10, 0),  # in a VLAN: drop
        (0x28, 0, 0, SKF_AD_PKTTYPE),
        (0x15, 0, 8, PACKET_HOST),  # to us, else drop
        (0x28, 0, 0, 12),  # ldh type
        (0x15, 0, 6, ETH_P_IPV6),  # jeq ipv6, else drop
        (0x30, 0, 0, 14 + 6),  # ldb the next header
        (0x15, 0, 4, probe.ICMPV6),  # jeq icmpv6, else drop
        (0x30, 0, 0, 14 + 40),  # ldb the ICMPv6 type
        (0x15, 0, 2, probe.ECHO_REPLY),  # jeq echo reply, else drop
        (0x28, 0, 0, 14 + 44),  # ldh the identifier
        (0x15, 1, 0, identifier),  # ours: keep, else drop
        (0x06, 0, 0, 0),  # drop
        (0x06, 0, 0, 0xFFFF),  # keep
    )


class Ear:
    """A socket on a bridge, for one IP version. Raises OSError where there is none, or we may not listen.

    For IPv4 it sees what comes in and what leaves, for the sake of DHCP; for IPv6 what comes in alone.
    """

    def __init__(self, bridge: str, version: int) -> None:
        self.bridge = bridge
        self.version = version
        self._identifier = int.from_bytes(os.urandom(2))
        protocol = ETH_P_ALL if version == 4 else ETH_P_IPV6
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        try:
            # Before it is bound, or it would begin with packets that nobody has filtered.
            _attach(self._socket, FILTER4 if version == 4 else filter6(self._identifier))
            self._socket.bind((bridge, protocol))
            self._socket.setblocking(False)
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """Return the descriptor to wait for."""
        return self._socket.fileno()

    def ask(self, question: Question) -> None:
        """Ask a question of the ear's IP version: by ARP the NIC alone, by ICMPv6 all on the bridge."""
        with contextlib.suppress(OSError):
            if self.version == 6 and question.subnet.prefixlen == question.subnet.max_prefixlen:
                own_mac = self._socket.getsockname()[4]
                frame = probe.echo_request(question, own_mac, self._identifier)
                self._socket.sendto(frame, (self.bridge, ETH_P_IPV6))
                return
            if self.version == 6:
                self._ask_all(question)
                return
            for frame in probe.arp_requests(question, self._socket.getsockname()[4]):
                self._socket.sendto(frame, (self.bridge, ETH_P_ARP))

    def _ask_all(self, question: Question) -> None:
        """Make all on the bridge answer, each from an IPv6 address of its own in the subnet."""
        # ICMPv6 (RFC 4443); the kernel puts the checksum in.
        request = struct.pack("!BBHHH", 128, 0, 0, self._identifier, 1)
        with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sender:
            sender.bind((str(question.own), 0))
            target = ("ff02::1", 0, 0, socket.if_nametoindex(self.bridge))
            sender.sendto(request, socket.MSG_DONTWAIT, target)

    def read(self, questions: Iterable[Question]) -> list[Sighting]:
        """Return what was heard since the last call that answers one of these questions, the newest last."""
        frames: list[bytes] = []
        with contextlib.suppress(OSError):
            while len(frames) < MOST_FRAMES:
                frames.append(self._socket.recv(2048))
        if not frames:
            return []
        asked = [q for q in questions if (q.bridge, q.own.version) == (self.bridge, self.version)]
        own = {ip for question in asked for ip in question.hosts()}
        found = (self._sighting(frame, own) for frame in frames)
        return [seen for seen in found if seen and any(probe.answers(seen, question) for question in asked)]

    def _sighting(self, frame: bytes, own: Collection[Address]) -> Sighting | None:
        # The filter has looked at the direction, which the frame itself does not tell.
        if self.version == 6:
            return probe.echo_answer(frame, own, self._identifier)
        return probe.arp_answer(frame, own) or probe.dhcp_answer(frame, own)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def ask(questions: Iterable[Question], ears: Ears) -> None:
    """Ask questions by the ears on their bridges; those without an ear are left out."""
    asked: set[tuple[str, Address, Subnet]] = set()
    for question in questions:
        ear = ears.get((question.bridge, question.own.version))
        # By IPv6 one request is for every NIC on the bridge.
        if ear and (ear.version == 4 or (question.bridge, question.own, question.subnet) not in asked):
            asked.add((question.bridge, question.own, question.subnet))
            ear.ask(question)


def once(questions: Iterable[Question], seconds: float = 0.3) -> Heard:
    """Ask every question, wait for the answers, and return them; what cannot be asked is left out."""
    questions = tuple(questions)
    ears: dict[tuple[str, int], Ear] = {}
    with contextlib.ExitStack() as closing:
        for bridge, version in probe.listened(questions):
            with contextlib.suppress(OSError):
                ear = closing.enter_context(contextlib.closing(Ear(bridge, version)))
                ears[bridge, version] = ear
        ask(questions, ears)
        return _answers(questions, ears, time.monotonic() + seconds)


def _answers(questions: Sequence[Question], ears: Ears, until: float) -> Heard:
    heard: dict[str, tuple[Sighting, ...]] = {}
    poller = poll()
    for ear in ears.values():
        poller.register(ear.fileno(), POLLIN)
    while (left := until - time.monotonic()) > 0 and not _all_answered(questions, heard):
        poller.poll(left * 1000)
        for ear in ears.values():
            heard[ear.bridge] = probe.joined(heard.get(ear.bridge, ()), ear.read(questions))
    return heard


def _all_answered(questions: Sequence[Question], heard: Heard) -> bool:
    """Tell whether each question that is about one address has its answer; of others there may be more."""
    return all(
        question.subnet.num_addresses == 1
        and any(probe.answers(seen, question) for seen in heard.get(question.bridge, ()))
        for question in questions
    )


def _attach(packets: socket.socket, steps: Sequence[Step]) -> None:
    program = array.array("B", b"".join(struct.pack("=HBBI", *step) for step in steps))
    # struct sock_fprog: how many steps, and where they are; the kernel makes a copy.
    packets.setsockopt(
        socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", len(steps), program.buffer_info()[0])
    )
