"""A domain and the facts of the host to a Guest: where it sits, and what may be forwarded to it."""

from collections.abc import Callable, Iterator

from virt_forward import ports, text
from virt_forward.addresses.attachments import Attachment, Facts, attached, belongs, misnamed, network_of
from virt_forward.addresses.endpoints import endpoints
from virt_forward.config import Config
from virt_forward.errors import VirtForwardError
from virt_forward.model import Declaration, Domain, Guest, Phase, PortForward, Span

DIRECT = ("bridge", "private", "vepa", "passthrough", "hostdev")
"""Modes of libvirt networks that make no bridge of their own (formatnetwork.html)."""


def resolve(
    domain: Domain,
    facts: Facts,
    config: Config,
    phase: Phase,
    spared: Callable[[PortForward], list[Span]],
) -> Guest:
    """Return the guest of a domain that declares forwards.

    ``spared`` tells which ports a forward that names none leaves to the host. Raises
    VirtForwardError, with every reason, where the declaration cannot be served as it is.
    """
    declaration = domain.declaration or Declaration()
    found = attached(domain.nics, facts)
    errors = [*_unserved(domain, found, facts), *_fenced(declaration, config)]
    errors += _strangers(declaration, found, facts)
    if errors:
        raise VirtForwardError(f"guest {text.quote(domain.name)}: {error}" for error in errors)
    guest = Guest(
        uuid=domain.uuid,
        name=domain.name,
        phase=phase,
        isolate=declaration.isolate,
        forwards=ports.expand(declaration, spared),
        nics=domain.nics,
        hosts=declaration.hosts,
    )
    return locate(guest, facts)


def locate(guest: Guest, facts: Facts) -> Guest:
    """Return ``guest`` with its endpoints and subnets as the facts have them now."""
    found = attached(guest.nics, facts)
    # A bridge that the host's own uplink is part of has no gateway address to be kept from forwards.
    inner = [attachment for attachment in found if not attachment.facts.uplink]
    return guest._replace(
        endpoints=tuple(endpoints(guest, found, facts)),
        lans=tuple((subnet, attachment.bridge) for attachment in inner for subnet in attachment.lans()),
        gateways=tuple(dict.fromkeys(ip for attachment in inner for ip in attachment.gateways())),
    )


def locate_known(guest: Guest, known: Guest | None, facts: Facts) -> Guest:
    """Return ``guest`` located with what was known of it before, where no source tells otherwise."""
    return locate(guest._replace(endpoints=known.endpoints), facts) if known else guest


def unserved(domain: Domain, facts: Facts) -> list[str]:
    """Return why a domain is on no bridge of the host where it could be served; empty where it is on one."""
    return list(_unserved(domain, attached(domain.nics, facts), facts))


def _unserved(domain: Domain, found: list[Attachment], facts: Facts) -> Iterator[str]:
    networks = {nic.source: network_of(nic, facts.networks) for nic in domain.nics if nic.type == "network"}
    # A network that is not known, or has no bridge yet, may have one by the time the guest runs.
    if found:
        return
    wrong = misnamed(domain.nics, facts)
    if wrong:
        yield from wrong
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


def _fenced(declaration: Declaration, config: Config) -> Iterator[str]:
    for item in declaration.port_forwards:
        if item.dev and config.uplinks and item.dev not in config.uplinks:
            allowed = ", ".join(config.uplinks)
            yield f'dev="{item.dev}" is not among the uplinks of the configuration, which are {allowed}'
        if item.address and item.address.is_loopback and not config.localhost:
            yield f'address="{item.address}" needs localhost = true in section [forward] of the configuration'


def _strangers(declaration: Declaration, found: list[Attachment], facts: Facts) -> Iterator[str]:
    for host in declaration.hosts:
        if host.ip in facts.own or any(
            host.ip == own.ip for attachment in found for own in attachment.facts.addresses
        ):
            yield f'<host ip="{host.ip}"> is an address of the host itself; give the guest\'s'
            continue
        candidates = [attachment for attachment in found if host.mac in (None, attachment.nic.mac)]
        if candidates and not any(belongs(host.ip, attachment) for attachment in candidates):
            listed = ", ".join(
                f"{subnet} on {attachment.bridge}"
                for attachment in candidates
                for subnet in attachment.lans()
            )
            yield f'<host ip="{host.ip}"> is not on the guest\'s network; the host has {listed}'
