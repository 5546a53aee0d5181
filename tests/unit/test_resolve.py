"""Resolving a guest: the sources of addresses in their order, and addresses that are refused."""

from __future__ import annotations

from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface, ip_network

import pytest

from unit.build import BRIDGE, MAC, UUID, AllRead, Answering, NoRoutes, forward
from virt_forward.addresses.attachments import BridgeFacts, HostFacts, find_attachments
from virt_forward.addresses.leases import Neighbours
from virt_forward.addresses.resolve import locate, resolve
from virt_forward.config import Config
from virt_forward.errors import VirtForwardError
from virt_forward.host import collect
from virt_forward.model import (
    Address,
    Declaration,
    Domain,
    Endpoint,
    Guest,
    HostAddress,
    Network,
    Nic,
    PortForward,
    Range,
    Reservation,
)

MAC2 = "52:54:00:00:00:02"
HOST = (ip_interface("198.51.100.1/24"), ip_interface("2001:db8:10::1/64"), ip_interface("fe80::1/64"))
WEB = (PortForward("tcp", (Range(80, 80, 80),)),)
ON_BRIDGE = (Nic(MAC, "bridge", BRIDGE),)
ON_NETWORK = (Nic(MAC, "network", "default"),)


def lease(ip: str, mac: str | None = MAC, name: str | None = None) -> Reservation:
    return Reservation(ip_address(ip), mac, name)


def leased(*ips: str, mac: str = MAC) -> tuple[Reservation, ...]:
    return tuple(lease(ip, mac) for ip in ips)


def host(ip: str, mac: str | None = None) -> HostAddress:
    return HostAddress(ip_address(ip), mac)


def facts(
    *networks: Network, own: frozenset[Address] = frozenset(), bridges: dict[str, BridgeFacts] | None = None
) -> HostFacts:
    known = bridges if bridges is not None else {BRIDGE: BridgeFacts(HOST)}
    return HostFacts(networks, AllRead(known), own, answers=Answering(), routes=NoRoutes())


def made(
    declaration: Declaration,
    known: HostFacts,
    nics: tuple[Nic, ...] = ON_BRIDGE,
    config: Config | None = None,
    before: Guest | None = None,
) -> Guest:
    domain = Domain("web", UUID, nics, declaration)
    endpoints = before.endpoints if before else ()
    return resolve(domain, known, config or Config(), "running", lambda _: [], known=endpoints)


def ips(guest: Guest) -> list[str]:
    return [str(endpoint.ip) for endpoint in guest.endpoints]


def network(*reservations: Reservation) -> Network:
    return Network("default", UUID, BRIDGE, "nat", (ip_network("198.51.100.0/24"),), reservations)


def test_resolve_fills_all_fields_of_guest() -> None:
    declaration = Declaration(WEB, (host("198.51.100.9"),), isolate=True)
    assert made(declaration, facts()) == Guest(
        UUID,
        "web",
        "running",
        True,
        (forward(80),),
        (),
        ON_BRIDGE,
        (host("198.51.100.9"),),
        (Endpoint(ip_address("198.51.100.9"), BRIDGE, MAC),),
        ((ip_network("198.51.100.0/24"), BRIDGE), (ip_network("2001:db8:10::/64"), BRIDGE)),
        (ip_address("198.51.100.1"), ip_address("2001:db8:10::1")),
    )


# Every source knows another address; each time the most trusted one that is left is taken.
SOURCES = [
    "198.51.100.10",  # <host> in the metadata
    "198.51.100.11",  # the libvirt network's <dhcp><host> by MAC
    "198.51.100.12",  # and by name
    "198.51.100.13",  # networkd's static lease
    "198.51.100.14",  # a lease given out
    "198.51.100.15",  # a neighbour confirmed a moment ago
    "198.51.100.16",  # and one confirmed once
]


@pytest.mark.parametrize("first", range(len(SOURCES) + 1))
def test_sources_are_used_in_order_of_trust(first: int) -> None:
    def have(number: int) -> list[str]:
        return [SOURCES[number]] if number >= first else []

    known = facts(
        network(
            *(lease(ip, None, "web") for ip in have(2)),
            *(lease(ip) for ip in have(1)),
            lease("198.51.100.99", MAC2),
        ),
        bridges={
            BRIDGE: BridgeFacts(
                HOST,
                tuple(lease(ip) for ip in have(3)),
                tuple(lease(ip) for ip in have(4)),
                Neighbours(tuple(map(lease, have(5))), tuple(map(lease, have(6)))),
            )
        },
    )
    declaration = Declaration(WEB, tuple(host(ip) for ip in have(0)))
    assert ips(made(declaration, known, ON_NETWORK)) == SOURCES[first : first + 1]


