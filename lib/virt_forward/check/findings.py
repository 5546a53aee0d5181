"""The checks: each a function from the facts to problems."""

from collections.abc import Callable, Iterable, Iterator

from virt_forward import portspec, text
from virt_forward.addresses import explain, resolve
from virt_forward.check import bridge_findings, listing, packet_findings, remedies
from virt_forward.check.facts import Facts, Hook
from virt_forward.check.packet_findings import edit, few
from virt_forward.check.problem import Problem
from virt_forward.check.remedies import SYNC
from virt_forward.claims import absent, vetoes
from virt_forward.config import DEFAULT_PATH
from virt_forward.model import Forward, Guest

LINKS = "ip -br link lists the interfaces"


def problems(facts: Facts) -> list[Problem]:
    """Return all problems, those of the host before those of the guests."""
    return [problem for finding in FINDINGS for problem in finding(facts)]


def hook_missing(facts: Facts) -> Iterator[Problem]:
    """Find hooks that are missing, not ours or not executable."""
    # install.sh refuses to run beside the Debian package, which puts its hooks in place as it is configured.
    fix = "dpkg-reconfigure virt-forward" if facts.packaged else "sudo ./install.sh"
    for hook in facts.hooks:
        if not hook.ours:
            yield Problem(
                "hook-missing",
                "error",
                None,
                f"the hook of virt-forward is missing at {hook.path}",
                fix,
            )
        elif not hook.executable:
            yield Problem(
                "hook-missing", "error", None, f"{hook.path} is not executable", f"chmod 755 {hook.path}"
            )


def hook_not_loaded(facts: Facts) -> Iterator[Problem]:
    """Find hooks newer than the last start or reload of libvirt's daemon, when it looks for hooks."""
    for hook in facts.hooks:
        if hook.ours and hook.loaded_at and hook.changed > hook.loaded_at:
            yield _not_loaded(hook)


def _not_loaded(hook: Hook) -> Problem:
    return Problem(
        "hook-not-loaded",
        "warning",
        None,
        f"{hook.path} is newer than the last reload of libvirt's daemon, which may not have seen it",
        f"systemctl reload {hook.daemon}",
    )


def metadata_invalid(facts: Facts) -> Iterator[Problem]:
    """Find domains with wrong metadata: a running one keeps its forwards, another does not start."""
    start = (
        "the next start has no forwards: "
        if facts.config.on_error == "warn"
        else "the next start is refused: "
    )
    for error, definition in facts.invalid:
        domain = error.domain
        few = "; ".join(error.reasons[:3]) + ("; ..." if len(error.reasons) > 3 else "")
        message = f"{start}{few}" if definition == "config" else few
        fix = remedies.edit_live(domain.name, domain.uuid) if definition == "live" else error.hint
        yield Problem("metadata-invalid", "error", domain.name, message, fix)


def table_missing(facts: Facts) -> Iterator[Problem]:
    """Find a missing table, and running guests that have nothing in it."""
    if facts.expected_table and facts.table is None:
        yield Problem(
            "table-missing", "error", None, "the table inet virt-forward is not in the kernel", SYNC
        )
    known = {guest.uuid for guest in facts.guests}
    # metadata_invalid tells why there can be nothing of these.
    known |= {item.error.domain.uuid for item in facts.invalid if item.definition == "live"}
    for domain in facts.running or ():
        if domain.uuid not in known:
            unserved = resolve.unserved(domain, facts.networks)
            message = "the guest is running and declares forwards, but none is open"
            message, fix = (
                (f"{message}: {'; '.join(unserved)}", edit(domain.name, domain.uuid))
                if unserved
                else (message, SYNC)
            )
            yield Problem("table-missing", "error", domain.name, message, fix)


