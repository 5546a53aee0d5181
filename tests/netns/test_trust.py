"""A forward leads only to the guest that declared it, whatever others on the bridge and on the LAN send.

Each test runs twice: with the hooks and ``virt-forward sync`` alone, and with the service.
"""

from __future__ import annotations

import pytest

from netns.trust import DB4, MACS, OTHER4, TRAP4, UDP, WEB4, Guests, pages, repeated
from support import frames
from support.frames import BROADCAST, REPLY, REQUEST
from support.netns import BRIDGE, GATEWAY4, HOST4
from support.proc import eventually

pytestmark = pytest.mark.root
NOBODY = {None}


def learned(guests: Guests) -> None:
    """Start ``web``, which has .50 by itself: no source but the guest's own answer tells that."""
    guests.address(guests.web, WEB4)
    guests.start("web")
    guests.follow(lambda: guests.leads() == {WEB4}, "the address is learned")
    assert guests.page() == "web"


def test_address_taken_by_another_guest_is_given_up(guests: Guests) -> None:
    learned(guests)
    guests.address(guests.web)
    # This one has no metadata: it need not declare anything to be led to.
    guests.address(guests.db, WEB4)
    frames.send(guests.db, frames.gratuitous((MACS["db"], WEB4)))
    assert guests.confirm(WEB4) == "db"
    guests.follow(lambda: guests.leads() == set(), "the address is given up")
    assert pages(guests) == NOBODY
    guests.settle()
    assert pages(guests) == NOBODY
    guests.address(guests.db, DB4)
    guests.address(guests.web, WEB4)
    guests.speak(guests.web, WEB4)
    guests.follow(lambda: guests.page() == "web", "the guest has its address again")


def test_address_of_a_guest_that_moved_is_followed(guests: Guests) -> None:
    learned(guests)
    guests.address(guests.web, OTHER4)
    assert guests.confirm(WEB4) is None
    assert guests.confirm(OTHER4) == "web"
    guests.follow(lambda: guests.leads() == {OTHER4}, "the new address is learned")
    assert guests.page() == "web"


def test_second_address_leaves_forward_and_connection(guests: Guests) -> None:
    learned(guests)
    open_one = guests.client.conversation(HOST4, 8080)
    assert open_one.ask()
    guests.web.ip(f"address add {OTHER4}/24 dev eth0")
    assert guests.confirm(OTHER4) == "web"
    # The kernel has not asked for this one for a while.
    guests.host.ip(f"neighbour replace {WEB4} lladdr {MACS['web']} dev {BRIDGE} nud stale")
    guests.settle()
    assert guests.leads() == {WEB4}
    assert open_one.ask(), "the open connection was cut"
    assert pages(guests) == {"web"}


ACK = frames.dhcp_ack(MACS["web"], TRAP4, GATEWAY4)
"""It gives ``web`` an address at which ``db`` serves its page, and which nobody has claimed."""


def trap(guests: Guests) -> None:
    guests.address(guests.db, DB4)
    guests.db.ip(f"address add {TRAP4}/24 dev eth0")


def send_ack_from_client(guests: Guests, port: int) -> None:
    frames.send_udp(guests.client, (HOST4, port), ACK, sport=67)


def send_ack_from_sibling(guests: Guests, port: int) -> None:
    frames.send_udp(guests.app, (HOST4, port), ACK, sport=67)


SENDERS = {"client": send_ack_from_client, "sibling": send_ack_from_sibling}


@pytest.mark.parametrize("sender", SENDERS)
@pytest.mark.parametrize("port", [5000, 68])
def test_forwarded_dhcp_answer_gives_no_address(guests: Guests, sender: str, port: int) -> None:
    """The host passes the datagram on to a guest, from port 67, masqueraded where it comes from a sibling."""
    trap(guests)
    guests.start("db", DB4, also=UDP)
    guests.start("web")
    with repeated(lambda: SENDERS[sender](guests, port)):
        guests.settle()
    assert guests.leads() == set()
    assert pages(guests) == NOBODY
    guests.address(guests.web, WEB4)
    guests.speak(guests.web, WEB4)
    guests.follow(lambda: guests.page() == "web", "the guest's own address is learned")


