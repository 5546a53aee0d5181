"""Ports on which the host itself listens: each family and address judged rightly, refused with the name."""

from __future__ import annotations

import contextlib
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from netns.support import V4, V6, Servers, Topology, silent, who
from support.netns import UPLINK, UPLINK2
from support.payload import ANSWERED, socket_in
from support.xml import Nic, domain, forwards, port_forward

pytestmark = pytest.mark.root

PROGRAM = """#!/usr/bin/python3
import socket, sys, time
host, kind, only, device, *ports = sys.argv[1:]
family = socket.AF_INET6 if ":" in host else socket.AF_INET
kept = []
for port in map(int, ports):
    sock = socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if only:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(only))
    if device:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
    sock.bind((host, port))
    if kind == "tcp":
        sock.listen()
    kept.append(sock)
print("serving", flush=True)
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
    device: str = ""


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
def listening(topo: Topology, case: Case) -> Iterator[None]:
    """Run a program of an own name on the host, as only a process has one."""
    program = topo.testbed.lab.dir / "mysshd"
    program.write_text(PROGRAM)
    program.chmod(stat.S_IRWXU)
    log = Path(topo.testbed.lab.dir, "mysshd.log")
    log.write_text("")
    process = topo.host.background(
        [program, case.host, case.kind, case.only, case.device, *map(str, PORTS)], log
    )
    try:
        process.wait_for(lambda: "serving" in process.text(), "the listener is there")
        yield
    finally:
        process.end()


def taken(topo: Topology, case: Case, more: str = "") -> dict[int, str]:
    """Return by port what a start with every kind of limit is told; ``more`` attributes limit all of them."""
    declared = [
        port_forward(str(port), proto=case.kind, attributes=f"{limits} {more}")
        for port, limits in PORTS.items()
    ]
    errors = topo.testbed.event("web", "prepare", *declared, check=False).err
    return {port: line for port in PORTS for line in errors.splitlines() if f"/{port} is taken by" in line}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}-{case.host}")
def test_listener_refuses_forwards_that_would_take_its_connections(topo: Topology, case: Case) -> None:
    with listening(topo, case):
        errors = taken(topo, case)
    assert tuple(PORTS[port] for port in errors) == case.against
    for port, line in errors.items():
        expected = (
            f"host port {case.kind}/{port} is taken by mysshd on the host, which listens on {case.host}"
        )
        assert line.endswith(expected)


def test_listener_on_ipv6_only_does_not_refuse_ipv4(topo: Topology) -> None:
    case = Case("::", (ANY, AT6, FROM6), "1")
    with listening(topo, case):
        assert tuple(PORTS[port] for port in taken(topo, case)) == case.against


def test_listener_of_other_protocol_is_no_conflict(topo: Topology) -> None:
    with listening(topo, Case("0.0.0.0", ())):
        topo.testbed.event(
            "web", "prepare", *(port_forward("2222", proto=proto) for proto in ("udp", "sctp"))
        )


def test_range_with_listener_is_refused(topo: Topology) -> None:
    with listening(topo, Case("0.0.0.0", ())):
        errors = topo.testbed.refused("web", port_forward("2000-3000"))
        assert "is taken by mysshd on the host, which listens on 0.0.0.0" in errors
        topo.testbed.event("web", "prepare", port_forward("2000-3000", "!2222-2227"))


def test_connected_socket_is_no_listener(topo: Topology) -> None:
    with topo.client.serve("tcp", 9999), topo.host.conversation(V4.client, 9999, sport=2222) as talk:
        assert talk.ask() is not None
        topo.testbed.event("web", "prepare", port_forward("2222"))


@pytest.mark.parametrize(
    ("case", "dev", "against"),
    [
        (Case("0.0.0.0", (), device=UPLINK2), UPLINK, ()),
        (Case("0.0.0.0", (), "", "udp", UPLINK2), UPLINK, ()),
        (Case("0.0.0.0", (), device=UPLINK), UPLINK, (ANY, AT4, EXTRA, FROM4)),
        (Case("::", (), "0", "tcp", UPLINK), UPLINK, EVERYTHING),
        (Case(V4.second_host, ()), UPLINK, ()),
        (Case(V6.second_host, ()), UPLINK, ()),
        (Case(V4.second_host, ()), UPLINK2, (ANY, FROM4)),
        (Case(V4.host, ()), UPLINK, (ANY, AT4, FROM4)),
    ],
    ids=str,
)
def test_listener_on_other_device_than_dev_is_no_conflict(
    topo: Topology, case: Case, dev: str, against: tuple[str, ...]
) -> None:
    with listening(topo, case):
        errors = taken(topo, case, f'dev="{dev}"')
    assert tuple(PORTS[port] for port in errors) == against


def test_socket_on_other_device_keeps_connections_with_dev(topo: Topology) -> None:
    with contextlib.closing(socket_in(topo.host.path, socket.AF_INET, "udp")) as server:
        server.settimeout(ANSWERED)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, UPLINK2.encode())
        server.bind(("0.0.0.0", 5353))
        topo.testbed.start("web", port_forward("5353:80", proto="udp", attributes=f'dev="{UPLINK}"'))
        assert who(topo.client, V4.host, 5353, "udp") == "web"
        with contextlib.closing(socket_in(topo.client2.path, socket.AF_INET, "udp")) as other:
            other.sendto(b"hello", (V4.second_host, 5353))
            assert server.recv(100) == b"hello"


@pytest.mark.parametrize(
    ("case", "against"),
    [
        (Case("::", (), "1"), (AT6, FROM6)),
        (Case(V6.host, ()), (AT6, FROM6)),
        (Case("::", (), "0"), EVERYTHING),
        (Case("0.0.0.0", ()), (ANY, AT4, EXTRA, FROM4)),
    ],
    ids=str,
)
def test_listener_on_ipv6_only_is_no_conflict_for_ipv4_guest(
    topo: Topology, case: Case, against: tuple[str, ...]
) -> None:
    with bridge4(topo) as bridge, listening(topo, case):
        declared = (port_forward(str(port), attributes=limits) for port, limits in PORTS.items())
        text = domain("four", forwards(*declared), [Nic(bridge, "52:54:00:00:00:44")], "prepare")
        errors = topo.testbed.lab.hook("qemu", "four", "prepare", xml=text, check=False).err
    found = [limits for port, limits in PORTS.items() if f"/{port} is taken by" in errors]
    assert tuple(found) == against


@contextlib.contextmanager
def bridge4(topo: Topology) -> Iterator[str]:
    """Create a bridge on which the host has IPv4 only."""
    topo.testbed.lab.add_bridge("virbr4", "10.40.0.1/24")
    try:
        yield "virbr4"
    finally:
        topo.host.ip("link del virbr4")


CLIENT_PORT = 40000


@pytest.fixture
def client_socket(topo: Topology) -> Iterator[socket.socket]:
    """The socket of a UDP client on the host; the kernel chooses its port, of which there is only one."""
    before = topo.host.run(["sysctl", "-n", RANGE]).out.split()
    topo.host.sysctl(RANGE, f"{CLIENT_PORT} {CLIENT_PORT}")
    try:
        with (
            contextlib.closing(topo.client.serve("udp", 9999, name="resolver")),
            contextlib.closing(socket_in(topo.host.path, socket.AF_INET, "udp")) as sock,
        ):
            sock.settimeout(ANSWERED)
            yield sock
    finally:
        topo.host.sysctl(RANGE, " ".join(before))


RANGE = "net.ipv4.ip_local_port_range"


def gets_answer(sock: socket.socket) -> bool:
    """Send a request from an unconnected socket, and tell whether the answer arrives."""
    sock.sendto(b"who are you?\n", (V4.client, 9999))
    return b"resolver" in sock.recv(2048)


def test_udp_client_does_not_refuse_start_and_keeps_its_answers(
    topo: Topology, client_socket: socket.socket
) -> None:
    assert gets_answer(client_socket)
    assert client_socket.getsockname()[1] == CLIENT_PORT
    topo.testbed.start("web", port_forward(f"{CLIENT_PORT}:80", proto="udp"))
    assert who(topo.client, V4.host, CLIENT_PORT, "udp") == "web"
    assert gets_answer(client_socket)


@pytest.mark.parametrize("whole", [True, False])
def test_wide_forward_excludes_port_of_udp_client(
    topo: Topology, client_socket: socket.socket, whole: bool
) -> None:
    assert gets_answer(client_socket)
    declared = (
        port_forward("!1-79", "!82-39998", proto="udp", attributes=AT4)
        if whole
        else port_forward(f"80-{CLIENT_PORT + 1}", proto="udp")
    )
    with topo.web.serve("udp", CLIENT_PORT - 1, CLIENT_PORT, CLIENT_PORT + 1, name="web") as server:
        topo.testbed.start("web", declared)
        assert [who(topo.client, V4.host, port, "udp") for port in (39999, 40001)] == ["web", "web"]
        assert silent(topo.client, V4.host, 40000, "udp", Servers([server]))


def test_udp_client_does_not_take_port_of_running_guest(topo: Topology, client_socket: socket.socket) -> None:
    declared = port_forward(f"{CLIENT_PORT}-{CLIENT_PORT + 1}:80", proto="udp")
    topo.testbed.start("web", declared)
    assert gets_answer(client_socket)
    topo.testbed.event("web", "reconnect", declared)
    assert who(topo.client, V4.host, CLIENT_PORT, "udp") == "web"


def test_server_in_local_port_range_is_listener(topo: Topology) -> None:
    with contextlib.closing(socket_in(topo.host.path, socket.AF_INET, "udp")) as server:
        server.bind(("0.0.0.0", 51820))
        for ports in ("51820", "51000-52000"):
            assert "host port udp/51820 is taken by" in topo.testbed.refused(
                "web", port_forward(ports, proto="udp")
            )