def table_differs(facts: Facts) -> Iterator[Problem]:
    """Find differences between the table in the kernel and the expected one."""
    if facts.table is None:
        return
    if not facts.expected_table:
        if {domain.uuid for domain in facts.running or ()} - {guest.uuid for guest in facts.guests}:
            # The state was lost, or these guests are not in it yet: table_missing has told.
            return
        message = "the table inet virt-forward is in the kernel, though no running guest has forwards"
        yield Problem("table-differs", "error", None, message, SYNC)
        return
    differences = listing.differences(listing.parse(facts.table), listing.parse(facts.expected_table))
    if differences:
        shown = "; ".join(differences[:5]) + ("; …" if len(differences) > 5 else "")
        message = f"the table inet virt-forward is not as expected: {shown}"
        yield Problem("table-differs", "error", None, message, SYNC)


def metadata_not_in_force(facts: Facts) -> Iterator[Problem]:
    """Find guests whose open forwards are not those of their live metadata: none, where they do not run."""
    for found in facts.differences:
        closed, undeclared = (
            few([*map(portspec.described, items)]) for items in (found.closed, found.undeclared)
        )
        parts = [
            f"{closed} declared by the running guest, but not open" if closed else "",
            f"{undeclared} open, but not declared by a running guest" if undeclared else "",
            f"{' and '.join(found.settings)} changed, but not in force" if found.settings else "",
        ]
        message = "; ".join(filter(None, parts))
        if message:
            yield Problem("table-differs", "error", found.name, message, SYNC)


def flush_unprotected(facts: Facts) -> Iterator[Problem]:
    """Find a ruleset whose reload deletes our table."""
    flush = facts.flush
    if flush and flush.flushes and not (flush.included_after or flush.drop_in or flush.service):
        yield Problem(
            "flush-unprotected",
            "warning",
            None,
            f"a reload of {flush.path} flushes our table, and nothing restores it",
            f'add include "/run/virt-forward/*.nft" as the last line of {flush.path}, '
            "or run systemctl enable --now virt-forward",
        )


def ip_forwarding_off(facts: Facts) -> Iterator[Problem]:
    """Find uplinks whose packets the kernel does not forward, in the IP versions that guests have."""
    versions = {
        endpoint.ip.version for guest in facts.guests for endpoint in guest.endpoints if guest.forwards
    }
    for item in facts.forwarding:
        if item.version in versions and not item.on:
            device = text.word(item.device)
            message = f"the kernel does not forward IPv{item.version} packets that arrive on {device}"
            fix = packet_findings.forwarding_fix(item.device, item.version, facts.systemd)
            yield Problem("ip-forwarding-off", "error", None, message, fix)


def networkd_ipforward(facts: Facts) -> Iterator[Problem]:
    """Find IPForward=, which systemd ignores since version 256."""
    for path in facts.networkd_ipforward:
        message = f"{text.word(path)} has IPForward=, which this systemd ignores"
        yield Problem("networkd-ipforward", "warning", None, message, "use IPv4Forwarding=yes instead")


def host_port_taken(facts: Facts) -> Iterator[Problem]:
    """Find forwards in conflict, and open ones whose port a program of the host uses."""
    kept_out = [(guest.name, item) for guest in facts.guests for item in guest.conflicts]
    kept_out += [(found.name, item) for found in facts.differences for item in found.kept_out]
    for name, (forward, reason) in kept_out:
        message = f"{portspec.render(forward)} is kept out: {reason}"
        yield Problem("host-port-taken", "error", name, message, vetoes.remedy(reason))
    names = {guest.uuid: guest.name for guest in facts.guests}
    for veto in facts.vetoes:
        message = f"{portspec.render(veto.forward)} was open first and stays so, but {veto.reason}"
        yield Problem("host-port-taken", "warning", names[veto.uuid], message, vetoes.remedy(veto.reason))


def address_absent(facts: Facts) -> Iterator[Problem]:
    """Find forwards on an address that the host does not have: a wrong one, or a floating one."""
    for guest, why in _absent(facts, absent.address):
        fix = f"give the address to an interface, or correct address= ({edit(guest.name, guest.uuid)}); "
        fix += "a floating address that another host has now needs no fix"
        yield Problem("address-absent", "warning", guest.name, why, fix)


