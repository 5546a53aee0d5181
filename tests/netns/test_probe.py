"""Probing silent guests for their addresses, and receiving the answers and DHCP leases."""

from __future__ import annotations

import contextlib
import itertools
import select
import socket
from collections.abc import Callable, Iterator
from functools import partial
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any, TypeVar

import pytest

from netns.support import bridge_netfilter
from support import netns, payload
from support.netns import BRIDGE, GATEWAY4, GATEWAY6, GUEST4, GUEST6, GUEST_MAC, HOST4, Lab, Ns
from support.proc import eventually
from unit.test_probe import dhcp, echo
from virt_forward.addresses.attachments import BridgeFacts
from virt_forward.addresses.probe import ETH_P_ARP, ETH_P_IPV6, Probe
from virt_forward.errors import Question
from virt_forward.host import collect, probe_socket
from virt_forward.model import Reservation, Sighting
from virt_forward.watch.prober import Prober

pytestmark = pytest.mark.root

T = TypeVar("T")
SIBLING, NO_ADDRESS = "52:54:00:00:00:02", "52:54:00:00:00:03"
FOUR = Probe(BRIDGE, GUEST_MAC, ip_network("10.10.0.0/24"), ip_address(GATEWAY4))
SIX = Probe(BRIDGE, GUEST_MAC, ip_network("fd10:10::/64"), ip_address(GATEWAY6))
FOUND = Sighting(ip_address(GUEST4), GUEST_MAC, "probed")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with netns.lab() as made:
        # A frame that br_netfilter turns around on the bridge would not be masqueraded.
        bridge_netfilter(made.host, False)
        made.guest()
        made.guest("db", "10.10.0.201", None, SIBLING)
        made.guest("none", None, None, NO_ADDRESS)
        yield made


def on_host(lab: Lab, work: Callable[[], T]) -> T:
    return payload.inside(lab.host.path, work)


def neighbours(lab: Lab) -> set[str]:
    return {str(one.ip) for one in on_host(lab, lambda: collect.neighbours(BRIDGE)).confirmed}


def test_probe_finds_address_of_silent_guest(lab: Lab) -> None:
    assert on_host(lab, lambda: probe_socket.probe_once([FOUR])) == {BRIDGE: (FOUND,)}


def test_arp_probe_reaches_only_its_nic(lab: Lab) -> None:
    """The frames are sent to one NIC; a sibling with an address in the subnet does not see them."""
    sibling = lab.guests["db"]
    sibling.run(["ip", "neighbour", "flush", "dev", "eth0"])
    assert on_host(lab, lambda: probe_socket.probe_once([FOUR])) == {BRIDGE: (FOUND,)}
    assert GATEWAY4 not in sibling.run(["ip", "neighbour"]).out


def test_guest_without_address_does_not_answer(lab: Lab) -> None:
    assert on_host(lab, lambda: probe_socket.probe_once([FOUR._replace(mac=NO_ADDRESS)], 0.1)) == {BRIDGE: ()}


FOUND6 = Sighting(ip_address(GUEST6), GUEST_MAC, "probed")


def test_ipv6_probe_finds_address_and_kernel_learns_it(lab: Lab) -> None:
    assert GUEST6 not in str(on_host(lab, lambda: collect.neighbours(BRIDGE)))
    assert on_host(lab, lambda: probe_socket.probe_once([SIX])) == {BRIDGE: (FOUND6,)}
    found = on_host(lab, lambda: collect.neighbours(BRIDGE))
    assert Reservation(ip_address(GUEST6), GUEST_MAC) in (*found.confirmed, *found.others)


def test_all_nics_are_asked_at_once_at_their_addresses(lab: Lab) -> None:
    hosts = tuple(ip_interface(one) for one in (f"{GATEWAY4}/24", f"{GATEWAY6}/64"))
    four, six = ip_address(GUEST4), ip_address(GUEST6)
    questions = [
        Question("answers", BRIDGE, GUEST_MAC, (four + 1, four)),
        Question("answers", BRIDGE, GUEST_MAC, (six + 1, six)),
        Question("answers", BRIDGE, SIBLING, (four, six)),
    ]
    answers = on_host(lab, lambda: collect.ask_nics(questions, {BRIDGE: BridgeFacts(hosts)}))
    assert answers == {(BRIDGE, GUEST_MAC, ip): True for ip in (four, six)}


