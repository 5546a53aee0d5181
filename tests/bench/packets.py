#!/usr/bin/python3
"""What the table costs packets, as ratios within one run: prints a table, and JSON with --json.

    sudo ./tests/bench/packets.py [--apart] [--json] [--runs N]

incoming     a new flow to the host that is no forward, against empty nat chains
outgoing     a new flow from the host, against empty nat chains
transit      a new flow that is routed to the guest, against empty nat chains
passing      a packet of an established flow that is routed, against empty nat chains
one          a new flow through a forward in a table of 1, against one DNAT rule written by hand
size         a new flow through a forward in a table of 10,000, against a table of 1
established  a packet of an established flow through a forward in a table of 10,000, against one of 1

new, packets microseconds of a new flow, and of a packet of an established one, by the number of forwards

With --apart, "one" and "incoming" of a table of 1 as it is, and without some of its parts.

Every variant of a host has network namespaces of its own, a client's and a guest's included, so that
samples of all of them are taken in turn. A sample is the time of sendmmsg(2) for 1,000 UDP datagrams
on the client's veth (from a raw socket of the host for "outgoing"), each of a flow of its own: the
kernel takes a datagram to its end, a socket of the host or the guest, before it sends the next. Nothing
of the client's or the guest's programs is in it. "Empty nat chains" has connections tracked, as every
ruleset with "ct state" or masquerade has. Tracked connections are flushed between samples.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import statistics
import struct
import sys
import time
from collections.abc import Callable
from ipaddress import IPv4Address, ip_network
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPO / "lib"), str(REPO / "tests")]

from bench.hooks import report  # noqa: E402
from support import netns, payload  # noqa: E402
from virt_forward.config import Config  # noqa: E402
from virt_forward.model import Endpoint, Forward, Guest  # noqa: E402
from virt_forward.names import TABLE  # noqa: E402
from virt_forward.ruleset import table  # noqa: E402

FLOWS, PACKETS = 1000, 1000
FIRST_PORT = 20000
TARGETS = {"incoming": 1.10, "outgoing": 1.10, "transit": 1.10, "passing": 1.0} | {
    "one": 1.10,
    "size": 1.05,
    "established": 1.0,
}
FORWARDED, GUEST_PORT, CLOSED = 8080, 80, 9
SIZES = (1, 100, 1000, 10_000)
ETH_P_IP = 0x0800

EMPTY = """table inet empty {
  chain prerouting { type nat hook prerouting priority dstnat;
    %s
  }
  chain output { type nat hook output priority -100; }
  chain postrouting { type nat hook postrouting priority srcnat; }
  chain tracked { ct state new; }
}
"""
BY_HAND = EMPTY % f"iifname {netns.UPLINK} udp dport {FORWARDED} dnat ip to {netns.GUEST4}:{GUEST_PORT}"


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Msghdr(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("namelen", ctypes.c_uint),
        ("iov", ctypes.POINTER(_Iovec)),
        ("iovlen", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Mmsghdr(ctypes.Structure):
    _fields_ = (("header", _Msghdr), ("sent", ctypes.c_uint))


_LIBC = ctypes.CDLL(None, use_errno=True)


class Burst:
    """Packets that are sent in one call, again and again; ``to`` is a sockaddr, for a raw socket."""

    def __init__(self, sender: socket.socket, packets: list[bytes], to: bytes = b"") -> None:
        self.sender, self.count = sender, len(packets)
        self._data = [ctypes.create_string_buffer(packet, len(packet)) for packet in packets]
        self._to = ctypes.create_string_buffer(to, len(to)) if to else None
        self._iov = (_Iovec * self.count)(*(_Iovec(ctypes.addressof(d), len(d)) for d in self._data))
        self._msgs = (_Mmsghdr * self.count)()
        for message, iov in zip(self._msgs, self._iov, strict=True):
            message.header.iov, message.header.iovlen = ctypes.pointer(iov), 1
            if self._to:
                message.header.name, message.header.namelen = ctypes.addressof(self._to), len(to)

    def send(self) -> float:
        """Send them all, and return how many seconds one took."""
        sent, before = 0, time.perf_counter()
        while sent < self.count:
            done = _LIBC.sendmmsg(
                self.sender.fileno(), ctypes.byref(self._msgs, sent * ctypes.sizeof(_Mmsghdr)),
                min(self.count - sent, 1024), 0,
            )  # fmt: skip
            if done < 0:
                raise OSError(ctypes.get_errno(), "sendmmsg")
            sent += done
        return (time.perf_counter() - before) / self.count


def datagram(source: str, destination: str, sport: int, dport: int) -> bytes:
    """Return an IPv4 packet with an UDP datagram in it; a UDP checksum of 0 is none (RFC 768)."""
    udp = struct.pack("!HHHH", sport, dport, 12, 0) + b"ping"
    head = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0x4000, 64, 17, 0,
        socket.inet_aton(source), socket.inet_aton(destination),
    )  # fmt: skip
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    checksum = ~(total + (total >> 16)) & 0xFFFF
    return head[:10] + struct.pack("!H", checksum) + head[12:] + udp


def _mac(place: netns.Ns, dev: str) -> str:
    return place.run(["cat", f"/sys/class/net/{dev}/address"]).out.strip()


class Host:
    """One variant: a host with a ruleset, a client and a guest, and what is sent through them."""

    def __init__(self, undo: contextlib.ExitStack, ruleset: str) -> None:
        self.lab = undo.enter_context(netns.lab())
        self.guest = self.lab.guest()
        self._undo = undo
        self.lab.client.ip(f"route add default via {netns.HOST4}")
        self.lab.host.run(["nft", "-f", "-"], stdin=ruleset, timeout=60)
        sinks = ((self.lab.host, CLOSED), (self.lab.client, CLOSED), (self.guest, GUEST_PORT))
        for place, port in sinks:
            self._sink(place, port)
        self._neighbours()
        self._wire = self._on_wire()
        self._header = self._ethernet()
        self.incoming = self._new(netns.HOST4, CLOSED)
        self.forwarded = self._new(netns.HOST4, FORWARDED)
        self.transit = self._new(netns.GUEST4, GUEST_PORT)
        self.outgoing = self._outgoing()

    def _open(self, place: netns.Ns, family: int, kind: int, proto: int) -> socket.socket:
        made = payload.inside(place.path, lambda: socket.socket(family, kind, proto))
        return self._undo.enter_context(made)

    def _sink(self, place: netns.Ns, port: int) -> None:
        """Have a socket that takes datagrams, and drops them as it is full."""
        made = self._open(place, socket.AF_INET, socket.SOCK_DGRAM, 0)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
        made.bind(("", port))

    def _on_wire(self) -> socket.socket:
        made = self._open(self.lab.client, socket.AF_PACKET, socket.SOCK_RAW, 0)
        made.bind(("eth0", ETH_P_IP))
        return made

    def _neighbours(self) -> None:
        """Make neighbours known: one that is asked for in the middle of a sample would be part of it."""
        lab, guest = self.lab, self.guest
        lab.host.ip(
            f"neigh replace {netns.CLIENT4} lladdr {_mac(lab.client, 'eth0')} dev {netns.UPLINK}",
            f"neigh replace {netns.GUEST4} lladdr {netns.GUEST_MAC} dev {netns.BRIDGE}",
        )
        lab.client.ip(f"neigh replace {netns.HOST4} lladdr {_mac(lab.host, netns.UPLINK)} dev eth0")
        guest.ip(f"neigh replace {netns.GATEWAY4} lladdr {_mac(lab.host, netns.BRIDGE)} dev eth0")

    def _ethernet(self) -> bytes:
        pair = _mac(self.lab.host, netns.UPLINK) + _mac(self.lab.client, "eth0")
        return bytes.fromhex(pair.replace(":", "")) + struct.pack("!H", ETH_P_IP)

    def _new(self, destination: str, port: int) -> Burst:
        sports = range(FIRST_PORT, FIRST_PORT + FLOWS)
        packets = [self._header + datagram(netns.CLIENT4, destination, n, port) for n in sports]
        return Burst(self._wire, packets)

    def _outgoing(self) -> Burst:
        raw = self._open(self.lab.host, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        sports = range(FIRST_PORT, FIRST_PORT + FLOWS)
        packets = [datagram(netns.HOST4, netns.CLIENT4, n, CLOSED) for n in sports]
        to = struct.pack("=H", socket.AF_INET) + bytes(2) + socket.inet_aton(netns.CLIENT4) + bytes(8)
        return Burst(raw, packets, to)

    def established(self, destination: str, port: int) -> Burst:
        """Return packets of one flow that was answered."""
        sport = 40000 + port
        asked = self._open(self.lab.client, socket.AF_INET, socket.SOCK_DGRAM, 0)
        asked.bind(("", sport))
        asked.settimeout(2)
        packet = self._header + datagram(netns.CLIENT4, destination, sport, port)
        raw = self._open(self.guest, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        asked.sendto(b"ping", (destination, port))
        raw.sendto(datagram(netns.GUEST4, netns.CLIENT4, GUEST_PORT, sport), (netns.CLIENT4, 0))
        asked.recv(100)
        return Burst(self._wire, [packet] * PACKETS)

    def forget(self) -> None:
        """Forget the tracked connections."""
        self.lab.host.run(["conntrack", "-F"])


def ours(size: int) -> str:
    """Return our table with ``size`` forwards, ten a guest; that of the bench guest among them."""
    bench = Guest(
        "be9c0000-0000-4000-8000-000000000001", "bench",
        forwards=(Forward("udp", FORWARDED, FORWARDED, GUEST_PORT),),
        endpoints=(Endpoint(IPv4Address(netns.GUEST4), netns.BRIDGE, netns.GUEST_MAC),),
        lans=((ip_network("10.10.0.0/24"), netns.BRIDGE),), gateways=(IPv4Address(netns.GATEWAY4),),
    )  # fmt: skip
    others = [
        bench._replace(
            uuid=f"00000000-0000-4000-8000-{number:012x}", name=f"g{number}",
            forwards=tuple(Forward("udp", port, port, 80) for port in _ports(number, size)),
            endpoints=(Endpoint(IPv4Address("10.11.0.0") + number, netns.BRIDGE, netns.GUEST_MAC),),
        )
        for number in range((size + 8) // 10)
    ]  # fmt: skip
    return table.text(table.whole([bench, *others], Config(), 1))


def _ports(number: int, size: int) -> range:
    return range(20000 + number * 10, 20000 + min(number * 10 + 10, size - 1))


def linear(size: int) -> str:
    """Return DNAT and accept rules as the iptables hooks write them; the measured one is in the middle."""
    ports = [20000 + number for number in range(size - 1)]
    ports.insert(len(ports) // 2, FORWARDED)
    dnat = "\n".join(
        f"iifname {netns.UPLINK} udp dport {port} dnat ip to "
        + (f"{netns.GUEST4}:{GUEST_PORT}" if port == FORWARDED else f"10.11.0.1:{port}")
        for port in ports
    )
    accept = "\n".join(
        f"ip daddr {netns.GUEST4} udp dport {GUEST_PORT} accept" if port == FORWARDED
        else f"ip daddr 10.11.0.1 udp dport {port} accept"
        for port in ports
    )  # fmt: skip
    chain = "chain forward { type filter hook forward priority filter; policy accept;\n"
    return EMPTY % dnat + f"table inet filter {{ {chain}{accept}\n}}\n}}\n"


def undisturbed() -> None:
    """Keep to one processor; whoever else wants it waits for the end of a sample."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))


