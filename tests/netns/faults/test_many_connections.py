"""A guest that stops among very many tracked connections: its own end, nobody else's."""

from __future__ import annotations

import pytest

from netns.faults.testbed import FaultTestbed

pytestmark = pytest.mark.root

MANY = 20_000
HOST, GUEST, OTHER = "192.0.2.1", "10.10.0.202", "10.10.0.7"
HOW = "-I -p tcp --sport 1000 --state ESTABLISHED -t 300"


def tracked(number: int, dport: int, answering: str, reply_port: int) -> str:
    source = f"198.18.{number >> 8}.{number & 255}"
    return f"{HOW} -s {source} -d {HOST} --dport {dport} --dst-nat {answering}:{reply_port}"


def test_of_very_many_connections_its_own_end(testbed: FaultTestbed) -> None:
    """mail has 2525; a person's own rule leads 2526 to it as well, and other ports to another guest."""
    testbed.start("mail")
    lines = [tracked(number, 2525, GUEST, 25) for number in range(0, MANY, 4)]
    lines += [tracked(number, 2526, GUEST, 26) for number in range(1, MANY, 4)]
    lines += [tracked(number, 2525, OTHER, 25) for number in range(2, MANY, 4)]
    lines += [tracked(number, 443, OTHER, 443) for number in range(3, MANY, 4)]
    testbed.lab.host.run(["conntrack", "-R", "-"], stdin="\n".join(lines) + "\n")
    # The host itself may have said something, to its neighbours.
    others = int(testbed.lab.host.run(["conntrack", "-C"]).out) - MANY
    testbed.stop("mail")
    left = testbed.lab.host.run(["conntrack", "-L"]).out.splitlines()
    testbed.lab.host.run(["conntrack", "-F"])
    assert abs(len(left) - others - MANY * 3 // 4) <= 10
    assert others <= 10
    assert not [line for line in left if "dport=2525 " in line and f"src={GUEST} " in line]