def test_answers_of_many_nics_are_received_together(lab: Lab) -> None:
    """A socket has room for 256 of them by default."""
    single = FOUR._replace(subnet=ip_network(GUEST4))

    def work() -> int:
        with contextlib.closing(probe_socket.ProbeSocket(BRIDGE, 4)) as opened:
            for _ in range(600):
                opened.send(single)
            return sum(len(opened.read([single])) for _ in range(3))

    assert on_host(lab, work) == 600


def test_probe_once_returns_both_families_of_probed_guest_only(lab: Lab) -> None:
    """A sibling answers the echo request to all nodes as well."""
    lab.guests["db"].ip("address add fd10:10::201/64 dev eth0")
    assert set(on_host(lab, lambda: probe_socket.probe_once([FOUR, SIX]))[BRIDGE]) == {FOUND, FOUND6}


def test_probe_once_ignores_missing_bridge(lab: Lab) -> None:
    assert on_host(lab, lambda: probe_socket.probe_once([FOUR._replace(bridge="virbr9")], 0.1)) == {}


def frame(lab: Lab, where: str, packet: bytes, kind: int = probe_socket.ETH_P_IP, to: str = "ff" * 6) -> None:
    """Send a raw packet on an interface of the host or of a guest."""
    ns = lab.host.path if where == BRIDGE else lab.guests[where].path
    name = BRIDGE if where == BRIDGE else "eth0"

    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as sender:
            sender.sendto(packet, (name, kind, 0, 0, bytes.fromhex(to.replace(":", ""))))

    payload.inside(ns, send)


def received(lab: Lab, send: Callable[[], None], probe: Probe = FOUR) -> list[Sighting]:
    opened = on_host(lab, lambda: probe_socket.ProbeSocket(BRIDGE, probe.own.version))
    try:
        send()
        return opened.read([probe])
    finally:
        opened.close()


def ack(**changes: str | int) -> bytes:
    """Return a DHCPACK of the host's server for the guest; ``changes`` are those of dhcp()."""
    words: dict[str, Any] = {"ip": "10.10.0.77", "source": GATEWAY4, **changes}
    return dhcp(**words)


LEASE = Sighting(ip_address("10.10.0.77"), GUEST_MAC, "leased")


@pytest.mark.parametrize("to", ["ff:ff:ff:ff:ff:ff", GUEST_MAC])
@pytest.mark.parametrize("target", ["255.255.255.255", "10.10.0.77"])
def test_lease_of_own_server_is_received(lab: Lab, to: str, target: str) -> None:
    assert received(lab, lambda: frame(lab, BRIDGE, ack(target=target), to=to)) == [LEASE]


@pytest.mark.parametrize(
    "changes",
    [{"source": "192.0.2.2"}, {"dport": 5000}, {"ip": "10.20.0.77"}, {"mac": SIBLING}, {"ip": GATEWAY4}],
    ids=["forwarded", "another port", "another subnet", "not probed", "host"],
)
def test_unrelated_lease_is_ignored(lab: Lab, changes: dict[str, str | int]) -> None:
    assert received(lab, lambda: frame(lab, BRIDGE, ack(**changes))) == []


def test_lease_from_a_guest_is_ignored(lab: Lab) -> None:
    assert received(lab, lambda: frame(lab, "web", ack())) == []


def test_lease_sent_to_another_nic_is_ignored(lab: Lab) -> None:
    """A masquerading hairpin sends a guest's packet to a sibling's forward like this."""
    assert received(lab, lambda: frame(lab, BRIDGE, ack(target="10.10.0.77"), to=SIBLING)) == []


NAT = f"""\
table ip t {{
  chain pre {{
    type nat hook prerouting priority -100
    udp dport {{ 68, 5000 }} fib daddr type local dnat to {GUEST4}
  }}
  chain post {{
    type nat hook postrouting priority 100
    ip saddr 10.10.0.0/24 oifname {BRIDGE} masquerade
  }}
}}
"""


@pytest.fixture
def forwarded(lab: Lab) -> Iterator[None]:
    """Forwards of udp/68 and udp/5000 of the host to the guest, with hairpin."""
    lab.host.nft(NAT)
    yield
    lab.host.nft("delete table ip t")


