"""NICs are asked for the addresses of their leases: all at once, and not with the lock held."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_address
from pathlib import Path

import pytest

from support import xml
from support.fake_host import FakeHost, fake_host
from virt_forward.addresses.attachments import BridgeFacts
from virt_forward.errors import LockTimeout, Question
from virt_forward.host import collect, probe_socket
from virt_forward.host.collect import Answers
from virt_forward.libvirtd import api
from virt_forward.libvirtd.api import DomainState
from virt_forward.metadata.domain import parse_domain
from virt_forward.model import Address, Reservation
from virt_forward.reconcile.apply import reconcile
from virt_forward.reconcile.planning import context
from virt_forward.reconcile.refresh import refresh
from virt_forward.reconcile.resync import sync
from virt_forward.reconcile.wants import Present
from virt_forward.state.config_file import load_config
from virt_forward.state.store import Store

NUMBERS = range(3)
MACS = [f"52:54:00:00:01:{n:02x}" for n in NUMBERS]
LEASES = tuple(Reservation(ip_address(f"10.10.0.{20 + n}"), MACS[n]) for n in NUMBERS)


class Guests:
    """Guests that have a lease; ``asked`` has for each attempt whether it held the lock, and the NICs."""

    def __init__(self, host: FakeHost) -> None:
        self.host = host
        self.answering: list[str] = []
        self.asked: list[tuple[bool, list[str]]] = []
        self.domains = [
            DomainState(f"g{n}", "", True, xml.domain(f"g{n}", forwards(n), [xml.Nic(mac=MACS[n])]).encode())
            for n in NUMBERS
        ]

    def ask(self, questions: Iterable[Question], bridges: Mapping[str, BridgeFacts]) -> Answers:
        """Stand in for collect.ask_nics."""
        questions = list(questions)
        assert all(question.name in bridges for question in questions)
        self.asked.append((is_locked(), sorted(question.mac for question in questions)))
        return {
            (question.name, question.mac, ip): True
            for question in questions
            if question.mac in self.answering
            for ip in question.addresses
        }

    def endpoints(self) -> list[Address]:
        with Store().open() as state:
            return sorted(one.ip for guest in state.guests().values() for one in guest.endpoints)


def forwards(number: int) -> str:
    return xml.forwards(xml.port_forward(f"{8000 + number}:80"))


def is_locked() -> bool:
    try:
        with Store().lock(0):
            return False
    except LockTimeout:
        return True


@pytest.fixture
def guests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guests]:
    with fake_host(tmp_path) as host:
        made = Guests(host)
        monkeypatch.setattr(api, "connection", lambda _: contextlib.nullcontext())
        monkeypatch.setattr(api, "domains", lambda *_: made.domains)
        monkeypatch.setattr(api, "networks", lambda _: [])
        monkeypatch.setattr(collect, "dhcp_leases", lambda _: LEASES)
        monkeypatch.setattr(collect, "ask_nics", made.ask)
        monkeypatch.setattr(probe_socket, "probe_once", lambda _: {})
        yield made


@pytest.mark.parametrize("probe_guests", [False, True])
def test_sync_asks_all_at_once_before_it_has_the_lock(guests: Guests, probe_guests: bool) -> None:
    guests.answering = MACS[:2]
    sync(probe_guests=probe_guests)
    assert guests.asked == [(False, MACS)]
    assert guests.endpoints() == [lease.ip for lease in LEASES[:2]]


def test_refresh_asks_all_that_wait_at_once_before_it_has_the_lock(guests: Guests) -> None:
    sync()
    guests.asked.clear()
    assert refresh(Store()) == 0
    guests.answering = MACS[1:]
    assert refresh(Store()) == 2
    assert guests.asked == [(False, MACS)] * 2
    assert guests.endpoints() == [lease.ip for lease in LEASES[1:]]


def test_change_of_several_guests_asks_all_at_once(guests: Guests) -> None:
    guests.answering = MACS
    wants = [Present(parse_domain(domain.xml), "running") for domain in guests.domains]
    store = Store()
    with store.open() as state:
        reconcile(context(store, state, load_config()), wants)
    assert guests.asked == [(True, MACS)]
    assert guests.endpoints() == [lease.ip for lease in LEASES]


def test_start_asks_nobody(guests: Guests) -> None:
    for number in NUMBERS:
        assert guests.host.event(f"g{number}", "prepare", xml.port_forward(f"{8000 + number}:80")) == 0
    assert guests.asked == []