def device_absent(facts: Facts) -> Iterator[Problem]:
    """Find interfaces named by the metadata or the configuration that do not exist."""
    for dev in facts.config.uplinks:
        if facts.host and dev not in facts.host.devices:
            message = f"[forward] uplinks names {dev}, but interface {dev} does not exist now"
            yield Problem("device-absent", "warning", None, message, f"correct it in {DEFAULT_PATH}; {LINKS}")
    for guest, why in _absent(facts, absent.device):
        fix = f"correct dev= ({edit(guest.name, guest.uuid)}); {LINKS}"
        yield Problem("device-absent", "warning", guest.name, why, fix)


def _absent(
    facts: Facts, reason: Callable[[Forward, absent.Host], str | None]
) -> Iterator[tuple[Guest, str]]:
    """Yield each reason with all forwards of a running guest that it makes unreachable."""
    host = facts.host
    if host is None:
        return
    for guest in facts.guests:
        idle: dict[str, list[str]] = {}
        for forward in guest.forwards if guest.phase == "running" else ():
            why = reason(forward, host)
            if why:
                idle.setdefault(why, []).append(portspec.render(forward))
        yield from ((guest, f"{few(shown)} cannot be reached: {why}") for why, shown in idle.items())


def no_address(facts: Facts) -> Iterator[Problem]:
    """Find running guests with a forward that has no endpoint, for another reason than an absent bridge."""
    for guest in facts.guests:
        for forwards in _waiting(guest, facts):
            why = explain.reason(guest, forwards[0], facts.networks)
            message = f"{few([*map(portspec.render, forwards)])} waits: {why}"
            fix = _address_fix(guest, forwards[0], facts)
            yield Problem("no-address", "warning", guest.name, message, fix)


def _waiting(guest: Guest, facts: Facts) -> Iterable[list[Forward]]:
    """Return the forwards of a guest that wait for an address, together where the fix is the same."""
    found: dict[str, list[Forward]] = {}
    for forward in guest.forwards if guest.phase == "running" else ():
        bridges = [item.bridge for item in explain.serving(guest, forward, facts.networks)]
        # Where none of them exists, bridge_findings.bridge_absent tells it.
        if not guest.endpoints_for(forward) and not (bridges and all(map(facts.lacks, bridges))):
            found.setdefault(_address_fix(guest, forward, facts), []).append(forward)
    return found.values()


def _address_fix(guest: Guest, forward: Forward, facts: Facts) -> str:
    change = edit(guest.name, guest.uuid)
    if not explain.serving(guest, forward, facts.networks):
        return f"correct its interfaces, or mac= in its metadata ({change})"
    lacking = explain.unserved_family(guest, forward, facts.networks)
    if lacking:
        named = [f"{name}=" for name in ("address", "source") if getattr(forward, name)]
        correct = f"correct {' or '.join(named)}, or " if named else ""
        return f'{correct}add <host ip="…"/> ({change}), or give the host an {lacking} and run {SYNC}'
    # The service sees the lease by itself.
    then = "" if facts.flush and facts.flush.service else f" and run {SYNC}"
    return f'wait for its DHCP lease{then}, reserve an address, or add <host ip="…"/> to its metadata'


FINDINGS = (
    hook_missing,
    hook_not_loaded,
    flush_unprotected,
    ip_forwarding_off,
    networkd_ipforward,
    bridge_findings.networkd_stopped,
    metadata_invalid,
    table_missing,
    table_differs,
    metadata_not_in_force,
    host_port_taken,
    address_absent,
    device_absent,
    bridge_findings.bridge_absent,
    bridge_findings.device_is_port,
    no_address,
    packet_findings.stopped,
    packet_findings.not_verified,
    packet_findings.guest_unreachable,
    bridge_findings.br_netfilter,
    bridge_findings.bridge_name_clash,
)