def test_families_are_resolved_independently() -> None:
    known = facts(
        bridges={
            BRIDGE: BridgeFacts(HOST, (lease("198.51.100.13"),), leased("198.51.100.14", "2001:db8:10::14"))
        }
    )
    assert ips(made(Declaration(WEB), known)) == ["198.51.100.13", "2001:db8:10::14"]
    assert ips(made(Declaration(WEB, (host("2001:db8:10::9"),)), known)) == [
        "198.51.100.13",
        "2001:db8:10::9",
    ]


@pytest.mark.parametrize(
    "ip",
    [
        "fe80::5054",
        "203.0.113.9",
        "198.51.100.0",
        "198.51.100.255",
        "198.51.100.1",
        "2001:db8:99::1",
        "ff02::1",
    ],
)
def test_implausible_lease_is_ignored(ip: str) -> None:
    known = facts(
        own=frozenset(address.ip for address in HOST),
        bridges={BRIDGE: BridgeFacts(HOST, (), leased(ip, "198.51.100.14", "2001:db8:10::14"))},
    )
    assert ips(made(Declaration(WEB), known)) == ["198.51.100.14", "2001:db8:10::14"]


def test_unknown_address_is_no_error() -> None:
    waiting = made(Declaration(WEB), facts())
    assert waiting.endpoints == ()
    assert waiting.forwards == (forward(80),)


def test_network_without_bridge_is_no_error() -> None:
    assert made(Declaration(WEB), facts(), ON_NETWORK).endpoints == ()


def test_locate_follows_changed_facts() -> None:
    guest = made(Declaration(WEB), facts())
    known = facts(bridges={BRIDGE: BridgeFacts(HOST, (), leased("198.51.100.14"))})
    assert ips(locate(guest, known)) == ["198.51.100.14"]
    # and not given up because the lease has gone
    assert ips(locate(locate(guest, known), facts())) == ["198.51.100.14"]


def test_each_nic_has_its_own_address() -> None:
    nics = (Nic(MAC, "bridge", BRIDGE), Nic(MAC2, "bridge", "br1"))
    known = facts(
        bridges={
            BRIDGE: BridgeFacts(HOST),
            "br1": BridgeFacts((ip_interface("192.0.2.1/24"),), (), leased("192.0.2.7", mac=MAC2)),
        }
    )
    assert made(Declaration(WEB, (host("198.51.100.9"),)), known, nics).endpoints == (
        Endpoint(ip_address("198.51.100.9"), BRIDGE, MAC),
        Endpoint(ip_address("192.0.2.7"), "br1", MAC2, "leased"),
    )
    # an address without mac belongs to the NIC on whose network it is
    assert made(Declaration(WEB, (host("192.0.2.9"),)), known, nics).endpoints == (
        Endpoint(ip_address("192.0.2.9"), "br1", MAC2),
    )


def test_address_is_assigned_to_one_nic_only() -> None:
    nics = (Nic(MAC, "bridge", BRIDGE), Nic(MAC2, "bridge", BRIDGE))
    assert made(Declaration(WEB, (host("198.51.100.9"),)), facts(), nics).endpoints == (
        Endpoint(ip_address("198.51.100.9"), BRIDGE, MAC),
    )


def test_forward_with_mac_leads_to_that_nic() -> None:
    nics = (Nic(MAC, "bridge", BRIDGE), Nic(MAC2, "bridge", BRIDGE))
    hosts = (host("198.51.100.9", MAC), host("198.51.100.10", MAC2))
    item = PortForward("tcp", (Range(80, 80, 80),), mac=MAC2)
    guest = made(Declaration((item,), hosts), facts(), nics)
    assert [str(endpoint.ip) for endpoint in guest.endpoints_for(guest.forwards[0])] == ["198.51.100.10"]


