"""The same by IPv6: what a neighbour says of others in Neighbour Discovery leads no forward to it.

Each test runs twice: with the hooks and ``virt-forward sync`` alone, and with the service.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from netns.trust import DB6, MACS, WEB4, WEB6, Guests, pages, repeated
from support import frames
from support.frames import ADVERTISEMENT, ALL_NODES, SOLICITATION
from support.netns import GATEWAY6, HOST6
from support.proc import eventually

pytestmark = pytest.mark.root
NOBODY = {None}
DERIVED6 = frames.derived("fd10:10::", MACS["web"])


def solicitation(guests: Guests, to: tuple[str, str]) -> bytes:
    """Ask for the host in the name of ``db``; the option says that ``db`` is at the MAC of ``web``."""
    sender = (MACS["db"], DB6)
    return frames.neighbour(SOLICITATION, sender, target=GATEWAY6, to=to, option=MACS["web"])


def advertisement(guests: Guests, to: tuple[str, str]) -> bytes:
    """Say to the host, which need not have asked, that ``db`` is at the MAC of ``web``."""
    return frames.neighbour(ADVERTISEMENT, (MACS["db"], DB6), target=DB6, to=to, option=MACS["web"])


KINDS: dict[str, Callable[[Guests, tuple[str, str]], bytes]] = {
    "solicitation": solicitation,
    "advertisement": advertisement,
}


def attack(guests: Guests, kind: str) -> None:
    """Let ``db`` forge, and be honest again after: the forward would lead to it then."""
    guests.speak(guests.db, DB6)
    host = (guests.bridge_mac, GATEWAY6)
    everybody = ("33:33:00:00:00:01", ALL_NODES)
    # Multicast to the host, as solicitations are, and what is sent to it alone.
    forged = [KINDS[kind](guests, to) for to in ([host] if kind == "solicitation" else [host, everybody])]
    with repeated(lambda: frames.send(guests.db, *forged)):
        eventually(lambda: guests.knows(DB6) == MACS["web"], "the kernel believes it")
        guests.settle()
    honest = frames.neighbour(ADVERTISEMENT, (MACS["db"], DB6), target=DB6, to=host, option=MACS["db"])
    frames.send(guests.db, honest)
    eventually(lambda: guests.knows(DB6) == MACS["db"], "the kernel knows better")


@pytest.mark.parametrize("kind", KINDS)
def test_forged_neighbour_discovery_gives_no_address_beside_a_declared_one(guests: Guests, kind: str) -> None:
    """``web`` has IPv4 alone: whatever IPv6 address it seems to have is not its own."""
    guests.address(guests.web, WEB4)
    guests.address(guests.db, ip6=DB6)
    guests.start("web", WEB4)
    attack(guests, kind)
    assert pages(guests, HOST6) == NOBODY
    guests.settle()
    assert guests.leads("web", 6) == set()
    assert pages(guests, HOST6) == NOBODY
    assert pages(guests) == {"web"}


@pytest.mark.parametrize("kind", KINDS)
def test_forged_neighbour_discovery_moves_no_learned_address(guests: Guests, kind: str) -> None:
    guests.address(guests.web, ip6=WEB6)
    guests.address(guests.db, ip6=DB6)
    guests.start("web")
    guests.speak(guests.web, WEB6)
    guests.follow(lambda: guests.leads("web", 6) == {WEB6}, "the address is learned")
    attack(guests, kind)
    assert pages(guests, HOST6) == {"web"}
    guests.settle()
    assert guests.leads("web", 6) == {WEB6}
    assert pages(guests, HOST6) == {"web"}


@pytest.mark.parametrize("kind", KINDS)
def test_forged_neighbour_discovery_completes_no_waiting_forward(guests: Guests, kind: str) -> None:
    guests.address(guests.db, ip6=DB6)
    guests.start("web")
    attack(guests, kind)
    assert pages(guests, HOST6) == NOBODY
    guests.settle()
    assert pages(guests, HOST6) == NOBODY
    guests.address(guests.web, ip6=WEB6)
    guests.speak(guests.web, WEB6)
    guests.follow(lambda: guests.page("web", HOST6) == "web", "the guest's own address is learned", 40)


def learn_six(guests: Guests, ip6: str) -> None:
    """Start ``web`` with a declared IPv4 address; it has an IPv6 address and speaks to its host from it."""
    guests.address(guests.web, WEB4, ip6)
    guests.start("web", WEB4)
    guests.speak(guests.web, ip6)
    eventually(lambda: guests.knows(ip6) == MACS["web"], "the kernel knows it")


def test_address_derived_from_the_mac_is_learned_beside_a_declared_one(guests: Guests) -> None:
    learn_six(guests, DERIVED6)
    guests.follow(lambda: guests.page("web", HOST6) == "web", "the derived address is learned")
    assert guests.leads("web", 6) == {DERIVED6}


def test_any_address_is_learned_beside_a_declared_one_where_configured(guests: Guests) -> None:
    guests.driver.configure('[addresses]\nlearn = "any"\n')
    learn_six(guests, WEB6)
    guests.follow(lambda: guests.leads("web", 6) == {WEB6}, "the address is learned")
    assert guests.page("web", HOST6) == "web"


def test_nothing_is_learned_from_the_wire_where_configured(guests: Guests) -> None:
    guests.driver.configure('[addresses]\nlearn = "never"\n')
    guests.address(guests.web, WEB4, DERIVED6)
    guests.start("web")
    for ip in (WEB4, DERIVED6):
        guests.speak(guests.web, ip)
        eventually(lambda ip=ip: guests.knows(ip) == MACS["web"], "the kernel knows it")  # type: ignore[misc]
    guests.settle()
    assert guests.leads() == guests.leads("web", 6) == set()
    assert pages(guests) == pages(guests, HOST6) == NOBODY