@pytest.mark.parametrize("mac", [GUEST_MAC, SIBLING], ids=["of the guest", "of the sender"])
@pytest.mark.parametrize("port", [68, 5000])
@pytest.mark.parametrize("attachment", ["client", "db"])
def test_forwarded_packet_from_port_67_is_no_lease(
    lab: Lab, forwarded: None, attachment: str, port: int, mac: str
) -> None:
    """A client of a guest's forward, on the LAN or on the bridge, cannot forge a lease by it."""
    text = ack(ip=GUEST4, mac=mac)[28:]
    ns, host = (lab.client, HOST4) if attachment == "client" else (lab.guests["db"], GATEWAY4)
    with on_host(lab, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)) as watched:
        watched.bind((BRIDGE, probe_socket.ETH_P_ALL))
        found = received(lab, lambda: send_and_see(ns, text, (host, port), watched), FOUR._replace(mac=mac))
    # Masqueraded to udp/68 of the guest itself, it cannot be told from a real lease.
    leases = [seen for seen in found if seen.origin == "leased"]
    assert leases == ([LEASE._replace(ip=ip_address(GUEST4))] if (attachment, port, mac) == TRUE else [])


TRUE = ("db", 68, GUEST_MAC)


def send_and_see(ns: Ns, text: bytes, to: tuple[str, int], watched: socket.socket) -> None:
    payload.inside(ns.path, lambda: _send(text, *to))
    eventually(lambda: _left(watched, text), "the packet has left by the bridge")


