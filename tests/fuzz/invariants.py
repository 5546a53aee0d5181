"""What is true of values and errors, whatever they were parsed from. Each check raises AssertionError."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address

from support.state import in_memory
from unit.nft_grammar import assert_spoken
from virt_forward import text
from virt_forward.claims import index as claims
from virt_forward.claims.sockets import Listener
from virt_forward.config import Config
from virt_forward.errors import VirtForwardError
from virt_forward.metadata import values
from virt_forward.model import (
    MAX_PORT,
    ORIGINS,
    PROTOS,
    Address,
    Forward,
    Guest,
    Network,
    Reservation,
    Sighting,
)
from virt_forward.ruleset import table
from virt_forward.state import records


def is_address(ip: Address) -> None:
    assert isinstance(ip, (IPv4Address, IPv6Address))
    assert values.address(str(ip)) == ip


def is_wire_address(ip: Address) -> None:
    """The same of what a kernel or a frame says, where an IPv4-mapped address is possible."""
    assert isinstance(ip, (IPv4Address, IPv6Address))


def is_mac(mac: str) -> None:
    assert values.mac(mac) == mac


def is_port(port: int, least: int = 1) -> None:
    assert least <= port <= MAX_PORT


def are_sightings(found: Iterable[Sighting | None]) -> None:
    for seen in found:
        if seen is not None:
            is_wire_address(seen.ip)
            is_mac(seen.mac)
            assert seen.origin in ORIGINS


def are_leases(found: Iterable[Reservation]) -> None:
    for lease in found:
        is_address(lease.ip)
        assert not lease.ip.is_link_local
        is_mac(lease.mac or "")


def are_listeners(found: Iterable[Listener]) -> None:
    for listener in found:
        assert listener.proto in PROTOS
        is_wire_address(listener.address)
        is_port(listener.port, 0)
        assert listener.inode >= 0


def is_forward(forward: Forward) -> None:
    assert forward.proto in PROTOS
    for port in (forward.start, forward.end, forward.to, forward.to + forward.end - forward.start):
        is_port(port)
    assert forward.start <= forward.end
    assert forward.dev is None or values.is_dev(forward.dev)
    assert forward.mac is None or values.mac(forward.mac)


def is_guest(guest: Guest) -> None:
    """Check all that may become of a guest: its record, its claims and its rules."""
    for forward in (*guest.forwards, *(forward for forward, _ in guest.conflicts)):
        is_forward(forward)
    for endpoint in guest.endpoints:
        is_address(endpoint.ip)
        assert values.is_dev(endpoint.bridge)
    assert records.load_guest(records.dump_guest(guest), "x") == guest
    rows = {row for row in claims.rows(guest) if not isinstance(row, claims.SubnetRow | claims.GatewayRow)}
    assert rows <= set(in_memory(guest).near(rows, ()))
    for configuration in (Config(), Config(hairpin=False)):
        include = table.whole([guest], configuration, 1)
        for paragraph in include.paragraphs:
            assert_spoken(paragraph)


def is_network(network: Network) -> None:
    values.uuid(network.uuid)
    for lease in network.reservations:
        is_address(lease.ip)
    assert records.load_network(records.dump_network(network), "x") == network


def is_told(error: VirtForwardError) -> None:
    """Check that a person gets to see one line of bounded length for each thing that is wrong."""
    assert error.messages
    shown = list(text.lines(error.messages))
    assert len(shown) <= text.MAX_LINES + 1
    for line in (*shown, text.line(error.hint)):
        assert line.isprintable()
        assert len(line) <= text.MAX_LINE
