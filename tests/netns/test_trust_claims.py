"""Whose address it is, where two guests have the same: what a person wrote down wins over what was learned.

Each test runs twice: with the hooks and ``virt-forward sync`` alone, and with the service.
"""

from __future__ import annotations

import re

import pytest

from netns.trust import DB4, MACS, OTHER4, PORTS, WEB4, Guests, pages
from support import frames
from support.netns import BRIDGE, GUEST_MAC, HOST4
from support.proc import REPO

pytestmark = pytest.mark.root


def squat(guests: Guests) -> None:
    """Let ``db`` run with an address that a guest which does not run yet has in its metadata."""
    guests.address(guests.db, WEB4)
    guests.start("db")
    guests.speak(guests.db, WEB4)
    guests.follow(lambda: guests.leads("db") == {WEB4}, "the address is learned")


def test_learned_address_refuses_no_start(guests: Guests) -> None:
    squat(guests)
    done = guests.start("web", WEB4, check=False)
    assert (done.status, done.err) == (0, "")
    assert guests.leads("web") == {WEB4}
    assert guests.leads("db") == set()
    # The first is up and says so; whoever else answers for the address, its own forward leads there no more.
    guests.address(guests.web, WEB4)
    guests.address(guests.db, DB4)
    frames.send(guests.web, frames.gratuitous((MACS["web"], WEB4)))
    assert guests.confirm(WEB4) == "web"
    assert pages(guests) == {"web"}
    guests.settle()
    assert guests.leads("db") <= {DB4}
    assert pages(guests) == {"web"}


def test_guest_whose_learned_address_was_lost_is_served_at_its_own(guests: Guests) -> None:
    squat(guests)
    guests.start("web", WEB4)
    guests.address(guests.web, WEB4)
    guests.address(guests.db, DB4)
    assert guests.confirm(WEB4) == "web"
    guests.speak(guests.db, DB4)
    guests.follow(lambda: guests.page("db") == "db", "its own address is learned", 40)
    assert guests.leads("db") == {DB4}
    assert pages(guests) == {"web"}


def test_declared_address_of_another_guest_is_not_learned(guests: Guests) -> None:
    """The other one runs already; this one answers for its address as well."""
    guests.address(guests.web, WEB4)
    guests.start("web", WEB4)
    assert pages(guests) == {"web"}
    guests.start("db")
    guests.address(guests.db, WEB4)
    guests.speak(guests.db, WEB4)
    guests.settle()
    assert guests.leads("db") == set()
    assert guests.leads("web") == {WEB4}


def test_second_declaration_of_an_address_is_refused(guests: Guests) -> None:
    guests.start("web", WEB4)
    done = guests.start("db", WEB4, check=False)
    assert done.status == 1
    assert WEB4 in done.err
    assert "guest web" in done.err


def test_declared_address_replaces_the_learned_one_of_the_same_guest(guests: Guests) -> None:
    """A person writes down another address than the guest had: the forward moves, whatever is confirmed."""
    guests.address(guests.web, OTHER4)
    guests.start("web")
    guests.follow(lambda: guests.leads() == {OTHER4}, "the address is learned")
    guests.web.ip(f"address add {WEB4}/24 dev eth0")
    guests.declare("web", WEB4)
    guests.follow(lambda: guests.leads() == {WEB4}, "the declared address counts")
    assert pages(guests) == {"web"}


def test_rule_that_ties_an_address_to_its_nic_keeps_others_from_it(unwatched: Guests) -> None:
    """The rule of docs/security.md; without it, whoever answers for the declared address is led to."""
    unwatched.address(unwatched.db, WEB4)
    unwatched.start("web", WEB4)
    assert pages(unwatched) == {"db"}
    page = (REPO / "docs" / "security.md").read_text()
    (rule,) = re.findall(r"^```nft\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    for example, here in (("vmbr0", BRIDGE), ("10.10.0.200", WEB4), (GUEST_MAC, MACS["web"])):
        assert example in rule
        rule = rule.replace(example, here)
    unwatched.host.nft(rule)
    assert unwatched.client.unanswered(HOST4, PORTS["web"])
    unwatched.address(unwatched.db, DB4)
    unwatched.address(unwatched.web, WEB4)
    assert unwatched.confirm(WEB4) == "web"
    assert pages(unwatched) == {"web"}