def _send(text: bytes, host: str, port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sender.bind(("", 67))
        sender.sendto(text, (host, port))


def _left(watched: socket.socket, text: bytes) -> bool:
    watched.settimeout(0.05)
    try:
        data, (_, _, kind, *_) = watched.recvfrom(2048)
    except TimeoutError:
        return False
    return kind == probe_socket.PACKET_OUTGOING and data.endswith(text)


def arp_reply(mac: str, ip: str) -> bytes:
    """Return an ARP reply to the host's address on the bridge."""
    start = bytes.fromhex("0001 0800 06 04 0002" + mac.replace(":", ""))
    return start + ip_address(ip).packed + bytes(6) + ip_address(GATEWAY4).packed


def bridge_mac(lab: Lab) -> str:
    return lab.host.run(["cat", f"/sys/class/net/{BRIDGE}/address"]).out.strip()


def test_arp_reply_of_probed_nic_is_received(lab: Lab) -> None:
    reply = arp_reply(GUEST_MAC, "10.10.0.99")
    found = received(lab, lambda: frame(lab, "web", reply, ETH_P_ARP, bridge_mac(lab)))
    assert found == [Sighting(ip_address("10.10.0.99"), GUEST_MAC, "probed")]


@pytest.mark.parametrize(
    ("attachment", "mac", "ip", "to"),
    [
        ("db", GUEST_MAC, "10.10.0.99", None),
        ("web", SIBLING, "10.10.0.99", None),
        ("db", SIBLING, "10.10.0.99", None),
        ("web", GUEST_MAC, "10.20.0.99", None),
        ("web", GUEST_MAC, GATEWAY4, None),
        ("web", GUEST_MAC, "10.10.0.99", "ff:ff:ff:ff:ff:ff"),
    ],
    ids=["forged", "forged for a sibling", "not probed", "another subnet", "host", "to all"],
)
def test_arp_reply_that_matches_no_probe_is_ignored(
    lab: Lab, attachment: str, mac: str, ip: str, to: str | None
) -> None:
    reply = arp_reply(mac, ip)
    assert received(lab, lambda: frame(lab, attachment, reply, ETH_P_ARP, to or bridge_mac(lab))) == []


def test_filter_drops_all_other_packets(lab: Lab) -> None:
    """Other packets on the bridge must not wake the service."""
    sockets = [on_host(lab, partial(probe_socket.ProbeSocket, BRIDGE, version)) for version in (4, 6)]
    try:
        frame(lab, BRIDGE, ack(sport=53))
        frame(lab, BRIDGE, ack(dport=5000))
        frame(lab, "web", ack())
        frame(lab, BRIDGE, ack()[:6] + b"\x00\x01" + ack()[8:])
        frame(lab, BRIDGE, ack()[:6] + b"\x20\x00" + ack()[8:])
        frame(lab, BRIDGE, bytes(60), 0x88B5)
        frame(lab, BRIDGE, arp_reply(GUEST_MAC, "10.10.0.99"), ETH_P_ARP)
        frame(lab, "web", arp_reply(GUEST_MAC, "10.10.0.99"), ETH_P_ARP)
        foreign = echo(GUEST6, GATEWAY6, ident=sockets[1]._identifier ^ 1)[14:]
        frame(lab, "web", foreign, ETH_P_IPV6, bridge_mac(lab))
        for opened in sockets:
            with pytest.raises(BlockingIOError):
                opened._socket.recv(2048)
    finally:
        for opened in sockets:
            opened.close()


@pytest.fixture
def prober(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Iterator[Prober]:
    """A prober whose clock advances by a second each time it is read."""
    clock = iter(itertools.count(1000))
    monkeypatch.setattr("virt_forward.watch.prober.time.monotonic", lambda: next(clock))
    made = Prober(select.poll())
    yield made
    made.close()


def answered(lab: Lab, prober: Prober, count: int = 1) -> bool:
    """Run the prober as the service does, a second of its clock each, until there was an answer."""
    return any(on_host(lab, lambda: work_twice(prober, 5.0)) for _ in range(count))


def run_seconds(lab: Lab, prober: Prober, count: int) -> bool:
    """Run the prober as the service does, for seconds of its clock; tell whether there was an answer.

    A guest's kernel answers ARP and ND before the call that asks returns, so that only what a
    loaded machine delays can be missed, and is received in the next turn.
    """
    received = [on_host(lab, lambda: work_twice(prober, 0.01)) for _ in range(count)]
    return any(received)


def work_twice(prober: Prober, seconds: float) -> bool:
    """Send probes, wait at most so long for an answer, and receive it, as the service's loop does."""
    first = prober.work()
    prober._poller.poll(seconds * 1000)
    return prober.work() or first


def test_prober_probes_immediately(lab: Lab, prober: Prober) -> None:
    on_host(lab, lambda: prober.set_probes([FOUR, SIX]))
    eventually(
        lambda: answered(lab, prober) and set(prober.sightings[BRIDGE]) == {FOUND, FOUND6},
        "both have answered",
    )
    assert prober.has_probe(GUEST_MAC)
    assert not prober.has_probe(SIBLING)


LINK_LOCAL = ip_address("fe80::5054:ff:fea0:8f2c")


def test_prober_receives_leases_after_its_schedule_and_restarts_on_event(lab: Lab, prober: Prober) -> None:
    on_host(lab, lambda: prober.set_probes([FOUR]))
    run_seconds(lab, prober, 70)
    prober.sightings.clear()
    assert not run_seconds(lab, prober, 40)
    frame(lab, BRIDGE, ack())
    assert answered(lab, prober)
    prober.sightings.clear()
    prober.add_link_local(GUEST_MAC, LINK_LOCAL)
    assert answered(lab, prober, 2)
    assert set(prober.sightings[BRIDGE]) == {FOUND}


def test_arp_reply_without_recent_probe_is_ignored(lab: Lab, prober: Prober) -> None:
    """No probe was sent for a while, so it cannot be an answer."""
    on_host(lab, lambda: prober.set_probes([FOUR._replace(mac=NO_ADDRESS)]))
    run_seconds(lab, prober, 70)
    reply = arp_reply(NO_ADDRESS, "10.10.0.99")
    frame(lab, "none", reply, ETH_P_ARP, bridge_mac(lab))
    assert not run_seconds(lab, prober, 2)


def test_prober_without_probes_has_no_socket(lab: Lab, prober: Prober) -> None:
    on_host(lab, lambda: prober.set_probes([FOUR]))
    assert BRIDGE in lab.host.run(["ss", "-0Hnl"]).out
    on_host(lab, lambda: prober.set_probes([]))
    assert BRIDGE not in lab.host.run(["ss", "-0Hnl"]).out


def test_prober_closes_ipv6_socket_after_its_schedule(lab: Lab, prober: Prober) -> None:
    on_host(lab, lambda: prober.set_probes([SIX._replace(mac=NO_ADDRESS)]))
    assert BRIDGE in lab.host.run(["ss", "-0Hnl"]).out
    run_seconds(lab, prober, 45)
    assert BRIDGE not in lab.host.run(["ss", "-0Hnl"]).out


def test_prober_ignores_missing_bridge(lab: Lab, prober: Prober) -> None:
    on_host(lab, lambda: prober.set_probes([FOUR._replace(bridge="virbr9")]))
    assert not run_seconds(lab, prober, 1)
