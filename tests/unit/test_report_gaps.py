"""``list`` shows which ports of a forward are not open."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from unit.build import UUID, forward, guest
from unit.counted import Looks
from virt_forward import names
from virt_forward.cli import report
from virt_forward.model import Declaration, Domain, Forward, PortForward, Range
from virt_forward.ruleset import guest as guest_block


def told(declared: PortForward, *parts: Forward) -> list[tuple[int, int, str, str | None]]:
    """Return ports, state and reason of each line."""
    record = guest("web", *parts)._replace(uuid=UUID)
    chain = guest_block.count_chain(names.suffix("web", UUID))
    kernel = {(chain, guest_block.counter_comment(number)): (1, 60) for number in range(len(parts))}
    domain = Domain("web", UUID, (), Declaration((declared,)))
    reached = frozenset({guest_block.nat_chain(names.suffix("web", UUID))})
    lines = report.lines(domain, True, record, report.HostState(kernel, reached=reached))
    return [(line.forward.start, line.forward.end, line.state, line.reason) for line in lines]


RANGE = PortForward("udp", (Range(40000, 40010, 50000),))
LOOK = "used by the host, or declared since the guest started; run virt-forward sync to check again"


def test_open_forward_has_no_reason() -> None:
    whole = forward(40000, 40010, 50000, proto="udp")
    assert told(RANGE, whole) == [(40000, 40010, "active", None)]


def test_first_piece_of_range_has_gaps_as_reason() -> None:
    first, last = forward(40000, 40002, 50000, proto="udp"), forward(40004, 40010, 50004, proto="udp")
    assert told(RANGE, first, last) == [
        (40000, 40002, "active", f"without 40003: {LOOK}"),
        (40004, 40010, "active", None),
    ]


def test_many_gaps_are_counted() -> None:
    parts = [forward(port, port + 8, address="203.0.113.7") for port in range(1, 65531, 10)]
    ((*_, reason), *others) = told(PortForward("tcp", (), ip_address("203.0.113.7")), *parts)
    assert reason == f"without 10, 20, 30 and 6550 more: {LOOK}"
    assert {line[3] for line in others} == {None}


@pytest.mark.parametrize(
    ("part", "states"),
    [
        (forward(40000, 40010, 1, proto="udp"), ["active", "missing"]),
        (forward(40000, 40010, 50000, proto="udp", dev="enp1s0"), ["active", "missing"]),
        (forward(39999, 40010, 49999, proto="udp"), ["active", "missing"]),
    ],
)
def test_other_forward_on_same_ports_is_no_piece(part: Forward, states: list[str]) -> None:
    found = told(RANGE, part)
    assert [state for *_, state, _ in found] == states
    assert found[0][3] == "no longer declared; run virt-forward sync to close it"


def test_search_for_pieces_does_not_scan_all_forwards() -> None:
    looks, number = Looks(), 1000
    parts = report._Parts(looks.forwards(forward(port) for port in range(1, number + 1)))
    assert all(
        parts.within(forward(port)) and parts.holds(port, forward(port)) for port in range(1, number + 1)
    )
    assert looks.number < 100 * number
