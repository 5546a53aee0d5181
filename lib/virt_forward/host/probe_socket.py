"""Sending probes: a packet socket on a guest's bridge that sends the requests and receives the answers."""

import array
import contextlib
import os
import socket
import struct
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from select import POLLIN, poll

from virt_forward.addresses.probe import (
    DHCP_CLIENT,
    DHCP_SERVER,
    ECHO_REPLY,
    ECHO_REQUEST,
    ETH_P_ARP,
    ETH_P_IPV6,
    ICMPV6,
    REPLY,
    UDP,
    Probe,
    Sightings,
    arp_requests,
    echo_request,
    is_answer,
    merge,
    parse_arp_reply,
    parse_dhcp_ack,
    parse_echo_reply,
    sockets_needed,
)
from virt_forward.model import Address, Sighting, Subnet

ETH_P_IP, ETH_P_ALL = 0x0800, 0x0003
PACKET_HOST, PACKET_OUTGOING = 0, 4
SO_ATTACH_FILTER, SO_RCVBUFFORCE = 26, 33
SKF_AD_PKTTYPE, SKF_AD_VLAN_TAG_PRESENT = 0xFFFFF004, 0xFFFFF030
"""linux/if_ether.h, linux/if_packet.h (packet(7)), asm-generic/socket.h, linux/filter.h."""

RECEIVE_BYTES = 1 << 22
"""The receive buffer, without the system's limit: the answers of thousands of guests, asked at once."""

MAX_FRAMES = 256
"""How many frames are read at once, so that a flood does not keep the caller from other work."""

Instruction = tuple[int, int, int, int]
"""struct sock_filter: code, jt, jf, k (linux/filter.h)."""

ProbeSockets = Mapping[tuple[str, int], "ProbeSocket"]
"""Open sockets by bridge and IP version."""

FILTER_IPV4: Sequence[Instruction] = (
    (0x28, 0, 0, SKF_AD_VLAN_TAG_PRESENT),
    (0x15, 0, 18, 0),  # in a VLAN, which is another network: drop
    (0x28, 0, 0, 12),  # ldh type
    (0x15, 12, 0, ETH_P_ARP),  # jeq arp
    (0x15, 0, 15, ETH_P_IP),  # jeq ip, else drop
    (0x28, 0, 0, SKF_AD_PKTTYPE),
    (0x15, 0, 13, PACKET_OUTGOING),  # leaves by the bridge, else drop
    (0x30, 0, 0, 14 + 9),  # ldb the protocol in the IP header
    (0x15, 0, 11, UDP),  # jeq udp, else drop
    (0x28, 0, 0, 14 + 6),  # ldh flags and fragment offset
    (0x45, 9, 0, 0x3FFF),  # a fragment: drop
    (0xB1, 0, 0, 14),  # ldxb length of the IP header
    (0x48, 0, 0, 14),  # ldh the source port
    (0x15, 0, 6, DHCP_SERVER),  # a DHCP server's, else drop
    (0x48, 0, 0, 14 + 2),  # ldh the destination port
    (0x15, 5, 4, DHCP_CLIENT),  # to a DHCP client: keep, else drop
    (0x28, 0, 0, SKF_AD_PKTTYPE),
    (0x15, 0, 2, PACKET_HOST),  # to the host, else drop
    (0x28, 0, 0, 14 + 6),  # ldh the ARP operation
    (0x15, 1, 0, REPLY),  # a reply: keep, else drop
    (0x06, 0, 0, 0),  # drop
    (0x06, 0, 0, 0xFFFF),  # keep
)
"""Of all packets on a bridge: ARP replies to the host, and DHCP answers that leave by the bridge.

Classic BPF (linux/filter.h, linux/bpf_common.h).
"""


def filter_ipv6(identifier: int) -> Sequence[Instruction]:
    """Return the BPF program that passes ICMPv6 echo replies to the host that have ``identifier``."""
    return (
        (0x28, 0, 0, SKF_AD_VLAN_TAG_PRESENT),
        (0x15, 0, 10, 0),  # in a VLAN: drop
        (0x28, 0, 0, SKF_AD_PKTTYPE),
        (0x15, 0, 8, PACKET_HOST),  # to the host, else drop
        (0x28, 0, 0, 12),  # ldh type
        (0x15, 0, 6, ETH_P_IPV6),  # jeq ipv6, else drop
        (0x30, 0, 0, 14 + 6),  # ldb the next header
        (0x15, 0, 4, ICMPV6),  # jeq icmpv6, else drop
        (0x30, 0, 0, 14 + 40),  # ldb the ICMPv6 type
        (0x15, 0, 2, ECHO_REPLY),  # jeq echo reply, else drop
        (0x28, 0, 0, 14 + 44),  # ldh the identifier
        (0x15, 1, 0, identifier),  # ours: keep, else drop
        (0x06, 0, 0, 0),  # drop
        (0x06, 0, 0, 0xFFFF),  # keep
    )


