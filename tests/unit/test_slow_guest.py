"""A guest whose rules nft does not load in time keeps no other guest out and refuses no other start."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.fake_host import FakeHost, fake_host
from support.xml import host_ip, port_forward, uuid_of
from unit.build import forward
from unit.expected_table import guest, holds, include_loads_the_same
from virt_forward.errors import NftMissingError, NftTimeout, NftUnusableError
from virt_forward.hooks import dispatch
from virt_forward.host import nft, process
from virt_forward.reconcile import refresh
from virt_forward.state.store import Store

WEB_XML = (host_ip("10.10.0.200"), port_forward("8080:80"))
DB_XML = (host_ip("10.10.0.201"), port_forward("5432"))
BIG_XML = (host_ip("10.10.0.202"), port_forward("9090"))
web = guest("web", "10.10.0.200", forward(8080, to=80))
db = guest("db", "10.10.0.201", forward(5432))
big = guest("big", "10.10.0.202", forward(9090))


@pytest.fixture
def host(tmp_path: Path) -> Iterator[FakeHost]:
    """web runs; nft did not load the rules of big in time."""
    with fake_host(tmp_path) as made:
        made.start("web", *WEB_XML)
        assert made.event("big", "prepare", *BIG_XML) == 0
        made.nft.before_apply = too_slow_for_big
        assert made.event("big", "started", *BIG_XML) == 0
        assert holds(made, web)
        yield made


def too_slow_for_big(text: str) -> None:
    if uuid_of("big") in text:
        raise NftTimeout("nft did not finish within 7 seconds")


def kept_out(host: FakeHost) -> bool:
    """Tell whether the state says why big has no rules, and the journal as well."""
    with Store().open() as state:
        found = state.guest(big.uuid)
    reason = "nft did not finish within 7 seconds"
    told = f'guest "big": {reason}; it is kept out, and the others have their rules' in host.messages
    return told and found is not None and found.conflicts == ((big.forwards[0], reason),)


EVENTS: dict[str, tuple[Callable[[FakeHost], object], bool]] = {
    "prepare": (lambda host: host.event("db", "prepare", *DB_XML), False),
    "started": (lambda host: host.event("db", "started", *DB_XML), True),
    "the service's check": (lambda _: refresh.verify(Store()), False),
    "its own": (lambda host: host.event("big", "reconnect", *BIG_XML), False),
}


@pytest.mark.parametrize(("happen", "runs"), EVENTS.values(), ids=EVENTS)
def test_next_event_keeps_the_slow_guest_out(
    host: FakeHost, happen: Callable[[FakeHost], object], runs: bool
) -> None:
    happen(host)
    assert kept_out(host)
    assert holds(host, web, db) if runs else holds(host, web)
    assert include_loads_the_same(host)
    host.stop("web", *WEB_XML)
    host.start("db", *DB_XML)
    assert holds(host, db)
    # It has another try with its own next event.
    host.nft.before_apply = lambda _text: None
    host.event("big", "reconnect", *BIG_XML)
    assert holds(host, db, big)


def test_stop_of_another_guest_takes_its_rules_away(host: FakeHost) -> None:
    host.stop("web", *WEB_XML)
    assert kept_out(host)
    assert holds(host)


def test_rebuild_with_the_slow_guest_leaves_time_for_one_without_it(host: FakeHost) -> None:
    left = []

    def note(text: str) -> None:
        left.append(process.left(100.0))
        too_slow_for_big(text)

    host.nft.before_apply = note
    host.event("db", "prepare", *DB_XML)
    assert len(left) == 2
    assert max(left) <= dispatch.SECONDS / 2


def test_whoever_came_while_nothing_could_be_loaded_is_not_kept_out_for_the_slow_guest(
    host: FakeHost,
) -> None:
    def too_slow(_text: str) -> None:
        raise NftTimeout("nft did not finish within 7 seconds")

    host.nft.before_apply = too_slow
    host.start("db", *DB_XML)
    host.nft.before_apply = too_slow_for_big
    host.event("web", "reconnect", *WEB_XML)
    assert kept_out(host)
    assert holds(host, web, db)


def test_kernel_that_does_not_answer_refuses_no_start(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parts() -> None:
        raise NftUnusableError("the kernel does not list what is in its tables: Connection timed out")

    monkeypatch.setattr(nft, "parts", parts)
    assert host.event("db", "prepare", *DB_XML) == 0


def test_missing_nft_refuses_a_start(host: FakeHost) -> None:
    def missing(_text: str) -> None:
        raise NftMissingError("nft not found", "install the package nftables")

    host.nft.before_apply = missing
    assert host.event("db", "prepare", *DB_XML) == 1