@pytest.mark.parametrize(
    ("ip", "said"),
    [
        ("203.0.113.9", "is not on the guest's network; the host has 198.51.100.0/24 on virbr0"),
        ("198.51.100.0", "is not on the guest's network"),
        ("198.51.100.255", "is not on the guest's network"),
        ("2001:db8:11::9", "is not on the guest's network"),
        ("198.51.100.1", "is an address of the host itself; give the guest's"),
        ("192.0.2.1", "is an address of the host itself; give the guest's"),
    ],
)
def test_declared_address_outside_subnets_is_refused(ip: str, said: str) -> None:
    with pytest.raises(VirtForwardError) as caught:
        made(Declaration(WEB, (host(ip),)), facts(own=frozenset({ip_address("192.0.2.1")})))
    (message,) = caught.value.messages
    assert message.startswith(f'guest "web": <host ip="{ip}"> {said}')


def test_any_declared_address_is_accepted_without_subnet() -> None:
    pure = facts(bridges={})
    assert ips(made(Declaration(WEB, (host("203.0.113.9"),)), pure)) == ["203.0.113.9"]
    v4_only = facts(bridges={BRIDGE: BridgeFacts(HOST[:1])})
    assert ips(made(Declaration(WEB, (host("2001:db8:77::9"),)), v4_only)) == ["2001:db8:77::9"]


def beside(**interfaces: str) -> HostFacts:
    """Return facts of a host with other interfaces beside a bridge with HOST, and one without addresses."""
    known: dict[str, tuple[IPv4Interface | IPv6Interface, ...]] = {BRIDGE: HOST}
    known |= {name: (ip_interface(address),) for name, address in interfaces.items()}
    bridges = {BRIDGE: BridgeFacts(HOST), "br1": BridgeFacts()}
    return facts(bridges=bridges)._replace(subnets=collect.subnets(known))


@pytest.mark.parametrize(
    ("ip", "bridge", "place"),
    [
        ("198.51.100.77", "br1", f"198.51.100.0/24 on {BRIDGE}"),
        ("2001:db8:10::9", "br1", f"2001:db8:10::/64 on {BRIDGE}"),
        ("192.0.2.9", "br1", "192.0.2.0/24 on enp1s0"),
        ("198.51.100.9", BRIDGE, "198.51.100.8/29 on br2"),
    ],
)
def test_declared_address_in_subnet_of_another_interface_is_refused(ip: str, bridge: str, place: str) -> None:
    """The host sends to another guest, or to a machine on the LAN, what it forwards to that address."""
    known = beside(enp1s0="192.0.2.1/24", br2="198.51.100.14/29")
    with pytest.raises(VirtForwardError) as caught:
        made(Declaration(WEB, (host(ip),)), known, (Nic(MAC, "bridge", bridge),))
    assert caught.value.messages == (
        f'guest "web": <host ip="{ip}"> is in {place}, but the guest is on {bridge}; '
        "give the address that it has there",
    )


@pytest.mark.parametrize(("device", "accepted"), [("br1", True), ("br2", False), (None, True)])
def test_declared_address_that_is_routed_to_another_interface_is_refused(
    device: str | None, accepted: bool
) -> None:
    """On a bridge without a subnet; a route to it may still be added where there is none yet."""
    ip = ip_address("203.0.113.9")
    to = (ip_network("203.0.113.0/24"), device) if device else None
    known = beside()._replace(routes={ip: to})
    nics = (Nic(MAC, "bridge", "br1"),)
    if accepted:
        assert ips(made(Declaration(WEB, (host(str(ip)),)), known, nics)) == [str(ip)]
    else:
        with pytest.raises(VirtForwardError, match=r"is in 203.0.113.0/24 on br2, but the guest is on br1;"):
            made(Declaration(WEB, (host(str(ip)),)), known, nics)


@pytest.mark.parametrize("other", ["198.51.100.250/24", "198.51.100.250/16", "192.0.2.1/24"])
def test_declared_address_stays_where_no_longer_prefix_is_elsewhere(other: str) -> None:
    assert ips(made(Declaration(WEB, (host("198.51.100.9"),)), beside(wlan0=other))) == ["198.51.100.9"]