class Variants:
    """All variants of a host, at the same time."""

    def __init__(self, undo: contextlib.ExitStack) -> None:
        self.empty, self.by_hand = Host(undo, EMPTY % ""), Host(undo, BY_HAND)
        self.ours = {size: Host(undo, ours(size)) for size in SIZES}
        self.linear = {size: Host(undo, linear(size)) for size in SIZES}
        self.all = [self.empty, self.by_hand, *self.ours.values(), *self.linear.values()]

    def new(self) -> dict[str, Burst]:
        """Return the bursts of new flows, by name."""
        least, most = self.ours[SIZES[0]], self.ours[SIZES[-1]]
        found = {
            "empty incoming": self.empty.incoming,
            "ours incoming": most.incoming,
            "empty outgoing": self.empty.outgoing,
            "ours outgoing": most.outgoing,
            "empty transit": self.empty.transit,
            "ours transit": most.transit,
            "by hand": self.by_hand.forwarded,
            "ours 1": least.forwarded,
        }
        found |= {f"ours {size}": host.forwarded for size, host in self.ours.items() if size > 1}
        return found | {f"linear {size}": host.forwarded for size, host in self.linear.items()}

    def established(self) -> dict[str, Burst]:
        """Return the bursts of packets of established flows, by name."""
        direct = (netns.GUEST4, GUEST_PORT)
        found = {
            "empty transit": self.empty.established(*direct),
            "ours transit": self.ours[SIZES[-1]].established(*direct),
        }
        found |= {f"ours {n}": host.established(netns.HOST4, FORWARDED) for n, host in self.ours.items()}
        return found | {
            f"linear {n}": host.established(netns.HOST4, FORWARDED) for n, host in self.linear.items()
        }