@pytest.mark.parametrize("sender", SENDERS)
def test_dhcp_answer_to_the_victims_own_forward_moves_nothing(guests: Guests, sender: str) -> None:
    """The datagram goes to the very NIC that it names, on port 68, and from the host's address."""
    trap(guests)
    guests.address(guests.web, WEB4)
    guests.start("web", also=UDP)
    guests.follow(lambda: guests.leads() == {WEB4}, "the address is learned")
    with repeated(lambda: SENDERS[sender](guests, 68)):
        guests.settle()
    assert guests.leads() == {WEB4}
    assert pages(guests) == {"web"}


def test_dhcp_answer_from_a_sibling_gives_no_address(guests: Guests) -> None:
    """A frame as the host's own server would send it, sent by a guest."""
    trap(guests)
    guests.start("web")
    packet = frames.udp((GATEWAY4, 67), ("255.255.255.255", 68), ACK)
    forged = [
        frames.ethernet(source, to, frames.ETH_P_IP, packet)
        for source in (MACS["db"], guests.bridge_mac)
        for to in (BROADCAST, MACS["web"], guests.bridge_mac)
    ]
    with repeated(lambda: frames.send(guests.db, *forged)):
        guests.settle()
    assert guests.leads() == set()
    assert pages(guests) == NOBODY


def arp_frames(guests: Guests) -> dict[str, list[bytes]]:
    """Write frames of ``db`` that say its address is at the MAC of ``web``."""
    forged, host, own = (MACS["web"], DB4), (guests.bridge_mac, GATEWAY4), MACS["db"]
    return {
        "reply": [frames.arp(REPLY, forged, host, source=own)],
        "gratuitous": [frames.gratuitous(forged, source=own)],
        "request": [frames.arp(REQUEST, forged, ("00:00:00:00:00:00", GATEWAY4), source=own, to=BROADCAST)],
    }


def attack_by_arp(guests: Guests, kind: str) -> None:
    """Let ``db`` forge, and be honest again after: the forward would lead to it then."""
    guests.speak(guests.db, DB4)
    with repeated(lambda: frames.send(guests.db, *arp_frames(guests)[kind])):
        eventually(lambda: guests.knows(DB4) == MACS["web"], "the kernel believes it")
        guests.settle()
    frames.send(guests.db, frames.gratuitous((MACS["db"], DB4)))
    eventually(lambda: guests.knows(DB4) == MACS["db"], "the kernel knows better")


KINDS = ("reply", "gratuitous", "request")


@pytest.mark.parametrize("kind", KINDS)
def test_forged_arp_moves_no_learned_address(guests: Guests, kind: str) -> None:
    guests.address(guests.db, DB4)
    learned(guests)
    attack_by_arp(guests, kind)
    assert pages(guests) == {"web"}
    guests.settle()
    assert guests.leads() == {WEB4}
    assert pages(guests) == {"web"}


@pytest.mark.parametrize("kind", KINDS)
def test_forged_arp_completes_no_waiting_forward(guests: Guests, kind: str) -> None:
    guests.address(guests.db, DB4)
    guests.start("web")
    attack_by_arp(guests, kind)
    assert pages(guests) == NOBODY
    guests.settle()
    assert pages(guests) == NOBODY
    guests.address(guests.web, WEB4)
    guests.speak(guests.web, WEB4)
    guests.follow(lambda: guests.page() == "web", "the guest's own address is learned", 40)


def test_answer_to_a_probe_in_anothers_name_completes_no_waiting_forward(guests: Guests) -> None:
    """The frame comes from ``db`` and names ``web``, at the very time at which ``web`` is asked."""
    guests.address(guests.db, DB4)
    guests.speak(guests.db, DB4)
    forged = frames.arp(REPLY, (MACS["web"], DB4), (guests.bridge_mac, GATEWAY4), source=MACS["db"])
    with repeated(lambda: frames.send(guests.db, forged)):
        guests.start("web")
        guests.settle()
    frames.send(guests.db, frames.gratuitous((MACS["db"], DB4)))
    eventually(lambda: guests.knows(DB4) == MACS["db"], "the kernel knows better")
    assert pages(guests) == NOBODY