def test_address_in_subnet_of_another_interface_is_neither_reserved_nor_learned() -> None:
    bridge = BridgeFacts(HOST, (lease("198.51.100.9"),), (lease("198.51.100.10"),))
    of = Guest(UUID, "web", "running", nics=ON_BRIDGE, hosts=(host("198.51.100.11"),))
    known = facts(bridges={BRIDGE: bridge})
    assert ips(locate(of, known)) == ["198.51.100.11"]
    nested = known._replace(subnets=beside(br2="198.51.100.14/29").subnets)
    assert ips(locate(of, nested)) == []


@pytest.mark.parametrize(
    ("own", "guest_ip"),
    [
        ("198.51.100.8/31", "198.51.100.9"),
        ("198.51.100.9/31", "198.51.100.8"),
        ("2001:db8:77::/127", "2001:db8:77::1"),
        ("2001:db8:77::1/127", "2001:db8:77::"),
    ],
)
def test_smallest_subnet_has_no_network_and_no_broadcast_address(own: str, guest_ip: str) -> None:
    """RFC 3021 and RFC 6164."""
    known = facts(bridges={BRIDGE: BridgeFacts((ip_interface(own),))})
    assert ips(made(Declaration(WEB, (host(guest_ip),)), known)) == [guest_ip]


@pytest.mark.parametrize(
    ("own", "guest_ip"),
    [
        ("198.51.100.9/30", "198.51.100.8"),
        ("198.51.100.9/30", "198.51.100.11"),
        ("2001:db8:77::1/126", "2001:db8:77::"),
        ("198.51.100.9/32", "198.51.100.8"),
    ],
)
def test_network_and_broadcast_address_of_larger_subnets_are_refused(own: str, guest_ip: str) -> None:
    known = facts(bridges={BRIDGE: BridgeFacts((ip_interface(own),))})
    with pytest.raises(VirtForwardError, match="is not on the guest's network"):
        made(Declaration(WEB, (host(guest_ip),)), known)


def test_last_address_of_ipv6_subnet_is_usable() -> None:
    """IPv6 has no broadcast address (RFC 4291, section 2)."""
    known = facts(bridges={BRIDGE: BridgeFacts((ip_interface("2001:db8:77::1/126"),))})
    assert ips(made(Declaration(WEB, (host("2001:db8:77::3"),)), known)) == ["2001:db8:77::3"]


@pytest.mark.parametrize(
    ("nics", "said"),
    [
        ((Nic(MAC, "user"),), "libvirt's own <portForward> with <backend type='passt'/> serves it"),
        ((Nic(MAC, "direct"),), "it is on the LAN already"),
        ((), "it has no NIC on a bridge or libvirt network"),
        ((Nic(MAC, "hostdev"),), "it has no NIC on a bridge or libvirt network"),
        (
            (Nic(MAC, "bridge", "no such name!"),),
            'the name of its bridge, "no such name!", is not supported; rename it',
        ),
    ],
)
def test_guest_without_usable_nic_is_refused_with_remedy(nics: tuple[Nic, ...], said: str) -> None:
    with pytest.raises(VirtForwardError, match=said):
        made(Declaration(WEB), facts(), nics)


@pytest.mark.parametrize(
    ("network", "served"),
    [
        (Network("lan", UUID, "", "bridge"), False),
        (Network("lan", UUID, "", "passthrough"), False),
        (Network("lan", UUID, "", "hostdev"), False),
        # One that is not active has no bridge yet; one that is not known may be anything.
        (Network("lan", UUID, "", "nat"), True),
        (Network("other", UUID, "", "bridge"), True),
    ],
)
def test_network_on_the_lan_is_refused(network: Network, served: bool) -> None:
    known, nics = facts()._replace(networks=(network,)), (Nic(MAC, "network", "lan"),)
    if served:
        assert made(Declaration(WEB), known, nics).endpoints == ()
        return
    with pytest.raises(VirtForwardError, match='its network "lan" puts it on the LAN directly'):
        made(Declaration(WEB), known, nics)


def test_one_usable_nic_is_enough() -> None:
    nics = (Nic(MAC2, "user"), *ON_BRIDGE)
    assert ips(made(Declaration(WEB, (host("198.51.100.9"),)), facts(), nics)) == ["198.51.100.9"]