Samples = dict[str, list[float]]
"""Microseconds, in the order in which they were taken."""


def sampled(runs: int, bursts: dict[str, Burst], forget: Callable[[], None]) -> Samples:
    """Return the samples of each burst; they are taken in turn, the first of each is left out."""
    found: Samples = {name: [] for name in bursts}
    for number in range(runs + 1):
        for name, burst in bursts.items():
            forget()
            took = burst.send() * 1e6
            if number:
                found[name].append(took)
    return found


def ratio(found: Samples, one: str, other: str) -> float:
    """Return the median of the ratios of samples that were taken one after the other."""
    return statistics.median(a / b for a, b in zip(found[one], found[other], strict=True))


def by_size(found: Samples) -> dict[str, dict[str, float]]:
    """Return the medians of a kind of flow, by the kind of table and the number of forwards."""
    median = {name: round(statistics.median(values), 2) for name, values in found.items()}
    table = {kind: {str(n): median[f"{kind} {n}"] for n in SIZES} for kind in ("ours", "linear")}
    return {**table, "none": {str(n): median["empty transit"] for n in SIZES}}


def measure(runs: int) -> dict[str, Any]:
    """Return every figure by its name."""
    undisturbed()
    with contextlib.ExitStack() as undo:
        hosts = Variants(undo)

        def forget() -> None:
            for host in hosts.all:
                host.forget()

        new = sampled(runs * 3, hosts.new(), forget)
        established = sampled(runs * 3, hosts.established(), lambda: None)
    most = SIZES[-1]
    return {
        **{name: ratio(new, f"ours {name}", f"empty {name}") for name in ("incoming", "outgoing", "transit")},
        "passing": ratio(established, "ours transit", "empty transit"),
        "one": ratio(new, "ours 1", "by hand"),
        "size": ratio(new, f"ours {most}", "ours 1"),
        "established": ratio(established, f"ours {most}", "ours 1"),
        "new": by_size(new),
        "packets": by_size(established),
    }


