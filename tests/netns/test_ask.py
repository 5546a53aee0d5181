"""Guests that never speak by themselves are asked for their addresses, and DHCP's answers are heard."""

from __future__ import annotations

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
from unit.test_asking import dhcp, echo
from virt_forward.addresses.attachments import Attachment, Bridge
from virt_forward.addresses.probe import ETH_P_ARP, ETH_P_IPV6, Question
from virt_forward.host import collect, probe_socket
from virt_forward.model import Nic, Reservation, Sighting
from virt_forward.watch.prober import Seeker

pytestmark = pytest.mark.root

T = TypeVar("T")
SIBLING, NO_ADDRESS = "52:54:00:00:00:02", "52:54:00:00:00:03"
FOUR = Question(BRIDGE, GUEST_MAC, ip_network("10.10.0.0/24"), ip_address(GATEWAY4))
SIX = Question(BRIDGE, GUEST_MAC, ip_network("fd10:10::/64"), ip_address(GATEWAY6))
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


def test_a_silent_guest_says_its_address(lab: Lab) -> None:
    assert on_host(lab, lambda: probe_socket.once([FOUR])) == {BRIDGE: (FOUND,)}


def test_nobody_else_is_asked(lab: Lab) -> None:
    """The frames go to the one NIC; a sibling that has an address of the subnet stays out of it."""
    sibling = lab.guests["db"]
    sibling.run(["ip", "neighbour", "flush", "dev", "eth0"])
    assert on_host(lab, lambda: probe_socket.once([FOUR])) == {BRIDGE: (FOUND,)}
    assert GATEWAY4 not in sibling.run(["ip", "neighbour"]).out


def test_a_guest_without_an_address_says_nothing(lab: Lab) -> None:
    assert on_host(lab, lambda: probe_socket.once([FOUR._replace(mac=NO_ADDRESS)], 0.1)) == {BRIDGE: ()}


FOUND6 = Sighting(ip_address(GUEST6), GUEST_MAC, "probed")


def test_by_ipv6_it_is_heard_and_the_kernel_learns_it(lab: Lab) -> None:
    assert GUEST6 not in str(on_host(lab, lambda: collect.neighbours(BRIDGE)))
    assert on_host(lab, lambda: probe_socket.once([SIX])) == {BRIDGE: (FOUND6,)}
    found = on_host(lab, lambda: collect.neighbours(BRIDGE))
    assert Reservation(ip_address(GUEST6), GUEST_MAC) in (*found.confirmed, *found.others)


@pytest.mark.parametrize("ip", [GUEST4, GUEST6])
def test_nic_is_verified_at_the_address_that_it_has(lab: Lab, ip: str) -> None:
    address = ip_address(ip)
    hosts = tuple(ip_interface(one) for one in (f"{GATEWAY4}/24", f"{GATEWAY6}/64"))
    attachment = Attachment(Nic(GUEST_MAC, "bridge", BRIDGE), BRIDGE, None, Bridge(hosts))
    assert on_host(lab, lambda: collect.verify(attachment, (address + 1, address))) == {address}
    sibling = attachment._replace(nic=Nic(SIBLING, "bridge", BRIDGE))
    assert on_host(lab, lambda: collect.verify(sibling, (address,))) == frozenset()


def test_once_tells_both_families_of_the_asked_guest_alone(lab: Lab) -> None:
    """A sibling answers the echo request to all, too."""
    lab.guests["db"].ip("address add fd10:10::201/64 dev eth0")
    assert set(on_host(lab, lambda: probe_socket.once([FOUR, SIX]))[BRIDGE]) == {FOUND, FOUND6}


def test_a_bridge_that_is_not_there_is_passed_over(lab: Lab) -> None:
    assert on_host(lab, lambda: probe_socket.once([FOUR._replace(bridge="virbr9")], 0.1)) == {}


def frame(lab: Lab, where: str, packet: bytes, kind: int = probe_socket.ETH_P_IP, to: str = "ff" * 6) -> None:
    """Send a packet on an interface of the host, or of a guest, as it is."""
    ns = lab.host.path if where == BRIDGE else lab.guests[where].path
    name = BRIDGE if where == BRIDGE else "eth0"

    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as sender:
            sender.sendto(packet, (name, kind, 0, 0, bytes.fromhex(to.replace(":", ""))))

    payload.inside(ns, send)


