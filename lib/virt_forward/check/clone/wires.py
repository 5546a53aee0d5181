"""The wires of the clone: frames that go in and come out, and what the kernel tells of them meanwhile."""

import contextlib
import errno
import select
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from virt_forward.check.clone import namespace, packets, plan, trace, verdict
from virt_forward.check.clone.plan import Plan, Wire
from virt_forward.check.clone.probes import Probe
from virt_forward.check.clone.trace import Event
from virt_forward.check.clone.verdict import Seen
from virt_forward.host import netlink
from virt_forward.model import Endpoint

BATCH = 64
"""How many probes are under way at once."""
PATIENCE = 0.05
"""Seconds without any packet after which one counts as lost; the kernel forwards within microseconds."""
BUFFER = 16 << 20

SO_RCVBUFFORCE, PACKET_OUTGOING, ETH_P_ALL = 33, 4, 3
"""packet(7), asm-generic/socket.h."""


class Wires:
    """The sockets: one for the outside ends of all wires, one for the kernel's trace."""

    def __init__(self, built: Plan) -> None:
        self._built = built
        with namespace.outside():
            self._frames = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self._events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netlink.NETLINK_NETFILTER)
        for opened in (self._frames, self._events):
            opened.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
            opened.setblocking(False)
        self._events.bind((0, 0))
        self._events.setsockopt(netlink.SOL_NETLINK, netlink.NETLINK_ADD_MEMBERSHIP, trace.GROUP)
        self._number = 0

    def close(self) -> None:
        """Close the sockets."""
        self._frames.close()
        self._events.close()

    def devices(self) -> list[str]:
        """Return the links by which probes and answers come in."""
        ends = (*self._built.uplinks.values(), *self._built.guests.values())
        return sorted({wire.link for wire in ends})

    def try_first(self, probe: Probe) -> "Observation":
        """Send the first packet of a probe; return what is observed until it comes out or is dropped."""
        return self._traced(lambda: self._send(probe), "first")

    def try_answer(self, probe: Probe, first: "Observation") -> "Observation":
        """Answer the packet that came out for the guest; return all that is observed of the answer."""
        frame = next((frame for seen, frame in first.frames if seen.packet.kind == "first"), b"")
        return self._traced(lambda: self._answer(probe, frame), "answer")

    def connects(self, endpoint: Endpoint, port: int) -> bool:
        """Tell whether a TCP connection of the host itself to a guest gets through to it and back."""
        outside = self._built.guests[endpoint.bridge, endpoint.mac].outside

        def receive(seen: Seen, frame: bytes) -> None:
            packet = seen.packet
            answer = packets.answer_frame(frame)
            if answer and (seen.outside, packet.dst, packet.dport) == (outside, endpoint.ip, port):
                self._put(outside, answer)

        family = socket.AF_INET if endpoint.ip.version == 4 else socket.AF_INET6
        with socket.socket(family, socket.SOCK_STREAM) as opened:
            opened.setblocking(False)
            opened.connect_ex((str(endpoint.ip), port))
            self._receive(receive, lambda: False)
            return opened.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0 and _is_connected(opened)

    def reaches_guest(self, probe: Probe, first: "Observation") -> bool:
        """Tell whether the first packet came out where the guest is."""
        return verdict.arrived(probe, self._guest(probe), first.seen)

    def send_all(self, probes: Sequence[Probe]) -> set[Probe]:
        """Send probes, answer for the guests, and return those whose answer comes out again."""
        delivered: set[Probe] = set()
        for start in range(0, len(probes), BATCH):
            delivered |= self._send_some(probes[start : start + BATCH])
        return delivered

    def _send_some(self, probes: Sequence[Probe]) -> set[Probe]:
        waiting = {self._send(probe): probe for probe in probes}
        delivered: set[Probe] = set()

        def receive(seen: Seen, frame: bytes) -> None:
            probe = waiting.get(seen.packet.identifier)
            if probe is None:
                return
            if verdict.arrived(probe, self._guest(probe), [seen]):
                self._answer(probe, frame)
            elif verdict.answered(probe, [seen]):
                delivered.add(probe)

        self._receive(receive, lambda: len(delivered) == len(waiting))
        self._drain_events()
        return delivered

    def _send(self, probe: Probe) -> int:
        """Send the first packet of a new connection; return its identifier."""
        self._number += 1
        identifier = 0x56460000 + self._number
        flow = plan.flow(probe, self._built, 32768 + self._number % 28000)
        self._put(self._built.uplinks[probe.device].outside, packets.first_frame(flow, identifier))
        return identifier

    def _answer(self, probe: Probe, frame: bytes) -> None:
        answer = packets.answer_frame(frame)
        if answer:
            self._put(self._guest(probe).outside, answer)

    def _put(self, outside: str, frame: bytes) -> None:
        try:
            self._frames.sendto(frame, (outside, 0))
        except OSError as error:
            # A link that is down on the host is down here, too.
            if error.errno not in (errno.ENETDOWN, errno.ENXIO, errno.ENODEV):
                raise

    def _guest(self, probe: Probe) -> Wire:
        return self._built.guests[probe.endpoint.bridge, probe.endpoint.mac]

    def _receive(self, receive: Callable[[Seen, bytes], None], done: Callable[[], bool]) -> None:
        """Hand over the frames that come out until ``done``, or none came for PATIENCE."""
        while not done() and select.select([self._frames], [], [], PATIENCE)[0]:
            with contextlib.suppress(BlockingIOError):
                while True:
                    frame, address = self._frames.recvfrom(4096)
                    packet = packets.parse(frame) if address[2] != PACKET_OUTGOING else None
                    if packet:
                        receive(Seen(address[0], packet), frame)

    def _traced(self, send: Callable[[], object], wanted: str) -> "Observation":
        self._drain_events()
        found = Observation([], [])
        send()
        until = time.monotonic() + PATIENCE
        while (left := until - time.monotonic()) > 0:
            ready = select.select([self._frames, self._events], [], [], left)[0]
            found.events.extend(self._read_events())
            if self._frames in ready:
                self._receive(
                    lambda seen, frame: found.frames.append((seen, frame)), lambda: bool(found.frames)
                )
                found.events.extend(self._read_events())
            if any(seen.packet.kind == wanted for seen, _ in found.frames) or _dropped(found.events):
                break
        return found

    def _read_events(self) -> list[Event]:
        found: list[Event] = []
        with contextlib.suppress(BlockingIOError):
            while True:
                found += trace.parse(self._events.recv(1 << 16))
        return found

    def _drain_events(self) -> None:
        self._read_events()


def _is_connected(opened: socket.socket) -> bool:
    try:
        opened.getpeername()
    except OSError:
        return False
    return True


class Observation(NamedTuple):
    """What is observed of one packet: events of the trace, and frames that came out."""

    events: list[Event]
    frames: list[tuple[Seen, bytes]]

    @property
    def seen(self) -> list[Seen]:
        """The packets in the frames."""
        return [seen for seen, _ in self.frames]


def _dropped(events: Iterable[Event]) -> bool:
    return any(event.verdict in ("drop", "queue", "stolen") for event in events)