PARTS = {
    "label": (
        ("ct label set 100 ", ""),
        (" ct label 100 goto ours", ""),
        (" ct label 100 oifname vmap @lan", ""),
    ),
    "counting": (("\tct status dnat ct label 100 goto ours\n", ""),),
    "lan": (("\t\tct status dnat ct label 100 oifname vmap @lan\n", ""),),
    "fib": ((" fib daddr type local", ""),),
    "gateway": ((" ip daddr != @gateway4", ""),),
    "twins": (
        (f"add chain {TABLE} prerouting-later {{\n\tmeta l4proto . th dport vmap @ports\n}}\n", ""),
        (f"add chain {TABLE} output-later {{\n\tmeta l4proto . th dport vmap @ports\n}}\n", ""),
    ),
    "lookup": (("\tmeta l4proto . th dport vmap @ports\n", ""),),
}
"""Parts of the table, as what is replaced in its text."""


def without(part: str) -> str:
    """Return the table of 1 without a part."""
    text = ours(1)
    for old, new in PARTS[part]:
        assert old in text, old
        text = text.replace(old, new)
    return text


def apart(runs: int) -> dict[str, float]:
    """Return "one" and "incoming", and what they are without each part."""
    undisturbed()
    with contextlib.ExitStack() as undo:
        hosts = {
            "empty": Host(undo, EMPTY % ""),
            "by hand": Host(undo, BY_HAND),
            "whole": Host(undo, ours(1)),
        }
        hosts |= {f"without {part}": Host(undo, without(part)) for part in PARTS}

        def forget() -> None:
            for host in hosts.values():
                host.forget()

        incoming = sampled(runs * 3, {name: host.incoming for name, host in hosts.items()}, forget)
        one = sampled(runs * 3, {n: h.forwarded for n, h in hosts.items() if n != "empty"}, forget)
    names = ["whole", *(f"without {part}" for part in PARTS)]
    found = {f"one, {name}": ratio(one, name, "by hand") for name in names if name != "without lookup"}
    return found | {f"incoming, {name}": ratio(incoming, name, "empty") for name in names}


if __name__ == "__main__":
    if "--apart" in sys.argv:
        sys.argv.remove("--apart")
        sys.exit(report("parts of the table cost packets", "a third of the samples", apart))
    sys.exit(report("the table costs packets", "a third of the samples", measure))