class ProbeSocket:
    """A packet socket on a bridge, for one IP version.

    For IPv4 it receives outgoing packets as well, as the host's DHCP server answers by them; for IPv6
    incoming ones only. Raises OSError where the bridge does not exist or packet sockets are not permitted.
    """

    def __init__(self, bridge: str, version: int) -> None:
        self.bridge = bridge
        self.version = version
        self._identifier = int.from_bytes(os.urandom(2))
        protocol = ETH_P_ALL if version == 4 else ETH_P_IPV6
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        try:
            # A socket that is bound before it has a filter receives unfiltered packets first.
            _attach(self._socket, FILTER_IPV4 if version == 4 else filter_ipv6(self._identifier))
            self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BYTES)
            self._socket.bind((bridge, protocol))
            self._socket.setblocking(False)
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when an answer arrives."""
        return self._socket.fileno()

    def send(self, probe: Probe) -> None:
        """Send a probe of the socket's IP version; an error of the kernel is ignored.

        ARP requests, and the echo request to a single address, go to the probed NIC only; for an
        IPv6 subnet one echo request goes to all nodes on the bridge.
        """
        with contextlib.suppress(OSError):
            if self.version == 6 and probe.subnet.prefixlen == probe.subnet.max_prefixlen:
                own_mac = self._socket.getsockname()[4]
                frame = echo_request(probe, own_mac, self._identifier)
                self._socket.sendto(frame, (self.bridge, ETH_P_IPV6))
                return
            if self.version == 6:
                self._send_to_all_nodes(probe)
                return
            for frame in arp_requests(probe, self._socket.getsockname()[4]):
                self._socket.sendto(frame, (self.bridge, ETH_P_ARP))

    def _send_to_all_nodes(self, probe: Probe) -> None:
        """Send an echo request to ff02::1: each node answers from its own address in the probe's subnet."""
        # ICMPv6 (RFC 4443); the kernel fills in the checksum.
        request = struct.pack("!BBHHH", ECHO_REQUEST, 0, 0, self._identifier, 1)
        with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sender:
            sender.bind((str(probe.own), 0))
            target = ("ff02::1", 0, 0, socket.if_nametoindex(self.bridge))
            sender.sendto(request, socket.MSG_DONTWAIT, target)

    def read(self, probes: Iterable[Probe]) -> list[Sighting]:
        """Return the sightings since the last call that answer one of ``probes``, the newest last."""
        frames: list[bytes] = []
        with contextlib.suppress(OSError):
            while len(frames) < MAX_FRAMES:
                frames.append(self._socket.recv(2048))
        if not frames:
            return []
        mine = [probe for probe in probes if (probe.bridge, probe.own.version) == (self.bridge, self.version)]
        own = {ip for probe in mine for ip in probe.host_addresses()}
        found = (self._parse(frame, own) for frame in frames)
        return [sighting for sighting in found if sighting and any(is_answer(sighting, p) for p in mine)]

    def _parse(self, frame: bytes, own: Collection[Address]) -> Sighting | None:
        # The filter has checked the direction, which is not part of the frame.
        if self.version == 6:
            return parse_echo_reply(frame, own, self._identifier)
        return parse_arp_reply(frame, own) or parse_dhcp_ack(frame, own)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def send(probes: Iterable[Probe], sockets: ProbeSockets) -> None:
    """Send probes by the sockets on their bridges; a probe without a socket is left out."""
    sent: set[tuple[str, Address, Subnet]] = set()
    for probe in probes:
        found = sockets.get((probe.bridge, probe.own.version))
        # One IPv6 request reaches every NIC on the bridge.
        if found and (found.version == 4 or (probe.bridge, probe.own, probe.subnet) not in sent):
            sent.add((probe.bridge, probe.own, probe.subnet))
            found.send(probe)


def probe_once(probes: Iterable[Probe], seconds: float = 0.3) -> Sightings:
    """Send probes, wait up to ``seconds`` for the answers, and return them by bridge.

    Returns earlier once all probes of a single address are answered, if there are no others. A bridge
    on which no socket can be opened is left out.
    """
    probes = tuple(probes)
    sockets: dict[tuple[str, int], ProbeSocket] = {}
    with contextlib.ExitStack() as closing:
        for bridge, version in sockets_needed(probes):
            with contextlib.suppress(OSError):
                opened = closing.enter_context(contextlib.closing(ProbeSocket(bridge, version)))
                sockets[bridge, version] = opened
        send(probes, sockets)
        return _receive(probes, sockets, time.monotonic() + seconds)


def _receive(probes: Sequence[Probe], sockets: ProbeSockets, until: float) -> Sightings:
    sightings: dict[str, tuple[Sighting, ...]] = {}
    poller = poll()
    for opened in sockets.values():
        poller.register(opened.fileno(), POLLIN)
    unanswered = list(probes)
    while unanswered and (left := until - time.monotonic()) > 0:
        poller.poll(left * 1000)
        for opened in sockets.values():
            found = opened.read(probes)
            sightings[opened.bridge] = merge(sightings.get(opened.bridge, ()), found)
            unanswered = [probe for probe in unanswered if not _is_done(probe, opened.bridge, found)]
    return sightings


def _is_done(probe: Probe, bridge: str, found: Sequence[Sighting]) -> bool:
    """Tell whether a probe of a single address is answered; a subnet may always have one more."""
    single = probe.bridge == bridge and probe.subnet.num_addresses == 1
    return single and any(is_answer(sighting, probe) for sighting in found)


def _attach(packets: socket.socket, program: Sequence[Instruction]) -> None:
    code = array.array("B", b"".join(struct.pack("=HBBI", *instruction) for instruction in program))
    # struct sock_fprog: the number of instructions and their address; the kernel copies them.
    packets.setsockopt(
        socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", len(program), code.buffer_info()[0])
    )
