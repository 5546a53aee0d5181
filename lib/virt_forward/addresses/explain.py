"""Why a forward waits: the sources that do not have the guest's address, or why it has none."""

from collections.abc import Iterable

from virt_forward import text
from virt_forward.addresses.attachments import Attachment, bridge_name_errors, named_attachments
from virt_forward.model import LEARNED, Forward, Guest, Network, fits


def reason(guest: Guest, forward: Forward, networks: Iterable[Network]) -> str:
    """Return why no endpoint of ``guest`` serves ``forward``, as one line."""
    networks = tuple(networks)
    found = serving(guest, forward, networks)
    if not found:
        return _no_attachment(guest, forward, networks)
    lacking = unserved_family(guest, forward, networks)
    if lacking:
        return f"the host has no {lacking}, and the metadata has no <host> that is there"
    searched = [attachment for attachment in found if _served(guest, forward, attachment)]
    return "; ".join((*map(_sources, searched), *_untrusted_sources(guest, searched)))


def serving(guest: Guest, forward: Forward, networks: Iterable[Network]) -> list[Attachment]:
    """Return the attachments of ``guest`` that ``forward`` can lead to."""
    found = named_attachments(guest.nics, networks)
    return [attachment for attachment in found if forward.mac in (None, attachment.nic.mac)]


def unserved_family(guest: Guest, forward: Forward, networks: Iterable[Network]) -> str:
    """Return the subnet that the host lacks for ``forward``, as ``IPv6 subnet on virbr0``.

    Without one on a bridge of the guest, no source can tell the guest's address. Empty if there is one.
    """
    found = serving(guest, forward, networks)
    if any(_served(guest, forward, attachment) for attachment in found):
        return ""
    versions = _versions(forward)
    family = f"IPv{versions[0]}" if len(versions) == 1 else "IP"
    return f"{family} subnet on {', '.join(dict.fromkeys(attachment.bridge for attachment in found))}"


def _served(guest: Guest, forward: Forward, attachment: Attachment) -> bool:
    """Tell whether the host has a subnet on the bridge of an attachment in a family of the forward."""
    versions = _versions(forward)
    return any(subnet.version in versions and bridge == attachment.bridge for subnet, bridge in guest.lans)


def _versions(forward: Forward) -> list[int]:
    return [version for version in (4, 6) if fits(forward, version)]


def _untrusted_sources(guest: Guest, attachments: Iterable[Attachment]) -> list[str]:
    """Return which sources are not used because a NIC has a configured address of the other family."""
    nics = {(attachment.nic.mac, attachment.bridge) for attachment in attachments}
    configured = [
        endpoint
        for endpoint in guest.endpoints
        if endpoint.origin not in LEARNED and (endpoint.mac, endpoint.bridge) in nics
    ]
    return [
        f"as it has the {endpoint.origin} address {endpoint.ip}, the guest's answers and the neighbour table "
        "count only for an address derived from its MAC address ([addresses] learn in the configuration)"
        for endpoint in configured[:1]
    ]


def _no_attachment(guest: Guest, forward: Forward, networks: Iterable[Network]) -> str:
    nics = [nic for nic in guest.nics if forward.mac in (None, nic.mac)]
    if forward.mac and not nics:
        return f"the guest has no NIC with the MAC address {forward.mac}"
    errors = bridge_name_errors(nics, networks)
    if errors:
        return "; ".join(errors)
    bridges = {network.name: network.bridge for network in networks}
    for nic in nics:
        if nic.type == "network":
            why = "has no bridge on this host" if nic.source in bridges else "is not active"
            return f"the network {text.quote(nic.source)} of the guest {why}"
    return "the guest has no NIC on a bridge of this host"


def _sources(attachment: Attachment) -> str:
    sources = ["<host> in its metadata"]
    if attachment.network:
        sources.append(f"the reservations of network {text.quote(attachment.network.name)}")
    sources += ["networkd's static leases", "the DHCP leases of networkd and dnsmasq", "the neighbour table"]
    nic = f"{text.word(attachment.nic.mac)} on {attachment.bridge}"
    return f"the address of {nic} is not known yet; searched: {', '.join(sources)}"
