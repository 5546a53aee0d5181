"""Why a forward waits: which places were asked for the guest's address, or why there is none to ask."""

from collections.abc import Iterable

from virt_forward import text
from virt_forward.addresses.attachments import Facts, Place, misnamed, places
from virt_forward.model import LEARNED, Forward, Guest, Network, fits


def reason(guest: Guest, forward: Forward, networks: Iterable[Network]) -> str:
    """Return one sentence on why no seat of ``guest`` serves ``forward``."""
    facts = Facts(tuple(networks))
    found = [place for place in places(guest.nics, facts) if forward.mac in (None, place.nic.mac)]
    if not found:
        return _nowhere(guest, forward, facts)
    versions = [version for version in (4, 6) if fits(forward, version)]
    served = {(subnet.version, bridge) for subnet, bridge in guest.lans}
    asked = [place for place in found if any((version, place.bridge) in served for version in versions)]
    if not asked:
        family = f"IPv{versions[0]}" if len(versions) == 1 else "IP"
        bridges = ", ".join(dict.fromkeys(place.bridge for place in found))
        return f"the host has no {family} subnet on {bridges}, and the metadata has no <host> for the guest"
    return "; ".join((*map(_asked, asked), *_not_from_the_wire(guest, asked)))


def _not_from_the_wire(guest: Guest, asked: Iterable[Place]) -> list[str]:
    """Return the sources that do not count, as the NIC has a trusted address of the other family."""
    nics = {(place.nic.mac, place.bridge) for place in asked}
    trusted = [seat for seat in guest.seats if seat.origin not in LEARNED and (seat.mac, seat.bridge) in nics]
    return [
        f"beside its {seat.origin} address {seat.ip} the guest's own answers and the neighbour table count "
        "only for an address that derives from its MAC address ([addresses] learn in the configuration)"
        for seat in trusted[:1]
    ]


def _nowhere(guest: Guest, forward: Forward, facts: Facts) -> str:
    nics = [nic for nic in guest.nics if forward.mac in (None, nic.mac)]
    if forward.mac and not nics:
        return f"the guest has no NIC with the MAC address {forward.mac}"
    wrong = misnamed(nics, facts)
    if wrong:
        return "; ".join(wrong)
    bridges = {network.name: network.bridge for network in facts.networks}
    for nic in nics:
        if nic.type == "network":
            why = "has no bridge on this host" if nic.source in bridges else "is not active"
            return f"the network {text.quote(nic.source)} of the guest {why}"
    return "the guest has no NIC on a bridge of this host"


def _asked(place: Place) -> str:
    asked = ["<host> in its metadata"]
    if place.network:
        asked.append(f"the reservations of network {text.quote(place.network.name)}")
    asked += ["networkd's static leases", "the DHCP leases of networkd and dnsmasq", "the neighbour table"]
    nic = f"{text.word(place.nic.mac)} on {place.bridge}"
    return f"no address is known yet of {nic}; asked were {', '.join(asked)}"
