"""The vetoes of the host against a forward, and the ports that a forward leaves to the host."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address, ip_interface

import pytest

from unit.build import MAC, forward
from unit.counted import Looks
from virt_forward import ports
from virt_forward.addresses.attachments import Attachment, BridgeFacts, HostFacts
from virt_forward.addresses.portchecks import PortChecks
from virt_forward.claims import index as claims
from virt_forward.claims.sockets import Details, Listener, SocketFacts
from virt_forward.config import Config, ReservedPort
from virt_forward.errors import UnreadError
from virt_forward.host import collect, hostports
from virt_forward.host.collect import Reader
from virt_forward.model import (
    MAX_PORT,
    Declaration,
    Forward,
    HostAddress,
    Network,
    Nic,
    PortForward,
    Range,
    Reservation,
)

CLIENT, SERVER, WIREGUARD = 31001, 31002, 31003
ADDRESS = ip_address("203.0.113.7")


def udp(port: int, inode: int, address: str = "0.0.0.0") -> Listener:
    return Listener("udp", ip_address(address), port, inode)


SOCKETS = (udp(40000, CLIENT), udp(40005, SERVER), udp(51820, WIREGUARD))
INTERFACES = {
    "lo": [ip_interface("127.0.0.1/8"), ip_interface("192.0.2.99/24")],
    "enp1s0": [ip_interface("192.0.2.10/24"), ip_interface("2001:db8::10/64")],
    "wlan0": [ip_interface("198.51.100.10/24"), ip_interface("198.51.100.77/32")],
}


def host(
    found: Iterable[Listener] = SOCKETS,
    details: Details | None = Details(autobound=frozenset({CLIENT})),  # noqa: B008
) -> HostFacts:
    sockets = SocketFacts(ports.by_port(found), details, {SERVER: "mosh-server"})
    return HostFacts(sockets=sockets, interfaces=INTERFACES)


def attachment(*addresses: str, reserved: Iterable[str] = (), uplink: bool = False) -> Attachment:
    leases = tuple(Reservation(ip_address(text), MAC) for text in reserved)
    network = Network("default", "uuid", "virbr0", reservations=leases)
    bridge = BridgeFacts(tuple(map(ip_interface, addresses)), uplink=uplink)
    return Attachment(Nic(MAC, "network", "default"), "virbr0", network, bridge)


def veto(facts: HostFacts | None = None) -> claims.Veto:
    return PortChecks(Config(), [], facts or host()).veto


def opened(item: PortForward, *held: Forward, config: Config | None = None) -> list[tuple[int, int]]:
    """Return the spans of ports that a ``<portForward>`` takes."""
    excluded = PortChecks(config or Config(), [], host(), held=held).excluded
    return [(found.start, found.end) for found in ports.expand(Declaration((item,)), excluded)]


@pytest.mark.parametrize(
    ("wanted", "taken"),
    [
        (forward(40000, proto="udp"), False),
        (forward(40000, 40004, proto="udp"), False),
        (forward(40005, proto="udp"), True),
        (forward(40000, 40010, proto="udp"), True),
        (forward(51820, proto="udp"), True),
    ],
)
def test_veto_counts_server_sockets_but_not_client_sockets(wanted: Forward, taken: bool) -> None:
    assert bool(veto()(wanted)) == taken


def test_veto_names_program_and_lowest_port() -> None:
    reason = veto()(forward(40000, 60000, proto="udp"))
    assert reason == "host port udp/40005 is taken by mosh-server on the host, which listens on 0.0.0.0"
    assert veto()(forward(51820, proto="udp")) == (
        "host port udp/51820 is taken by the host, which listens on 0.0.0.0"
    )


def test_tcp_listener_on_autobound_port_is_a_veto() -> None:
    facts = host([Listener("tcp", ip_address("0.0.0.0"), 40000, CLIENT)])
    assert veto(facts)(forward(40000))


def test_socket_without_details_counts_as_server() -> None:
    assert veto(host(details=Details()))(forward(40000, proto="udp"))


def test_reserved_port_in_a_range_is_a_veto() -> None:
    assert veto()(forward(20, 30)) == "host port tcp/22 is reserved by the configuration ([policy] reserved)"
    assert veto()(forward(22, proto="udp")) is None


def test_forward_of_all_ports_excludes_listeners_clients_and_reserved_ports() -> None:
    every = PortForward("udp", (), ADDRESS)
    config = Config(reserved=(ReservedPort("udp", 500), ReservedPort("tcp", 22)))
    holes = [(1, 499), (501, 39999), (40001, 40004), (40006, 51819), (51821, 65535)]
    assert opened(every, config=config) == holes


def test_range_excludes_client_port_only() -> None:
    item = PortForward("udp", (Range(40000, 40010, 40000), Range(39000, 39001, 39000)))
    assert opened(item) == [(40001, 40010), (39000, 39001)]


def test_single_port_of_client_is_opened() -> None:
    assert opened(PortForward("udp", (Range(40000, 40000, 40000),))) == [(40000, 40000)]


def test_held_port_is_not_excluded_for_a_client() -> None:
    item = PortForward("udp", (Range(40000, 40010, 50000),))
    assert opened(item, forward(40000, 40010, 50000, proto="udp")) == [(40000, 40010)]
    # It holds the port on another device only.
    assert opened(item, forward(40000, 40010, proto="udp", dev="enp1s0")) == [(40001, 40010)]


def test_held_port_of_a_whole_address_is_not_excluded() -> None:
    """Port 22 was excluded at the start; the host listens on 80, or reserves it, since then."""
    item = PortForward("tcp", (), ADDRESS)
    before = [forward(1, 21, address=str(ADDRESS)), forward(23, MAX_PORT, address=str(ADDRESS))]
    facts = host([Listener("tcp", ip_address("0.0.0.0"), port) for port in (22, 80)])
    config = Config(reserved=(ReservedPort("tcp", 81),))
    for held, excluded in (([], [22, 80, 81]), (before, [22])):
        found = PortChecks(config, [], facts, held=held).excluded(item)
        assert [span.start for span in found] == excluded


def test_details_are_read_only_if_needed() -> None:
    checks = PortChecks(
        Config(), [], host([udp(5353, SERVER), Listener("tcp", ip_address("0.0.0.0"), 80)], None)
    )
    assert checks.veto(forward(81)) is None
    assert checks.veto(forward(80))
    assert checks.veto(forward(53, proto="udp")) is None
    assert checks.excluded(PortForward("udp", (Range(50, 60, 50),))) == []
    with pytest.raises(UnreadError, match="details"):
        checks.veto(forward(5353, proto="udp"))


@pytest.mark.parametrize(
    ("address", "dev", "taken"),
    [
        ("192.0.2.10", "enp1s0", True),
        ("198.51.100.10", "enp1s0", False),
        ("2001:db8::10", "wlan0", False),
        ("2001:db8::10", "enp1s0", True),
        # of no link: floating, anycast, or not an address of the host
        ("198.51.100.77", "enp1s0", True),
        ("192.0.2.99", "enp1s0", True),
        ("203.0.113.50", "enp1s0", True),
        ("0.0.0.0", "enp1s0", True),
        ("198.51.100.10", None, True),
    ],
)
def test_listener_on_address_of_another_link_is_no_veto_with_dev(
    address: str, dev: str | None, taken: bool
) -> None:
    check = veto(host([Listener("tcp", ip_address(address), 80)]))
    assert bool(check(forward(80, dev=dev))) == taken


@pytest.mark.parametrize(
    ("attachments", "hosts", "families"),
    [
        ([attachment("10.0.0.1/24")], (), {4}),
        ([attachment("2001:db8:9::1/64")], (), {6}),
        ([attachment("10.0.0.1/24", "2001:db8:9::1/64")], (), {4, 6}),
        # a link-local address of the host gives the guest no address for forwards
        ([attachment("10.0.0.1/24", "fe80::1/64")], (), {4}),
        ([attachment("10.0.0.1/24")], ["2001:db8:9::5"], {4, 6}),
        ([attachment("10.0.0.1/24", reserved=["2001:db8:9::5"])], (), {4, 6}),
        ([attachment("10.0.0.1/24"), attachment("2001:db8:9::1/64")], (), {4, 6}),
        # not known, or may change
        ([], (), {4, 6}),
        ([attachment()], ["10.0.0.5"], {4, 6}),
        ([attachment("10.0.0.1/24"), attachment()], (), {4, 6}),
        ([attachment("192.0.2.10/24", uplink=True)], (), {4, 6}),
        ([attachment("10.0.0.1/24")], None, {4, 6}),
    ],
)
def test_listener_of_family_that_guest_cannot_have_is_no_veto(
    attachments: list[Attachment], hosts: Iterable[str] | None, families: set[int]
) -> None:
    declared = None if hosts is None else [HostAddress(ip_address(text)) for text in hosts]
    found = [Listener("tcp", ip_address("192.0.2.10"), 4), Listener("tcp", ip_address("2001:db8::10"), 6)]
    check = PortChecks(Config(), attachments, host(found), hosts=declared).veto
    assert {port for port in (4, 6) if check(forward(port))} == families


def test_cost_is_linear_in_listeners() -> None:
    looks, number = Looks(), 2000
    anywhere = ip_address("0.0.0.0")
    found = looks.listeners(
        Listener("tcp", anywhere, port, port) for port in range(1000, 1000 + 2 * number, 2)
    )
    checks = PortChecks(Config(), [], host(found))
    pieces = ports.expand(Declaration((PortForward("tcp", (), ADDRESS),)), checks.excluded)
    assert len(pieces) > number
    assert not any(map(checks.veto, pieces))
    assert looks.number < 20 * number


def test_processes_are_read_once_per_event(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(hostports, "list_directory", lambda path: calls.append(path) or [])  # type: ignore[func-returns-value]
    monkeypatch.setattr(hostports, "listeners", lambda: SOCKETS)
    monkeypatch.setattr(hostports, "socket_details", Details)
    monkeypatch.setattr(collect, "read_interfaces", dict)
    reader = Reader(Config(), lambda: [])

    def vetoed(facts: HostFacts) -> list[bool]:
        check = PortChecks(Config(), [], facts).veto
        return [bool(check(forward(port, proto="udp"))) for port in (40000, 40005, 51820)]

    assert [reader.complete(vetoed, ()) for _ in range(2)] == [[True] * 3] * 2
    assert calls == ["/proc"]


def test_sockets_are_not_read_where_no_port_can_be_left_to_the_host() -> None:
    """Reading all of /proc/net takes longer than all else that an event of a guest with such ports does."""

    single = PortForward("udp", (Range(40000, 40000, 80), Range(40001, 40001, 81)))
    wide = PortForward("udp", (Range(40000, 40010, 40000),))
    held = forward(40000, 40010, proto="udp")
    excluded = PortChecks(Config(), [], HostFacts(), held=[held]).excluded
    assert [excluded(item) for item in (single, wide)] == [[], []]