def heard(lab: Lab, send: Callable[[], None], question: Question = FOUR) -> list[Sighting]:
    ear = on_host(lab, lambda: probe_socket.Ear(BRIDGE, question.own.version))
    try:
        send()
        return ear.read([question])
    finally:
        ear.close()


def ack(**changes: str | int) -> bytes:
    """Return a DHCPACK of the host's server for the guest; ``changes`` are those of dhcp()."""
    words: dict[str, Any] = {"ip": "10.10.0.77", "source": GATEWAY4, **changes}
    return dhcp(**words)


LEASE = Sighting(ip_address("10.10.0.77"), GUEST_MAC, "leased")


@pytest.mark.parametrize("to", ["ff:ff:ff:ff:ff:ff", GUEST_MAC])
@pytest.mark.parametrize("target", ["255.255.255.255", "10.10.0.77"])
def test_lease_the_host_gives_out_is_heard(lab: Lab, to: str, target: str) -> None:
    assert heard(lab, lambda: frame(lab, BRIDGE, ack(target=target), to=to)) == [LEASE]


@pytest.mark.parametrize(
    "changes",
    [{"source": "192.0.2.2"}, {"dport": 5000}, {"ip": "10.20.0.77"}, {"mac": SIBLING}, {"ip": GATEWAY4}],
    ids=["forwarded", "another port", "another subnet", "not asked", "host"],
)
def test_lease_of_anything_else_is_not_heard(lab: Lab, changes: dict[str, str | int]) -> None:
    assert heard(lab, lambda: frame(lab, BRIDGE, ack(**changes))) == []


def test_lease_that_a_guest_claims_to_give_is_not_heard(lab: Lab) -> None:
    assert heard(lab, lambda: frame(lab, "web", ack())) == []


def test_lease_for_one_sent_to_another_nic_is_not_heard(lab: Lab) -> None:
    """As a masquerading hairpin does with a guest's packet to a sibling's forward."""
    assert heard(lab, lambda: frame(lab, BRIDGE, ack(target="10.10.0.77"), to=SIBLING)) == []


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
    """Forwards of the host's udp/68 and udp/5000 to the guest, with hairpin."""
    lab.host.nft(NAT)
    yield
    lab.host.nft("delete table ip t")


@pytest.mark.parametrize("mac", [GUEST_MAC, SIBLING], ids=["of the guest", "of the sender"])
@pytest.mark.parametrize("port", [68, 5000])
@pytest.mark.parametrize("attachment", ["client", "db"])
def test_forwarded_packet_from_port_67_is_no_lease(
    lab: Lab, forwarded: None, attachment: str, port: int, mac: str
) -> None:
    """Whoever reaches a guest's forward, from the LAN or from the bridge, gives nobody an address by it."""
    text = ack(ip=GUEST4, mac=mac)[28:]
    ns, host = (lab.client, HOST4) if attachment == "client" else (lab.guests["db"], GATEWAY4)
    with on_host(lab, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)) as watched:
        watched.bind((BRIDGE, probe_socket.ETH_P_ALL))
        found = heard(lab, lambda: send_and_see(ns, text, (host, port), watched), FOUR._replace(mac=mac))
    # Masqueraded to the guest's own udp/68 it is as true as a packet to that guest can be.
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


def test_arp_reply_of_the_asked_nic_is_heard(lab: Lab) -> None:
    reply = arp_reply(GUEST_MAC, "10.10.0.99")
    found = heard(lab, lambda: frame(lab, "web", reply, ETH_P_ARP, bridge_mac(lab)))
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
    ids=["forged", "forged for a sibling", "not asked", "another subnet", "host", "to all"],
)
def test_arp_reply_that_answers_nothing_is_not_heard(
    lab: Lab, attachment: str, mac: str, ip: str, to: str | None
) -> None:
    reply = arp_reply(mac, ip)
    assert heard(lab, lambda: frame(lab, attachment, reply, ETH_P_ARP, to or bridge_mac(lab))) == []


