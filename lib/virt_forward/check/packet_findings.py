"""Problems that packets met in the copy of the host, and guests that do not answer their host."""

from collections.abc import Iterable, Iterator, Sequence

from virt_forward import portspec, text
from virt_forward.check import listing, remedies
from virt_forward.check.clone.probes import Probe
from virt_forward.check.clone.verdict import Obstacle
from virt_forward.check.facts import Facts, Response
from virt_forward.check.problem import Problem
from virt_forward.check.remedies import SYNC, Place
from virt_forward.model import Guest

FEW = 5
"""The most forwards that a message lists."""


def few(shown: Sequence[str]) -> str:
    """Return the first of many words, and the number of further ones."""
    return ", ".join(shown[:FEW]) + (f" and {len(shown) - FEW} more" if len(shown) > FEW else "")


def edit(name: str, uuid: str) -> str:
    """Return the command that edits a domain."""
    return f"virsh edit {text.domain_argument(name, uuid)}"


def stopped(facts: Facts) -> Iterator[Problem]:
    """Find what stops packets to open forwards: one problem for each guest and obstacle."""
    for obstacle, probes in _by_obstacle(facts):
        found = _problem(obstacle, probes, facts)
        if found:
            yield found


def _by_obstacle(facts: Facts) -> Iterator[tuple[Obstacle, list[Probe]]]:
    groups: dict[tuple[str, Obstacle], list[Probe]] = {}
    for result in facts.report.results:
        if facts.lacks(result.probe.endpoint.bridge):
            continue  # bridge_findings.bridge_absent tells it, with the one fix
        for obstacle in dict.fromkeys(result.obstacles):
            groups.setdefault((result.probe.uuid, obstacle), []).append(result.probe)
    yield from ((obstacle, probes) for (_, obstacle), probes in groups.items())


def _problem(obstacle: Obstacle, probes: list[Probe], facts: Facts) -> Problem | None:
    guest, place = probes[0].guest, _place(obstacle, probes[0], facts)
    subject = f"{_shown(probes)}: " + ("the guest's answer" if obstacle.answer else "the packet")
    if obstacle.kind == "dropped":
        kind = remedies.owner(obstacle, place.chains)
        name = "libvirt-rejects" if kind == "libvirt" else "forward-dropped"
        fix = remedies.dropped(obstacle, probes, place)
        return Problem(name, "error", guest, f"{subject} is dropped by {remedies.where(obstacle)}", fix)
    if obstacle.kind == "translated":
        target = f" to {obstacle.detail}" if obstacle.detail else ""
        message = f"{subject} is taken{target} by {remedies.where(obstacle)} before our table"
        return Problem("shadowed", "error", guest, message, remedies.shadowed(obstacle, probes, place))
    if obstacle.kind == "forwarding":
        return _forwarding_off(obstacle, probes, facts)
    if obstacle.kind == "local":
        return _local(subject, guest, facts)
    if obstacle.kind == "misled":
        return _misled(obstacle, subject, probes[0], facts)
    return _kernel(obstacle, subject, probes[0])


def _shown(probes: Iterable[Probe]) -> str:
    """Return the forwards of some probes, and where their packets come from."""
    probes = [*probes]
    forwards = [*dict.fromkeys(portspec.render(probe.forward) for probe in probes)]
    devices = ", ".join(dict.fromkeys(text.word(probe.device) for probe in probes))
    versions = {probe.endpoint.ip.version for probe in probes}
    family = f" (IPv{min(versions)})" if len(versions) == 1 else ""
    return f"{few(forwards)} from {devices}{family}"


def _place(obstacle: Obstacle, probe: Probe, facts: Facts) -> Place:
    bridge = probe.endpoint.bridge
    mode = next((network.mode for network in facts.networks if network.bridge == bridge), None)
    chains = facts.report.chains.get((obstacle.family, obstacle.table), frozenset())
    path = facts.flush.path if facts.flush else Place().path
    return Place(chains, path, mode, facts.config.admit)


def _forwarding_off(obstacle: Obstacle, probes: Sequence[Probe], facts: Facts) -> Problem | None:
    version, device = probes[0].endpoint.ip.version, obstacle.detail
    if any((item.device, item.version, item.on) == (device, version, False) for item in facts.forwarding):
        # ip_forwarding_off tells it of the host's uplinks.
        return None
    return Problem(
        "ip-forwarding-off",
        "error",
        None,
        f"the kernel does not forward IPv{version} packets that arrive on {text.word(device)}",
        forwarding_fix(device, version, facts.systemd),
    )


def forwarding_fix(device: str, version: int, systemd: int) -> str:
    """Return how to make the kernel forward packets that arrive on a device.

    systemd 256 has replaced IPForward= by settings for each IP version (systemd.network(5)).
    """
    old = 0 < systemd < 256
    if version == 6:
        networkd = "IPForward=yes in its .network file" if old else "IPv6Forwarding=yes in networkd.conf"
        return f"sysctl -w net.ipv6.conf.all.forwarding=1; {_kept(networkd)}"
    networkd = "IPForward=ipv4" if old else "IPv4Forwarding=yes"
    key = _key("ipv4", device, "forwarding")
    return f"sysctl -w {key}=1; {_kept(f'{networkd} in its .network file')}"


def _kept(networkd: str) -> str:
    return f"to keep it, a file in /etc/sysctl.d or, with networkd, {networkd}"


def _key(family: str, device: str, name: str) -> str:
    """Return a sysctl's key: if a slash comes first, a dot in a name is no separator (sysctl.d(5))."""
    key = f"net/{family}/conf/{text.word(device)}/{name}"
    return key if "." in device else key.replace("/", ".")


