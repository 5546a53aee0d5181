"""Ports on which the host itself listens: each family and address rightly judged, refused with the name."""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab.xml import port_forward
from netns.support import V4, V6, Cast

pytestmark = pytest.mark.root

PROGRAM = """#!/usr/bin/python3
import socket, sys, time
host, kind, only, *ports = sys.argv[1:]
family = socket.AF_INET6 if ":" in host else socket.AF_INET
kept = []
for port in map(int, ports):
    sock = socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
    if only:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(only))
    sock.bind((host, port))
    if kind == "tcp":
        sock.listen()
    kept.append(sock)
print("ready", flush=True)
time.sleep(60)
"""

ANY, AT4, AT6, EXTRA = "", f'address="{V4.host}"', f'address="{V6.host}"', f'address="{V4.extra}"'
FROM4, FROM6 = f'source="{V4.any}"', f'source="{V6.any}"'
EVERYTHING = (ANY, AT4, AT6, EXTRA, FROM4, FROM6)
PORTS = {2222 + number: limits for number, limits in enumerate(EVERYTHING)}
"""The listener has a port for each of them, so that one event tells of all."""


@dataclass(frozen=True)
class Case:
    """A listener, and the limits of forwards it stands against; it stands against no others."""

    host: str
    against: tuple[str, ...]
    only: str = ""
    kind: str = "tcp"


CASES = [
    Case("0.0.0.0", (ANY, AT4, EXTRA, FROM4)),
    Case("0.0.0.0", (ANY, AT4, EXTRA, FROM4), kind="udp"),
    Case("::", EVERYTHING, "0"),
    Case("::", EVERYTHING, "0", "udp"),
    Case(V4.host, (ANY, AT4, FROM4)),
    Case(V6.host, (ANY, AT6, FROM6)),
    Case(V4.extra, (ANY, EXTRA, FROM4)),
    Case(V6.host, (ANY, AT6, FROM6), kind="udp"),
    Case("127.0.0.1", ()),
    Case("127.0.0.1", (), kind="udp"),
    Case("::1", ()),
    Case(V4.gateway, ()),
    Case(V6.gateway, ()),
]


@contextlib.contextmanager
def listening(cast: Cast, case: Case) -> Iterator[None]:
    """Run a program of an own name on the host, as only a process has one."""
    program = cast.scene.lab.dir / "mysshd"
    program.write_text(PROGRAM)
    program.chmod(stat.S_IRWXU)
    log = Path(cast.scene.lab.dir, "mysshd.log")
    log.write_text("")
    process = cast.host.background([program, case.host, case.kind, case.only, *map(str, PORTS)], log)
    try:
        process.wait_for(lambda: "ready" in process.text(), "the listener is there")
        yield
    finally:
        process.end()


def taken(cast: Cast, case: Case) -> dict[int, str]:
    """Return by port what a start with every kind of limit is told."""
    declared = [port_forward(str(port), proto=case.kind, attributes=limits) for port, limits in PORTS.items()]
    said = cast.scene.event("web", "prepare", *declared, check=False).err
    return {port: line for port in PORTS for line in said.splitlines() if f"/{port} is taken by" in line}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}-{case.host}")
def test_a_listener_stands_against_what_would_take_its_connections(cast: Cast, case: Case) -> None:
    with listening(cast, case):
        said = taken(cast, case)
    assert tuple(PORTS[port] for port in said) == case.against
    for port, line in said.items():
        expected = (
            f"host port {case.kind}/{port} is taken by mysshd on the host, which listens on {case.host}"
        )
        assert line.endswith(expected)


def test_a_listener_on_ipv6_only_leaves_ipv4_alone(cast: Cast) -> None:
    case = Case("::", (ANY, AT6, FROM6), "1")
    with listening(cast, case):
        assert tuple(PORTS[port] for port in taken(cast, case)) == case.against


def test_the_other_protocol_is_no_conflict(cast: Cast) -> None:
    with listening(cast, Case("0.0.0.0", ())):
        cast.scene.event("web", "prepare", *(port_forward("2222", proto=proto) for proto in ("udp", "sctp")))


def test_a_range_around_the_listener_is_refused(cast: Cast) -> None:
    with listening(cast, Case("0.0.0.0", ())):
        said = cast.scene.refused("web", port_forward("2000-3000"))
        assert "is taken by mysshd on the host, which listens on 0.0.0.0" in said
        cast.scene.event("web", "prepare", port_forward("2000-3000", "!2222-2227"))


def test_what_is_connected_is_no_listener(cast: Cast) -> None:
    with cast.client.serve("tcp", 9999), cast.host.conversation(V4.client, 9999, sport=2222) as talk:
        assert talk.ask() is not None
        cast.scene.event("web", "prepare", port_forward("2222"))