def test_the_kernel_passes_nothing_else_on(lab: Lab) -> None:
    """What other packets are on the bridge must not wake the service."""
    ears = [on_host(lab, partial(probe_socket.Ear, BRIDGE, version)) for version in (4, 6)]
    try:
        frame(lab, BRIDGE, ack(sport=53))
        frame(lab, BRIDGE, ack(dport=5000))
        frame(lab, "web", ack())
        frame(lab, BRIDGE, ack()[:6] + b"\x00\x01" + ack()[8:])
        frame(lab, BRIDGE, ack()[:6] + b"\x20\x00" + ack()[8:])
        frame(lab, BRIDGE, bytes(60), 0x88B5)
        frame(lab, BRIDGE, arp_reply(GUEST_MAC, "10.10.0.99"), ETH_P_ARP)
        frame(lab, "web", arp_reply(GUEST_MAC, "10.10.0.99"), ETH_P_ARP)
        foreign = echo(GUEST6, GATEWAY6, ident=ears[1]._identifier ^ 1)[14:]
        frame(lab, "web", foreign, ETH_P_IPV6, bridge_mac(lab))
        for ear in ears:
            with pytest.raises(BlockingIOError):
                ear._socket.recv(2048)
    finally:
        for ear in ears:
            ear.close()


@pytest.fixture
def seeker(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Iterator[Seeker]:
    """The service's part that seeks, with a clock that only the test moves."""
    clock = iter(itertools.count(1000))
    monkeypatch.setattr("virt_forward.watch.prober.time.monotonic", lambda: next(clock))
    made = Seeker(select.poll())
    yield made
    made.close()


def hears(lab: Lab, seeker: Seeker, count: int = 1) -> bool:
    """Turn as the service does, a second each, until something is heard; what is asked is answered soon."""
    return any(on_host(lab, lambda: turn(seeker, 5.0)) for _ in range(count))


def turns(lab: Lab, seeker: Seeker, count: int) -> bool:
    """The same, but that nothing may be heard: what is late is heard in the next turn."""
    heard = [on_host(lab, lambda: turn(seeker, 0.01)) for _ in range(count)]
    return any(heard)


def turn(seeker: Seeker, seconds: float) -> bool:
    """Ask, wait at most so long for something to be there, and hear it, as the service's loop does."""
    first = seeker.work()
    seeker._poller.poll(seconds * 1000)
    return seeker.work() or first


def test_the_service_asks_at_once(lab: Lab, seeker: Seeker) -> None:
    on_host(lab, lambda: seeker.seek([FOUR, SIX]))
    eventually(lambda: hears(lab, seeker) and set(seeker.heard[BRIDGE]) == {FOUND, FOUND6}, "both are heard")
    assert seeker.seeks(GUEST_MAC)
    assert not seeker.seeks(SIBLING)


LINK_LOCAL = ip_address("fe80::5054:ff:fea0:8f2c")


def test_it_stops_asking_until_there_is_news_and_goes_on_listening(lab: Lab, seeker: Seeker) -> None:
    on_host(lab, lambda: seeker.seek([FOUR]))
    turns(lab, seeker, 70)
    seeker.heard.clear()
    assert not turns(lab, seeker, 40)
    frame(lab, BRIDGE, ack())
    assert hears(lab, seeker)
    seeker.heard.clear()
    seeker.news(GUEST_MAC, LINK_LOCAL)
    assert hears(lab, seeker, 2)
    assert set(seeker.heard[BRIDGE]) == {FOUND}


def test_unasked_arp_reply_is_not_heard(lab: Lab, seeker: Seeker) -> None:
    """Nothing has been asked for a while, so there is nothing to answer."""
    on_host(lab, lambda: seeker.seek([FOUR._replace(mac=NO_ADDRESS)]))
    turns(lab, seeker, 70)
    reply = arp_reply(NO_ADDRESS, "10.10.0.99")
    frame(lab, "none", reply, ETH_P_ARP, bridge_mac(lab))
    assert not turns(lab, seeker, 2)


def test_where_nobody_is_sought_nothing_listens(lab: Lab, seeker: Seeker) -> None:
    on_host(lab, lambda: seeker.seek([FOUR]))
    assert BRIDGE in lab.host.run(["ss", "-0Hnl"]).out
    on_host(lab, lambda: seeker.seek([]))
    assert BRIDGE not in lab.host.run(["ss", "-0Hnl"]).out


def test_nothing_listens_for_ipv6_once_nobody_is_asked_any_more(lab: Lab, seeker: Seeker) -> None:
    on_host(lab, lambda: seeker.seek([SIX._replace(mac=NO_ADDRESS)]))
    assert BRIDGE in lab.host.run(["ss", "-0Hnl"]).out
    turns(lab, seeker, 45)
    assert BRIDGE not in lab.host.run(["ss", "-0Hnl"]).out


def test_an_interface_that_is_not_there_is_told_and_passed_over(lab: Lab, seeker: Seeker) -> None:
    on_host(lab, lambda: seeker.seek([FOUR._replace(bridge="virbr9")]))
    assert not turns(lab, seeker, 1)
