"""Guests that never speak by themselves are asked for their addresses, and DHCP's answers are heard."""

from __future__ import annotations

import itertools
import select
import socket
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_network
from typing import TypeVar

import pytest

from lab import netns, payload
from lab.netns import BRIDGE, GATEWAY4, GATEWAY6, GUEST4, GUEST6, GUEST_MAC, Lab
from unit.test_asking import dhcp
from virt_forward import ask, hostfacts
from virt_forward.addresses.asking import Question
from virt_forward.model import Reservation, Sighting
from virt_forward.watch.seeker import Seeker

pytestmark = pytest.mark.root

T = TypeVar("T")
SIBLING, NO_ADDRESS = "52:54:00:00:00:02", "52:54:00:00:00:03"
FOUR = Question(BRIDGE, GUEST_MAC, ip_network("10.10.0.0/24"), ip_address(GATEWAY4))
SIX = Question(BRIDGE, GUEST_MAC, ip_network("fd10:10::/64"), ip_address(GATEWAY6))
FOUND = Sighting(ip_address(GUEST4), GUEST_MAC, "probed")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with netns.lab() as made:
        made.guest()
        made.guest("db", "10.10.0.201", None, SIBLING)
        made.guest("none", None, None, NO_ADDRESS)
        yield made


def on_host(lab: Lab, work: Callable[[], T]) -> T:
    return payload.inside(lab.host.path, work)


def neighbours(lab: Lab) -> set[str]:
    return {str(one.ip) for one in on_host(lab, lambda: hostfacts.neighbours(BRIDGE)).confirmed}


def test_a_silent_guest_says_its_address(lab: Lab) -> None:
    assert on_host(lab, lambda: ask.once([FOUR])) == {BRIDGE: (FOUND,)}


def test_nobody_else_is_asked(lab: Lab) -> None:
    """The frames go to the one NIC; a sibling that has an address of the subnet stays out of it."""
    sibling = lab.guests["db"]
    sibling.run(["ip", "neighbour", "flush", "dev", "eth0"])
    assert on_host(lab, lambda: ask.once([FOUR])) == {BRIDGE: (FOUND,)}
    assert GATEWAY4 not in sibling.run(["ip", "neighbour"]).out


def test_a_guest_without_an_address_says_nothing(lab: Lab) -> None:
    assert on_host(lab, lambda: ask.once([FOUR._replace(mac=NO_ADDRESS)], 0.1)) == {BRIDGE: ()}


def test_by_ipv6_the_kernel_learns_it(lab: Lab) -> None:
    assert GUEST6 not in str(on_host(lab, lambda: hostfacts.neighbours(BRIDGE)))
    on_host(lab, lambda: ask.once([SIX]))
    found = on_host(lab, lambda: hostfacts.neighbours(BRIDGE))
    assert Reservation(ip_address(GUEST6), GUEST_MAC) in (*found.confirmed, *found.others)


def test_a_bridge_that_is_not_there_is_passed_over(lab: Lab) -> None:
    assert on_host(lab, lambda: ask.once([FOUR._replace(bridge="virbr9")], 0.1)) == {}


def frame(lab: Lab, where: str, packet: bytes, kind: int = ask.ETH_P_IP) -> None:
    """Send a packet on an interface of the host, or of the guest, as it is."""
    ns = lab.host.path if where == BRIDGE else lab.guests["web"].path

    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as sender:
            sender.sendto(packet, (where, kind, 0, 0, b"\xff" * 6))

    payload.inside(ns, send)


def heard(lab: Lab, send: Callable[[], None]) -> list[Sighting]:
    ear = on_host(lab, lambda: ask.Ear(BRIDGE))
    try:
        send()
        return ear.read()
    finally:
        ear.close()


def test_a_lease_the_host_gives_out_is_heard(lab: Lab) -> None:
    assert heard(lab, lambda: frame(lab, BRIDGE, dhcp(ip="10.10.0.77"))) == [
        Sighting(ip_address("10.10.0.77"), GUEST_MAC, "leased")
    ]


def test_a_lease_that_a_guest_claims_to_give_is_not(lab: Lab) -> None:
    assert heard(lab, lambda: frame(lab, "eth0", dhcp(ip="10.10.0.77"))) == []


def test_the_kernel_passes_nothing_else_on(lab: Lab) -> None:
    """What other packets are on the bridge must not wake the service."""
    ear = on_host(lab, lambda: ask.Ear(BRIDGE))
    try:
        frame(lab, BRIDGE, dhcp(sport=53))
        frame(lab, BRIDGE, dhcp(b"\x35\x01\x05\xff")[:6] + b"\x00\x01" + dhcp()[8:])
        frame(lab, BRIDGE, bytes(60), 0x88B5)
        with pytest.raises(BlockingIOError):
            ear._socket.recv(2048)
    finally:
        ear.close()


@pytest.fixture
def seeker(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Iterator[Seeker]:
    """The service's part that seeks, with a clock that only the test moves."""
    clock = iter(itertools.count(1000))
    monkeypatch.setattr("virt_forward.watch.seeker.time.monotonic", lambda: next(clock))
    made = Seeker(select.poll())
    yield made
    made.close()


def turns(lab: Lab, seeker: Seeker, count: int) -> bool:
    """Turn as the service does, a second each; tell whether something was heard."""
    heard = [on_host(lab, lambda: turn(seeker)) for _ in range(count)]
    return any(heard)


def turn(seeker: Seeker) -> bool:
    seeker.work()
    time.sleep(0.05)
    return seeker.work()


def test_the_service_asks_at_once(lab: Lab, seeker: Seeker) -> None:
    on_host(lab, lambda: seeker.seek([FOUR]))
    assert turns(lab, seeker, 1)
    assert set(seeker.heard[BRIDGE]) == {FOUND}
    assert seeker.seeks(GUEST_MAC)
    assert not seeker.seeks(SIBLING)


def test_it_stops_asking_until_there_is_news_and_goes_on_listening(lab: Lab, seeker: Seeker) -> None:
    on_host(lab, lambda: seeker.seek([FOUR]))
    turns(lab, seeker, 70)
    seeker.heard.clear()
    assert not turns(lab, seeker, 40)
    frame(lab, BRIDGE, dhcp(ip="10.10.0.77"))
    assert turns(lab, seeker, 1)
    seeker.heard.clear()
    seeker.again()
    assert turns(lab, seeker, 2)
    assert set(seeker.heard[BRIDGE]) == {FOUND}


def test_where_nobody_is_sought_nothing_listens(lab: Lab, seeker: Seeker) -> None:
    on_host(lab, lambda: seeker.seek([FOUR]))
    assert BRIDGE in lab.host.run(["ss", "-0Hnl"]).out
    on_host(lab, lambda: seeker.seek([SIX]))
    assert BRIDGE not in lab.host.run(["ss", "-0Hnl"]).out


def test_an_interface_that_is_not_there_is_told_and_passed_over(lab: Lab, seeker: Seeker) -> None:
    on_host(lab, lambda: seeker.seek([FOUR._replace(bridge="virbr9")]))
    assert not turns(lab, seeker, 1)
