"""What the host has against a forward, and what a forward leaves to the host."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from ipaddress import ip_address, ip_interface

import pytest

from unit.build import MAC, forward
from unit.counted import Looks
from virt_forward import ports
from virt_forward.addresses.attachments import Attachment, Bridge
from virt_forward.claims import index as claims
from virt_forward.claims.sockets import Details, Listener
from virt_forward.config import Config, ReservedPort
from virt_forward.host import hostports
from virt_forward.host.hostports import Listening
from virt_forward.model import (
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
    details: Callable[[], Details] = lambda: Details(autobound=frozenset({CLIENT})),
) -> Listening:
    return Listening(
        lambda: ports.by_port(found), details, lambda: {SERVER: "mosh-server"}, lambda: INTERFACES
    )


def attachment(*addresses: str, reserved: Iterable[str] = (), uplink: bool = False) -> Attachment:
    leases = tuple(Reservation(ip_address(text), MAC) for text in reserved)
    network = Network("default", "uuid", "virbr0", reservations=leases)
    bridge = Bridge(tuple(map(ip_interface, addresses)), uplink=uplink)
    return Attachment(Nic(MAC, "network", "default"), "virbr0", network, bridge)


def veto(listening: Listening | None = None) -> claims.Veto:
    return hostports.port_vetoes(Config(), [], listening or host())[0]


def opened(item: PortForward, *held: Forward, config: Config | None = None) -> list[tuple[int, int]]:
    """Return which ports a ``<portForward>`` takes."""
    _, spared = hostports.port_vetoes(config or Config(), [], host(), held=held)
    return [(found.start, found.end) for found in ports.expand(Declaration((item,)), spared)]


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
def test_a_clients_socket_refuses_nothing_and_a_servers_in_the_same_range_does(
    wanted: Forward, taken: bool
) -> None:
    assert bool(veto()(wanted)) == taken


def test_a_refusal_names_the_program_and_its_lowest_port() -> None:
    said = veto()(forward(40000, 60000, proto="udp"))
    assert said == "host port udp/40005 is taken by mosh-server on the host, which listens on 0.0.0.0"
    assert veto()(forward(51820, proto="udp")) == (
        "host port udp/51820 is taken by the host, which listens on 0.0.0.0"
    )


def test_a_port_of_the_kernels_choice_on_which_tcp_listens_is_taken() -> None:
    listening = host([Listener("tcp", ip_address("0.0.0.0"), 40000, CLIENT)])
    assert veto(listening)(forward(40000))


def test_no_word_of_the_kernel_makes_no_client_of_a_socket() -> None:
    assert veto(host(details=Details))(forward(40000, proto="udp"))


def test_reserved_ports_are_found_in_a_range() -> None:
    assert veto()(forward(20, 30)) == "host port tcp/22 is reserved by the configuration ([policy] reserved)"
    assert veto()(forward(22, proto="udp")) is None


def test_a_forward_of_every_port_leaves_out_listeners_clients_and_reserved_ports() -> None:
    every = PortForward("udp", (), ADDRESS)
    config = Config(reserved=(ReservedPort("udp", 500), ReservedPort("tcp", 22)))
    holes = [(1, 499), (501, 39999), (40001, 40004), (40006, 51819), (51821, 65535)]
    assert opened(every, config=config) == holes


def test_a_range_leaves_out_a_clients_port_alone() -> None:
    item = PortForward("udp", (Range(40000, 40010, 40000), Range(39000, 39001, 39000)))
    assert opened(item) == [(40001, 40010), (39000, 39001)]


def test_a_clients_port_that_is_named_by_itself_is_opened() -> None:
    assert opened(PortForward("udp", (Range(40000, 40000, 40000),))) == [(40000, 40000)]


def test_what_a_guest_has_already_is_not_left_to_a_client() -> None:
    item = PortForward("udp", (Range(40000, 40010, 50000),))
    assert opened(item, forward(40000, 40010, 50000, proto="udp")) == [(40000, 40010)]
    # Elsewhere it has the port, here it does not.
    assert opened(item, forward(40000, 40010, proto="udp", dev="enp1s0")) == [(40001, 40010)]


def test_the_kernel_is_asked_for_details_only_where_they_matter() -> None:
    def fail() -> Details:
        raise AssertionError("asked for nothing")

    listening = host([udp(5353, SERVER), Listener("tcp", ip_address("0.0.0.0"), 80)], fail)
    verdict, spared = hostports.port_vetoes(Config(), [], listening)
    assert verdict(forward(81)) is None
    assert verdict(forward(80))
    assert verdict(forward(53, proto="udp")) is None
    assert spared(PortForward("udp", (Range(50, 60, 50),))) == []


@pytest.mark.parametrize(
    ("address", "dev", "taken"),
    [
        ("192.0.2.10", "enp1s0", True),
        ("198.51.100.10", "enp1s0", False),
        ("2001:db8::10", "wlan0", False),
        ("2001:db8::10", "enp1s0", True),
        # no link's: floating, anycast, or not an address of the host at all
        ("198.51.100.77", "enp1s0", True),
        ("192.0.2.99", "enp1s0", True),
        ("203.0.113.50", "enp1s0", True),
        ("0.0.0.0", "enp1s0", True),
        ("198.51.100.10", None, True),
    ],
)
def test_a_listener_on_another_links_address_is_no_conflict_with_dev(
    address: str, dev: str | None, taken: bool
) -> None:
    verdict = veto(host([Listener("tcp", ip_address(address), 80)]))
    assert bool(verdict(forward(80, dev=dev))) == taken


@pytest.mark.parametrize(
    ("attached", "hosts", "families"),
    [
        ([attachment("10.0.0.1/24")], (), {4}),
        ([attachment("2001:db8:9::1/64")], (), {6}),
        ([attachment("10.0.0.1/24", "2001:db8:9::1/64")], (), {4, 6}),
        # the host's fe80:: gives a guest no address of which a forward could be
        ([attachment("10.0.0.1/24", "fe80::1/64")], (), {4}),
        ([attachment("10.0.0.1/24")], ["2001:db8:9::5"], {4, 6}),
        ([attachment("10.0.0.1/24", reserved=["2001:db8:9::5"])], (), {4, 6}),
        ([attachment("10.0.0.1/24"), attachment("2001:db8:9::1/64")], (), {4, 6}),
        # not known, or not for good
        ([], (), {4, 6}),
        ([attachment()], ["10.0.0.5"], {4, 6}),
        ([attachment("10.0.0.1/24"), attachment()], (), {4, 6}),
        ([attachment("192.0.2.10/24", uplink=True)], (), {4, 6}),
        ([attachment("10.0.0.1/24")], None, {4, 6}),
    ],
)
def test_a_listener_of_a_family_that_the_guest_never_has_is_no_conflict(
    attached: list[Attachment], hosts: Iterable[str] | None, families: set[int]
) -> None:
    declared = None if hosts is None else [HostAddress(ip_address(text)) for text in hosts]
    found = [Listener("tcp", ip_address("192.0.2.10"), 4), Listener("tcp", ip_address("2001:db8::10"), 6)]
    verdict, _ = hostports.port_vetoes(Config(), attached, host(found), hosts=declared)
    assert {port for port in (4, 6) if verdict(forward(port))} == families


def test_the_cost_is_that_of_the_listeners_once_not_of_listeners_times_ports() -> None:
    looks, number = Looks(), 2000
    anywhere = ip_address("0.0.0.0")
    found = looks.listeners(
        Listener("tcp", anywhere, port, port) for port in range(1000, 1000 + 2 * number, 2)
    )
    by_port = ports.by_port(found)
    listening = host()._replace(sockets=lambda: by_port)
    verdict, spared = hostports.port_vetoes(Config(), [], listening)
    pieces = ports.expand(Declaration((PortForward("tcp", (), ADDRESS),)), spared)
    assert len(pieces) > number
    assert not any(map(verdict, pieces))
    assert looks.number < 20 * number


def test_processes_are_read_once_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(hostports, "names", lambda path: calls.append(path) or [])  # type: ignore[func-returns-value]
    monkeypatch.setattr(hostports, "listeners", lambda: SOCKETS)
    verdict, _ = hostports.port_vetoes(Config(), [], hostports.listening_now()._replace(details=Details))
    assert [bool(verdict(forward(port, proto="udp"))) for port in (40000, 40005, 51820)] == [True] * 3
    assert calls == ["/proc"]


def test_sockets_are_not_read_where_no_port_can_be_left_to_the_host() -> None:
    """Reading all of /proc/net takes longer than all else that an event of a guest with such ports does."""

    def unread() -> ports.ByPort[Listener]:
        raise AssertionError("the sockets were read")

    listening = host()._replace(sockets=unread)
    single = PortForward("udp", (Range(40000, 40000, 80), Range(40001, 40001, 81)))
    wide = PortForward("udp", (Range(40000, 40010, 40000),))
    held = forward(40000, 40010, proto="udp")
    _, excluded = hostports.port_vetoes(Config(), [], listening, held=[held])
    assert [excluded(item) for item in (single, wide)] == [[], []]
