"""What the kernel is told to delete: every connection of a former forward, and no other."""

from __future__ import annotations

from collections.abc import Iterator
from errno import EINVAL, ENOENT, EPERM, ETIMEDOUT
from ipaddress import ip_address, ip_network
from os import strerror
from pathlib import Path

import pytest

from support.ctnetlink import connection
from support.fake_host import FakeHost, fake_host
from unit.build import endpoint, forward
from virt_forward.claims.flows import Pair
from virt_forward.host import conntrack, netlink

HOST, GUEST, CLIENT = "192.0.2.1", "198.51.100.200", "192.0.2.2"
WEB: Pair = (forward(8080, to=80), endpoint(GUEST))
DNS: Pair = (forward(53, proto="udp"), endpoint(GUEST))
NOTHING: frozenset[Pair] = frozenset()
OWN = frozenset({ip_address(HOST)})


@pytest.fixture
def host(tmp_path: Path) -> Iterator[FakeHost]:
    with fake_host(tmp_path) as made:
        yield made


def through(port: int, to: int, *, guest: str = GUEST, client: str = CLIENT, proto: str = "tcp") -> bytes:
    return connection(client, (HOST, port), (guest, to), proto)


def test_removed_forward_ends_its_connections_and_no_others(host: FakeHost) -> None:
    kept = [
        through(22, 22, guest=HOST),
        through(8081, 81),
        through(8080, 80, proto="udp"),
        through(8080, 80, guest="198.51.100.201"),
        connection(CLIENT, (GUEST, 8080), (GUEST, 80)),
    ]
    host.connections = [through(8080, 80), *kept, through(8080, 80, client="192.0.2.3")]
    assert conntrack.end_flows(frozenset({WEB}), NOTHING, NOTHING, OWN) is None
    assert host.connections == kept


def test_connections_of_both_families_end(host: FakeHost) -> None:
    six: Pair = (forward(80), endpoint("2001:db8:10::200"))
    kept = [connection("2001:db8:1::2", ("2001:db8:1::1", 80), ("2001:db8:10::201", 80))]
    ended = connection("2001:db8:1::2", ("2001:db8:1::1", 80), ("2001:db8:10::200", 80))
    host.connections = [through(8080, 80), ended, *kept]
    assert conntrack.end_flows(frozenset({WEB, six}), NOTHING, NOTHING, OWN) is None
    assert host.connections == kept


def test_forward_that_is_limited_to_a_source_ends_the_connections_of_others(host: FakeHost) -> None:
    limited = (WEB[0]._replace(source=ip_network("192.0.2.0/30")), WEB[1])
    host.connections = [through(8080, 80, client=f"192.0.2.{number}") for number in range(2, 9)]
    kept = host.connections[:2]
    assert conntrack.end_flows(frozenset({WEB}), frozenset({limited}), NOTHING, OWN) is None
    assert host.connections == kept


def test_unchanged_forward_asks_for_no_connections(host: FakeHost) -> None:
    conntrack.end_flows(frozenset({WEB}), frozenset({WEB}), NOTHING, OWN)
    conntrack.end_flows(NOTHING, frozenset({WEB}), frozenset({WEB}), OWN)
    assert host.dumps == 0


def test_changes_of_all_guests_take_one_dump(host: FakeHost) -> None:
    many: frozenset[Pair] = frozenset((forward(8080), endpoint(f"198.51.100.{n}")) for n in range(2, 9))
    host.connections = [through(8080, 8080, guest=f"198.51.100.{n}") for n in range(2, 9)]
    conntrack.end_flows(many, NOTHING, NOTHING, OWN)
    assert (host.dumps, host.connections) == (1, [])


def test_added_udp_forward_ends_flows_to_the_host(host: FakeHost) -> None:
    kept = [through(54, 54, guest=HOST, proto="udp"), through(53, 53, guest=HOST)]
    host.connections = [through(53, 53, guest=HOST, proto="udp"), *kept]
    assert conntrack.end_flows(NOTHING, frozenset({DNS}), frozenset({DNS}), OWN) is None
    assert host.connections == kept


def test_udp_forward_that_moves_ends_flows_to_the_former_guest_and_to_the_host(host: FakeHost) -> None:
    moved = (DNS[0], endpoint("198.51.100.201"))
    kept = [through(53, 53, guest="198.51.100.201", proto="udp")]
    host.connections = [
        *(through(53, 53, guest=HOST, proto="udp"), through(53, 53, proto="udp"), *kept),
    ]
    assert conntrack.end_flows(frozenset({DNS}), frozenset({moved}), frozenset({moved}), OWN) is None
    assert host.connections == kept


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(EPERM, strerror(EPERM)), strerror(EPERM)),
        (OSError(EINVAL, strerror(EINVAL)), "module nf_conntrack_netlink"),
        (TimeoutError("timed out"), strerror(ETIMEDOUT)),  # as a socket raises it
    ],
)
def test_connections_that_cannot_be_read_are_told(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch, error: OSError, told: str
) -> None:
    def fail(*_: object) -> list[bytes]:
        raise error

    monkeypatch.setattr(netlink, "dump", fail)
    assert told in (conntrack.end_flows(frozenset({WEB}), NOTHING, NOTHING, OWN) or "")


@pytest.mark.parametrize(
    ("errors", "told"), [(set(), ""), ({ENOENT}, ""), ({ENOENT, EPERM}, strerror(EPERM))]
)
def test_failed_deletion_is_told_unless_the_connection_has_ended_meanwhile(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch, errors: set[int], told: str
) -> None:
    host.connections = [through(8080, 80)]
    monkeypatch.setattr(netlink, "send", lambda *_: errors)
    problem = conntrack.end_flows(frozenset({WEB}), NOTHING, NOTHING, OWN) or ""
    assert told in problem
    assert bool(told) == bool(problem)


def test_every_deletion_names_its_connection(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """One without an original tuple would delete all connections there are."""
    sent: list[bytes] = []

    def send(_protocol: int, _kind: int, requests: list[bytes]) -> set[int]:
        sent.extend(requests)
        return set()

    whole = through(8080, 80)
    dumped = [whole, whole[:4] + whole[56:], whole[:4], b"", whole[:56]]
    monkeypatch.setattr(netlink, "dump", lambda *_: dumped)
    monkeypatch.setattr(netlink, "send", send)
    conntrack.end_flows(frozenset({WEB}), NOTHING, NOTHING, OWN)
    assert sent == [whole]
