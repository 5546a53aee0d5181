"""From a domain and the host's facts to a Guest: its endpoints, and its forwards."""

from collections.abc import Callable, Iterable, Iterator

from virt_forward import ports, text
from virt_forward.addresses.attachments import (
    Attachment,
    HostFacts,
    belongs,
    bridge_name_errors,
    elsewhere,
    find_attachments,
    named_attachments,
    network_of,
)
from virt_forward.addresses.endpoints import endpoints
from virt_forward.config import DEFAULT_PATH, Config
from virt_forward.errors import VirtForwardError
from virt_forward.model import (
    Address,
    Declaration,
    Domain,
    Endpoint,
    Guest,
    Network,
    Phase,
    PortForward,
    Span,
)

DIRECT = ("bridge", "private", "vepa", "passthrough", "hostdev")
"""Modes of libvirt networks without a bridge of their own (formatnetwork.html)."""


def resolve(  # noqa: PLR0913 - each is another part of the answer
    domain: Domain,
    facts: HostFacts,
    config: Config,
    phase: Phase,
    excluded: Callable[[PortForward], list[Span]],
    *,
    known: Iterable[Endpoint] = (),
) -> Guest:
    """Return the guest of a domain that declares forwards.

    ``excluded`` returns the ports that a ``<portForward>`` leaves to the host. Endpoints that are
    ``known`` remain where no source contradicts them. Raises
    VirtForwardError with all reasons why the declaration cannot be served.
    """
    declaration = domain.declaration or Declaration()
    found = find_attachments(domain.nics, facts)
    errors = [*_unserved(domain, found, facts.networks), *_not_allowed(declaration, config)]
    errors += _host_address_errors(declaration, found, facts)
    if errors:
        raise VirtForwardError(f"guest {text.quote(domain.name)}: {error}" for error in errors)
    guest = Guest(
        uuid=domain.uuid,
        name=domain.name,
        phase=phase,
        isolate=declaration.isolate,
        nics=domain.nics,
        hosts=declaration.hosts,
        endpoints=tuple(known),
    )
    return locate(guest, facts)._replace(forwards=ports.expand(declaration, excluded))


def locate(guest: Guest, facts: HostFacts) -> Guest:
    """Return ``guest`` with the endpoints, subnets and gateways that follow from the facts."""
    found = find_attachments(guest.nics, facts)
    # The host's address on a bridge with an uplink is no gateway, so forwards listen on it.
    inner = [attachment for attachment in found if not attachment.facts.uplink]
    return guest._replace(
        endpoints=tuple(endpoints(guest, found, facts)),
        lans=tuple((subnet, attachment.bridge) for attachment in found for subnet in attachment.subnets()),
        gateways=tuple(dict.fromkeys(ip for attachment in inner for ip in attachment.host_addresses())),
    )


def unserved(domain: Domain, networks: Iterable[Network]) -> list[str]:
    """Return why a domain has no attachment that forwards can lead to; empty if it has one."""
    networks = tuple(networks)
    return list(_unserved(domain, named_attachments(domain.nics, networks), networks))


def _unserved(domain: Domain, found: list[Attachment], known: tuple[Network, ...]) -> Iterator[str]:
    networks = {nic.source: network_of(nic, known) for nic in domain.nics if nic.type == "network"}
    # A network that is unknown or has no bridge yet may have one when the guest runs.
    if found:
        return
    errors = bridge_name_errors(domain.nics, known)
    if errors:
        yield from errors
        return
    if any(network is None or network.mode not in DIRECT for network in networks.values()):
        return
    kinds = {nic.type for nic in domain.nics}
    if networks:
        names = ", ".join(map(text.quote, networks))
        yield f"its network {names} puts it on the LAN directly, where it needs no forwards"
        return
    if "user" in kinds:
        yield "its NIC is of type user; libvirt's own <portForward> with <backend type='passt'/> serves it"
    elif "direct" in kinds:
        yield "its NIC is of type direct (macvtap), so it is on the LAN already and needs no forwards"
    else:
        yield "it has no NIC on a bridge or libvirt network; add an <interface type='bridge'>"


def _not_allowed(declaration: Declaration, config: Config) -> Iterator[str]:
    for item in declaration.port_forwards:
        if item.dev and config.uplinks and item.dev not in config.uplinks:
            allowed = ", ".join(config.uplinks)
            yield f'dev="{item.dev}" is not among the uplinks in {DEFAULT_PATH}, which are {allowed}'
        if item.address and item.address.is_loopback and not config.localhost:
            yield f'address="{item.address}" needs localhost = true in section [forward] of {DEFAULT_PATH}'


def _host_address_errors(
    declaration: Declaration, found: list[Attachment], facts: HostFacts
) -> Iterator[str]:
    for host in declaration.hosts:
        if host.ip in facts.own_addresses or any(
            host.ip == own.ip for attachment in found for own in attachment.facts.addresses
        ):
            yield f'<host ip="{host.ip}"> is an address of the host itself; give the guest\'s'
            continue
        candidates = [attachment for attachment in found if host.mac in (None, attachment.nic.mac)]
        if candidates and not any(belongs(host.ip, attachment, facts) for attachment in candidates):
            yield f'<host ip="{host.ip}"> is {_where_instead(host.ip, candidates, facts)}'


def _where_instead(ip: Address, candidates: list[Attachment], facts: HostFacts) -> str:
    """Return where an address is that belongs to no bridge of the guest."""
    for attachment in candidates:
        place = elsewhere(ip, attachment, facts)
        if place:
            subnet, name = place
            there = f"the guest is on {attachment.bridge}; give the address that it has there"
            return f"in {subnet} on {name}, but {there}"
    listed = (
        f"{subnet} on {attachment.bridge}" for attachment in candidates for subnet in attachment.subnets()
    )
    return f"not on the guest's network; the host has {', '.join(listed)}"