@pytest.mark.parametrize(
    ("item", "config", "said"),
    [
        (
            PortForward("tcp", (Range(80, 80, 80),), dev="eth9"),
            Config(uplinks=("enp1s0", "wlan0")),
            'dev="eth9" is not among the uplinks in /etc/virt-forward/config.toml, which are enp1s0, wlan0',
        ),
        (
            PortForward("tcp", (Range(80, 80, 80),), ip_address("127.0.0.1")),
            Config(),
            'address="127.0.0.1" needs localhost = true in section [forward] of '
            "/etc/virt-forward/config.toml",
        ),
    ],
)
def test_forward_that_configuration_forbids_is_refused(item: PortForward, config: Config, said: str) -> None:
    with pytest.raises(VirtForwardError) as caught:
        made(Declaration((item,)), facts(), config=config)
    assert caught.value.messages == (f'guest "web": {said}',)
    open_to_all = Config(localhost=True)
    assert made(Declaration((item,)), facts(), config=open_to_all).forwards


def test_all_errors_are_reported() -> None:
    item = PortForward("tcp", (Range(80, 80, 80),), ip_address("127.0.0.1"))
    with pytest.raises(VirtForwardError) as caught:
        made(Declaration((item,), (host("203.0.113.9"), host("203.0.113.10", MAC))), facts())
    assert len(caught.value.messages) == 3


def test_bridge_with_uplink_has_subnets_but_no_gateways() -> None:
    """A client in its subnet is a sibling of the guest, and the host's address there is one to listen on."""
    known = facts(bridges={BRIDGE: BridgeFacts(HOST, uplink=True)})
    guest = made(Declaration(WEB, (host("198.51.100.9"),)), known)
    assert guest.lans == ((ip_network("198.51.100.0/24"), BRIDGE), (ip_network("2001:db8:10::/64"), BRIDGE))
    assert guest.gateways == ()
    assert ips(guest) == ["198.51.100.9"]


def test_attachments_are_nics_on_host_bridges() -> None:
    nics = (*ON_BRIDGE, Nic(MAC2, "network", "default"), Nic("", "user"), Nic("", "network", "other"))
    known = facts(Network("default", UUID, "virbr9", "nat"))
    assert [(attachment.nic.mac, attachment.bridge) for attachment in find_attachments(nics, known)] == [
        (MAC, BRIDGE),
        (MAC2, "virbr9"),
    ]


def seen(confirmed: list[str], others: list[str]) -> HostFacts:
    """Return facts of a host that has the guest in its neighbour table only."""
    table = Neighbours(tuple(map(lease, confirmed)), tuple(map(lease, others)))
    return facts(bridges={BRIDGE: BridgeFacts(HOST, neighbours=table)})


OLD, NEW = "198.51.100.30", "198.51.100.31"
OLD6, NEW6 = "2001:db8:10::30", "2001:db8:10::31"


@pytest.mark.parametrize(
    ("confirmed", "others", "expected"),
    [
        ([], [], [OLD, OLD6]),  # the entry of a guest that is silent goes away
        ([NEW], [OLD], [OLD, OLD6]),  # a second address: the known one stays while it is listed at all
        ([NEW], [], [NEW, OLD6]),  # a guest that has moved
        ([], [NEW], [OLD, OLD6]),
        ([OLD6], [], [OLD, OLD6]),
        ([NEW6], [OLD6], [OLD, OLD6]),  # with IPv6, a guest has several at once
        ([NEW6], [], [OLD, NEW6]),
        ([NEW, NEW6], [], [NEW, NEW6]),
    ],
)
def test_known_neighbour_stays_or_is_replaced(
    confirmed: list[str], others: list[str], expected: list[str]
) -> None:
    before = made(Declaration(WEB), seen([OLD, OLD6], []))
    assert ips(before) == [OLD, OLD6]
    assert ips(made(Declaration(WEB), seen(confirmed, others), before=before)) == expected


def test_known_endpoint_on_another_bridge_is_dropped() -> None:
    before = made(Declaration(WEB), seen([OLD], []))
    moved = (Nic(MAC, "bridge", "br1"),)
    known = facts(bridges={"br1": BridgeFacts(HOST)})
    assert made(Declaration(WEB), known, moved, before=before).endpoints == ()


def test_bridge_facts_are_read_only_if_needed() -> None:
    reserved = (lease("198.51.100.13"), lease("2001:db8:10::13"))
    known = facts(bridges={BRIDGE: BridgeFacts(HOST, reserved, None, None)})
    assert ips(made(Declaration(WEB), known)) == ["198.51.100.13", "2001:db8:10::13"]
