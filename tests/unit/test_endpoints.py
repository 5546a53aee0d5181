"""The addresses of a NIC: ranks of origins, addresses in use elsewhere, and what may be learned."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from unit.build import BRIDGE, MAC, UUID, AllRead, Answering, NoRoutes
from virt_forward.addresses.attachments import BridgeFacts, HostFacts, find_attachments
from virt_forward.addresses.endpoints import doubtful_endpoints, endpoints, is_derived
from virt_forward.addresses.leases import Neighbours
from virt_forward.config import Learn
from virt_forward.errors import Question, UnreadError
from virt_forward.model import (
    Endpoint,
    Guest,
    HostAddress,
    Network,
    Nic,
    Origin,
    Reservation,
    Sighting,
)

MAC2, FOREIGN = "52:54:00:00:00:02", "52:54:00:00:00:99"
HOST = (ip_interface("198.51.100.1/24"), ip_interface("2001:db8:10::1/64"))
OLD, NEW, OLD6, NEW6 = "198.51.100.50", "198.51.100.60", "2001:db8:10::50", "2001:db8:10::60"
# MAC is 52:54:00:a0:8f:2c.
DERIVED6 = "2001:db8:10:0:5054:ff:fea0:8f2c"


def at(ip: str, mac: str = MAC) -> Reservation:
    return Reservation(ip_address(ip), mac)


def seen(ip: str, origin: Origin = "probed", mac: str = MAC) -> Sighting:
    return Sighting(ip_address(ip), mac, origin)


def bridge(
    *, reserved: Iterable[Reservation] = (), leased: Iterable[Reservation] = (),
    confirmed: Iterable[Reservation] = (), stale: Iterable[Reservation] = (), failed: Iterable[str] = (),
    permanent: Iterable[Reservation] = (), sightings: Iterable[Sighting] = (),
) -> BridgeFacts:  # fmt: skip
    table = Neighbours(
        tuple(confirmed), tuple(stale), tuple(ip_address(ip) for ip in failed), tuple(permanent)
    )
    return BridgeFacts(HOST, tuple(reserved), tuple(leased), table, tuple(sightings))


def guest(*known: tuple[str, Origin], hosts: Iterable[HostAddress] = (), nics: Iterable[Nic] = ()) -> Guest:
    endpoints = tuple(Endpoint(ip_address(ip), BRIDGE, MAC, origin) for ip, origin in known)
    return Guest(
        UUID,
        "web",
        nics=tuple(nics) or (Nic(MAC, "bridge", BRIDGE),),
        endpoints=endpoints,
        hosts=tuple(hosts),
    )


def found(
    of: Guest, *networks: Network, learn: Learn = "derived", **bridges: BridgeFacts
) -> list[tuple[str, Origin]]:
    facts = HostFacts(networks, AllRead(bridges), learn=learn, answers=Answering(), routes=NoRoutes())
    return [
        (str(endpoint.ip), endpoint.origin)
        for endpoint in endpoints(of, find_attachments(of.nics, facts), facts)
    ]


def test_source_sets_origin() -> None:
    declared = guest(hosts=(HostAddress(ip_address(OLD)),))
    assert found(declared, virbr0=bridge()) == [(OLD, "declared")]
    assert found(guest(), virbr0=bridge(reserved=[at(OLD)])) == [(OLD, "reserved")]
    assert found(guest(), virbr0=bridge(leased=[at(OLD)])) == [(OLD, "leased")]
    assert found(guest(), virbr0=bridge(sightings=[seen(OLD, "leased")])) == [(OLD, "leased")]
    assert found(guest(), virbr0=bridge(sightings=[seen(OLD)])) == [(OLD, "probed")]
    assert found(guest(), virbr0=bridge(confirmed=[at(OLD)])) == [(OLD, "neighbour")]
    assert found(guest(), virbr0=bridge(stale=[at(OLD)])) == [(OLD, "neighbour")]


HELD_BY_ANOTHER = {
    "reserved": bridge(reserved=[at(OLD, FOREIGN)]),
    "leased": bridge(leased=[at(OLD, FOREIGN)]),
    "just leased": bridge(sightings=[seen(OLD, "leased", FOREIGN)]),
    "confirmed neighbour": bridge(confirmed=[at(OLD, FOREIGN)]),
    "stale neighbour": bridge(stale=[at(OLD, FOREIGN)]),
}


@pytest.mark.parametrize("held", HELD_BY_ANOTHER.values(), ids=HELD_BY_ANOTHER)
@pytest.mark.parametrize("origin", ["leased", "probed", "neighbour"])
def test_known_address_used_by_another_mac_is_dropped(held: BridgeFacts, origin: Origin) -> None:
    assert found(guest((OLD, origin)), virbr0=held) == []


@pytest.mark.parametrize("held", HELD_BY_ANOTHER.values(), ids=HELD_BY_ANOTHER)
def test_address_used_by_another_mac_is_not_learned(held: BridgeFacts) -> None:
    for mine in (bridge(leased=[at(OLD)]), bridge(confirmed=[at(OLD)]), bridge(sightings=[seen(OLD)])):
        table, other = mine.neighbours or Neighbours(), held.neighbours or Neighbours()
        both = BridgeFacts(
            HOST,
            held.reservations,
            (*(mine.leases or ()), *(held.leases or ())),
            Neighbours((*table.confirmed, *other.confirmed), other.others),
            (*mine.sightings, *held.sightings),
        )
        assert found(guest(), virbr0=both) == []


@pytest.mark.parametrize("held", HELD_BY_ANOTHER.values(), ids=HELD_BY_ANOTHER)
def test_configured_address_stays_if_used_by_another_mac(held: BridgeFacts) -> None:
    assert found(guest(hosts=(HostAddress(ip_address(OLD)),)), virbr0=held) == [(OLD, "declared")]
    reserved = held._replace(reservations=(at(OLD),))
    assert found(guest(), virbr0=reserved) == [(OLD, "reserved")]


def test_reservation_with_name_of_guest_but_other_mac_is_ignored() -> None:
    of = Reservation(ip_address(OLD), FOREIGN, "web")
    network = Network("default", UUID, BRIDGE, "nat", (ip_network("198.51.100.0/24"),), (of,))
    on_network = guest(nics=(Nic(MAC, "network", "default"),))
    assert found(on_network, network, virbr0=bridge(leased=[at(OLD)])) == []


@pytest.mark.parametrize(
    ("known", "now", "expected"),
    [
        # a second address in the neighbour table
        ((OLD, "neighbour"), bridge(confirmed=[at(NEW)], stale=[at(OLD)]), (OLD, "neighbour")),
        ((OLD, "probed"), bridge(confirmed=[at(NEW), at(OLD)]), (OLD, "probed")),
        # a second lease for a client that has two identifiers
        ((OLD, "leased"), bridge(leased=[at(NEW), at(OLD)]), (OLD, "leased")),
        ((OLD, "leased"), bridge(sightings=[seen(NEW, "leased")], stale=[at(OLD)]), (OLD, "leased")),
        # no source confirms or contradicts the known one
        ((OLD, "probed"), bridge(), (OLD, "probed")),
        ((OLD, "probed"), bridge(stale=[at(NEW)]), (OLD, "probed")),
        # the server has given the NIC another address
        ((OLD, "leased"), bridge(leased=[at(NEW)], stale=[at(OLD)]), (NEW, "leased")),
        # the known one has failed, and there is another
        ((OLD, "neighbour"), bridge(confirmed=[at(NEW)], failed=[OLD]), (NEW, "neighbour")),
        ((OLD, "neighbour"), bridge(stale=[at(NEW)], failed=[OLD]), (NEW, "neighbour")),
        ((OLD, "leased"), bridge(leased=[at(NEW), at(OLD)], failed=[OLD]), (NEW, "leased")),
        ((OLD, "neighbour"), bridge(failed=[OLD]), (OLD, "neighbour")),
        ((OLD, "neighbour"), bridge(confirmed=[at(NEW)]), (NEW, "neighbour")),
        # a better source of the known one raises its origin
        ((OLD, "neighbour"), bridge(leased=[at(OLD)]), (OLD, "leased")),
        ((OLD, "neighbour"), bridge(sightings=[seen(OLD)]), (OLD, "probed")),
        ((OLD, "probed"), bridge(confirmed=[at(OLD)]), (OLD, "probed")),
        ((OLD6, "neighbour"), bridge(confirmed=[at(NEW6)], stale=[at(OLD6)]), (OLD6, "neighbour")),
        # <host> was removed: a declared address is not kept
        ((OLD, "declared"), bridge(confirmed=[at(NEW)]), (NEW, "neighbour")),
    ],
)  # fmt: skip
def test_known_address_stays_while_it_is_current(
    known: tuple[str, Origin], now: BridgeFacts, expected: tuple[str, Origin]
) -> None:
    assert found(guest(known), virbr0=now) == [expected]


def doubts(of: Guest, now: BridgeFacts) -> list[str]:
    facts = HostFacts((), {BRIDGE: now}, answers=Answering())
    return [str(endpoint.ip) for endpoint in doubtful_endpoints(of, find_attachments(of.nics, facts), facts)]


def test_second_address_makes_known_endpoint_doubtful_unless_just_confirmed() -> None:
    known = guest((OLD, "neighbour"))
    assert doubts(known, bridge(confirmed=[at(NEW)], stale=[at(OLD)])) == [OLD]
    assert doubts(known, bridge(stale=[at(NEW), at(OLD)])) == [OLD]
    assert doubts(known, bridge(leased=[at(NEW)])) == [OLD]
    assert doubts(known, bridge(confirmed=[at(NEW), at(OLD)])) == []
    assert doubts(known, bridge(stale=[at(OLD)])) == []
    assert doubts(known, bridge(confirmed=[at(NEW, FOREIGN)], stale=[at(OLD)])) == []
    assert doubts(guest((OLD, "declared")), bridge(confirmed=[at(NEW)])) == []


@pytest.mark.parametrize("learn", ["derived", "any", "never"])
@pytest.mark.parametrize("ip", [OLD6, DERIVED6])
@pytest.mark.parametrize("firm", [True, False])
def test_other_family_is_learned_only_if_derived_from_mac(learn: Learn, ip: str, firm: bool) -> None:
    reserved = [at(OLD)] if firm else []
    expected = learn == "any" or (learn == "derived" and (not firm or ip == DERIVED6))
    for origin, one in (
        ("neighbour", bridge(reserved=reserved, stale=[at(ip)])),
        ("probed", bridge(reserved=reserved, sightings=[seen(ip)])),
    ):
        learned = found(guest(), learn=learn, virbr0=one)[len(reserved) :]
        assert learned == ([(ip, origin)] if expected else [])


@pytest.mark.parametrize("kind", ["confirmed", "stale"])
def test_neighbour_entry_counts_after_verification(kind: str) -> None:
    table = bridge(**{kind: [at(OLD), at(NEW), at("198.51.100.1"), at("203.0.113.9")]})  # type: ignore[arg-type]
    unread = HostFacts((), {BRIDGE: table}, frozenset({ip_address("198.51.100.1")}))

    def first(of: Guest, facts: HostFacts = unread) -> list[str]:
        return [str(endpoint.ip) for endpoint in endpoints(of, find_attachments(of.nics, facts), facts)]

    with pytest.raises(UnreadError) as raised:
        first(guest())
    # Implausible addresses are not verified.
    both = (ip_address(OLD), ip_address(NEW))
    assert raised.value.question == Question("answers", BRIDGE, MAC, both)
    answers = {(BRIDGE, MAC, ip): str(ip) == NEW for ip in both}
    assert first(guest(), unread._replace(answers=answers)) == [NEW]
    # The known one is not verified again.
    assert first(guest((OLD, "neighbour"))) == [OLD]
    assert first(guest(hosts=(HostAddress(ip_address(OLD)),))) == [OLD]


def test_permanent_neighbour_entry_needs_no_verification() -> None:
    facts = HostFacts((), {BRIDGE: bridge(permanent=[at(OLD)])})
    of = guest()
    assert [str(endpoint.ip) for endpoint in endpoints(of, find_attachments(of.nics, facts), facts)] == [OLD]


def test_lease_counts_with_every_learn_setting() -> None:
    firm = guest(hosts=(HostAddress(ip_address(OLD6)),))
    for learn in ("derived", "any", "never"):
        assert found(firm, learn=learn, virbr0=bridge(leased=[at(OLD)])) == [
            (OLD, "leased"),
            (OLD6, "declared"),
        ]


def test_derived_address_has_eui64_identifier() -> None:
    assert is_derived(ip_address(DERIVED6), MAC)
    assert is_derived(ip_address("2001:db8::202:3ff:fe04:506"), "00:02:03:04:05:06")
    assert not is_derived(ip_address(DERIVED6), MAC2)
    assert not is_derived(ip_address(OLD6), MAC)
    assert not is_derived(ip_address(OLD), MAC)


TWO = (Nic(MAC, "network", "default"), Nic(MAC2, "network", "default"))
NAMED = Network(
    "default", UUID, BRIDGE, "nat", (ip_network("198.51.100.0/24"),),
    (Reservation(ip_address(OLD), None, "web"),),
)  # fmt: skip


def test_reservation_by_name_is_assigned_to_one_nic() -> None:
    assert found(guest(nics=TWO), NAMED, virbr0=bridge()) == [(OLD, "reserved")]


def test_reservation_by_name_follows_lease() -> None:
    of = guest(nics=TWO)
    facts = HostFacts((NAMED,), {BRIDGE: bridge(leased=[at(OLD, MAC2)])})
    assert [
        (endpoint.mac, endpoint.origin) for endpoint in endpoints(of, find_attachments(of.nics, facts), facts)
    ] == [(MAC2, "reserved")]


def test_neighbour_entry_with_other_mac_of_same_guest_is_no_obstacle() -> None:
    """A guest with two NICs on a bridge may answer for either address on either NIC (arp_ignore)."""
    both = (Nic(MAC, "bridge", BRIDGE), Nic(MAC2, "bridge", BRIDGE))
    of = guest((OLD, "neighbour"), nics=both)
    assert found(of, virbr0=bridge(confirmed=[at(OLD, MAC2)])) == [(OLD, "neighbour")]


def test_declared_address_prefers_bridge_with_its_subnet() -> None:
    """The first NIC is on a bridge without a subnet, which accepts any address."""
    of = guest(
        hosts=(HostAddress(ip_address(OLD)),), nics=(Nic(MAC2, "bridge", "br9"), Nic(MAC, "bridge", BRIDGE))
    )
    facts = HostFacts((), {BRIDGE: bridge(), "br9": BridgeFacts()}, routes=NoRoutes())
    assert [
        (str(endpoint.ip), endpoint.bridge)
        for endpoint in endpoints(of, find_attachments(of.nics, facts), facts)
    ] == [(OLD, BRIDGE)]


def test_declared_address_without_mac_skips_nic_with_its_own() -> None:
    hosts = (HostAddress(ip_address(NEW)), HostAddress(ip_address(OLD), MAC))
    both = (Nic(MAC, "bridge", BRIDGE), Nic(MAC2, "bridge", BRIDGE))
    assert found(guest(hosts=hosts, nics=both), virbr0=bridge()) == [(OLD, "declared"), (NEW, "declared")]


@pytest.mark.parametrize("second", [MAC2, None])
def test_address_declared_for_two_nics_is_one_endpoint(second: str | None) -> None:
    """As for NICs that are bonded in the guest."""
    hosts = (HostAddress(ip_address(OLD), MAC), HostAddress(ip_address(OLD), second))
    both = (Nic(MAC, "bridge", BRIDGE), Nic(MAC2, "bridge", BRIDGE))
    assert found(guest(hosts=hosts, nics=both), virbr0=bridge()) == [(OLD, "declared")]


@pytest.mark.parametrize("prefix", ["198.51.100.8/31", "198.51.100.9/32", "2001:db8:77::8/127"])
def test_all_addresses_of_smallest_subnets_are_usable(prefix: str) -> None:
    """A /31 and a /127 have no network or broadcast address (RFC 3021, RFC 6164)."""
    for ip in ip_network(prefix, strict=False):
        known = BridgeFacts((ip_interface(prefix),), (), (at(str(ip)),))
        assert found(guest(), virbr0=known) == [(str(ip), "leased")]