def _local(subject: str, guest: str, facts: Facts) -> Problem | None:
    if not facts.table or listing.differences(
        listing.parse(facts.table), listing.parse(facts.expected_table or "")
    ):
        # Without its rules in the kernel, nothing else can be expected.
        return None
    message = f"{subject} reaches the host itself: no rule of our table translates it"
    return Problem("shadowed", "error", guest, message, SYNC)


def _misled(obstacle: Obstacle, subject: str, probe: Probe, facts: Facts) -> Problem | None:
    """Return who gets a packet, by a more specific forward; none where it is the guest itself."""
    at = obstacle.detail
    owners = [guest for guest in facts.guests if any(str(each.ip) == at for each in guest.endpoints)]
    if any(owner.uuid == probe.uuid for owner in owners):
        return None
    if not owners:
        return _kernel(Obstacle("unknown", detail=f"it is sent to {at}"), subject, probe)
    message = f"{subject} goes to guest {text.word(owners[0].name)}, by a more specific forward of that port"
    fix = "if that is not intended, give one of the two another port; virt-forward list shows their limits"
    return Problem("shadowed", "warning", probe.guest, message, fix)


def _kernel(obstacle: Obstacle, subject: str, probe: Probe) -> Problem:
    src, dst = probe.client, probe.endpoint.ip
    if obstacle.kind == "rp_filter":
        key = _key("ipv4", obstacle.detail, "rp_filter")
        message = (
            f"{subject} is dropped by reverse path filtering (rp_filter) on {text.word(obstacle.detail)}"
        )
        fix = f"sysctl -w {key}=2; to keep it, add {key}=2 to a file in /etc/sysctl.d"
        return Problem("not-routed", "error", probe.guest, message, fix)
    if obstacle.kind == "unrouted":
        ends = (dst, src, probe.endpoint.bridge) if obstacle.answer else (src, dst, probe.device)
        message = f"{subject} is not routed: {text.plain(obstacle.detail, 200)}"
        fix = "correct the routes: ip route get {1} from {0} iif {2} shows what the kernel does".format(*ends)
        return Problem("not-routed", "error", probe.guest, message, fix)
    why = remedies.where(obstacle) if obstacle.chain else text.plain(obstacle.detail, 200)
    message = f"{subject} could not be followed: {why}"
    return Problem("not-verified", "warning", probe.guest, message, "try the forward from another host")


def not_verified(facts: Facts) -> Iterator[Problem]:
    """Find what could not be copied, so that what is said of packets may be wrong."""
    report = facts.report
    if facts.unverified:
        message = f"the way of packets could not be tried: {facts.unverified}"
        yield Problem("not-verified", "warning", None, message, "try the forwards from another host")
    if report.missing_tables:
        tables = few([f"{text.plain(name)} ({text.plain(why, 200)})" for name, why in report.missing_tables])
        message = f"the way of packets was tried without tables that could not be copied: {tables}"
        yield Problem("not-verified", "warning", None, message, "try the forwards from another host")


def guest_unreachable(facts: Facts) -> Iterator[Problem]:
    """Find guests that do not answer their host: at an address, or on the port of a forward."""
    guests = {guest.uuid: guest for guest in facts.guests}
    silent: set[tuple[str, str]] = set()
    for uuid in dict.fromkeys(item.uuid for item in facts.unanswered if item.uuid in facts.paused):
        name = guests[uuid].name
        fix = f"virsh resume {text.domain_argument(name, uuid)}"
        yield Problem("guest-unreachable", "warning", name, "the guest is paused and answers nothing", fix)
    for item in facts.unanswered:
        if item.uuid in facts.paused or facts.lacks(item.endpoint.bridge):
            continue
        key = item.uuid, str(item.endpoint.ip)
        if item.answer == "filtered" and (item.endpoint, item.forward.to) in facts.report.blocked:
            # The host's own rules stop its question; that says nothing of the guest.
            continue
        if item.answer in ("silent", "foreign"):
            if key in silent:
                continue
            silent.add(key)
        yield _unreachable(guests[item.uuid], item)


def _unreachable(guest: Guest, item: Response) -> Problem:
    endpoint, forward = item.endpoint, item.forward
    port, change = f"{forward.proto}/{forward.to}", edit(guest.name, guest.uuid)
    asked = "ARP" if endpoint.ip.version == 4 else "neighbour solicitation"
    place = f"{endpoint.ip} on {endpoint.bridge}"
    if item.answer == "silent":
        message = f"no answer to {asked} from {place}, the guest's {endpoint.origin} address"
        fix = f"see in the guest that its network is up and has this address; or correct <host> ({change})"
        return Problem("guest-unreachable", "error", guest.name, message, fix)
    if item.answer == "foreign":
        message = f"at {place} another machine answers, not the guest's {endpoint.mac}"
        fix = f"give one of the two another address; ip neighbour show {endpoint.ip} names the other"
        return Problem("guest-unreachable", "error", guest.name, message, fix)
    spec = portspec.render(forward)
    if item.answer == "refused":
        message = f"{spec}: nothing in the guest listens on {port} ({place} refuses it)"
        fix = (
            f"start the service in the guest, let it listen on {endpoint.ip}, or correct the port ({change})"
        )
    else:
        message = f"{spec}: the guest is up, but {port} at {place} does not answer"
        fix = f"allow {port} in the guest's own firewall"
    return Problem("guest-unreachable", "warning", guest.name, message, fix)
