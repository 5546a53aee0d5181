"""Why a forward waits: which attached were asked for the guest's address, or why there is none to ask."""

from collections.abc import Iterable

from virt_forward import text
from virt_forward.addresses.attachments import Attachment, Facts, attached, misnamed
from virt_forward.model import LEARNED, Forward, Guest, Network, fits


def reason(guest: Guest, forward: Forward, networks: Iterable[Network]) -> str:
    """Return one sentence on why no endpoint of ``guest`` serves ``forward``."""
    facts = Facts(tuple(networks))
    found = [
        attachment for attachment in attached(guest.nics, facts) if forward.mac in (None, attachment.nic.mac)
    ]
    if not found:
        return _nowhere(guest, forward, facts)
    versions = [version for version in (4, 6) if fits(forward, version)]
    served = {(subnet.version, bridge) for subnet, bridge in guest.lans}
    asked = [
        attachment
        for attachment in found
        if any((version, attachment.bridge) in served for version in versions)
    ]
    if not asked:
        family = f"IPv{versions[0]}" if len(versions) == 1 else "IP"
        bridges = ", ".join(dict.fromkeys(attachment.bridge for attachment in found))
        return f"the host has no {family} subnet on {bridges}, and the metadata has no <host> for the guest"
    return "; ".join((*map(_asked, asked), *_not_from_the_wire(guest, asked)))


def _not_from_the_wire(guest: Guest, asked: Iterable[Attachment]) -> list[str]:
    """Return the sources that do not count, as the NIC has a trusted address of the other family."""
    nics = {(attachment.nic.mac, attachment.bridge) for attachment in asked}
    trusted = [
        endpoint
        for endpoint in guest.endpoints
        if endpoint.origin not in LEARNED and (endpoint.mac, endpoint.bridge) in nics
    ]
    return [
        f"beside its {endpoint.origin} address {endpoint.ip} the guest's own answers and the neighbour table "
        "count only for an address that derives from its MAC address ([addresses] learn in the configuration)"
        for endpoint in trusted[:1]
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


def _asked(attachment: Attachment) -> str:
    asked = ["<host> in its metadata"]
    if attachment.network:
        asked.append(f"the reservations of network {text.quote(attachment.network.name)}")
    asked += ["networkd's static leases", "the DHCP leases of networkd and dnsmasq", "the neighbour table"]
    nic = f"{text.word(attachment.nic.mac)} on {attachment.bridge}"
    return f"no address is known yet of {nic}; asked were {', '.join(asked)}"
