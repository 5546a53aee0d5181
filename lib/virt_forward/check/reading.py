"""Reading the facts: the edge of ``virt-forward check``. Nothing of the host is changed."""

import glob
import os
import re
from collections.abc import Iterable, Iterator

from virt_forward.addresses import attachments
from virt_forward.check import includes
from virt_forward.check.facts import Facts, Flush, Forwarding, Hook, Veto
from virt_forward.config import Config
from virt_forward.errors import VirtForwardError
from virt_forward.host import collect, hostports, nft
from virt_forward.host.process import run
from virt_forward.libvirtd import api
from virt_forward.libvirtd.api import DomainState
from virt_forward.metadata.domain import MetadataError, parse_domain
from virt_forward.model import Domain, Guest
from virt_forward.ruleset import table
from virt_forward.state.store import Store

HOOKS = "/etc/libvirt/hooks"
MARK = "# virt-forward hook"
RULESETS = ("/etc/sysconfig/nftables.conf", "/etc/nftables.conf")
"""What nftables.service loads: the first on Fedora and its kin, the second elsewhere."""

INCLUDES = "/etc"
"""Where nft looks for what a ruleset includes by a relative path (nft(8), --includepath)."""

DROP_INS = ("/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system")
DAEMONS = {"qemu": ("virtqemud", "libvirtd"), "network": ("virtnetworkd", "libvirtd")}
RELOADED = "libvirt-reloaded"
"""The file in the run directory that the installer touches when it has told libvirt to look for hooks."""


def read(config: Config, store: Store, domains: list[DomainState] | None) -> Facts:
    """Return the facts; ``domains`` are all of libvirt's, None where it is not reachable."""
    guests = tuple(store.guests()[0])
    include = table.whole(guests, config, 1)
    should = nft.scratch_listing(table.text(include)) if include.paragraphs else None
    return Facts(
        guests,
        tuple(store.networks()),
        None if domains is None else tuple(_declaring(domains)),
        nft.plain_listing(),
        should,
        tuple(_hook(driver, store) for driver in DAEMONS),
        _flush(store),
        tuple(_forwarding()),
        tuple(_ignored_ipforward()),
        collect.listen_targets(),
        config.uplinks,
        tuple(_vetoes(guests, config, store)),
        tuple(_invalid(domains or [])),
    )


def _vetoes(guests: Iterable[Guest], config: Config, store: Store) -> Iterator[Veto]:
    """Yield what stands against forwards that running guests hold: it came after them."""
    running = [guest for guest in guests if guest.phase == "running"]
    facts = collect.host_facts(
        config, store.networks(), {name for guest in running for name in guest.networks}
    )
    listening = hostports.socket_facts()
    for guest in running:
        attached = attachments.find_attachments(guest.nics, facts)
        veto, _ = hostports.port_checks(config, attached, listening, hosts=guest.hosts)
        found = ((forward, veto(forward)) for forward in guest.forwards)
        yield from (Veto(guest.uuid, forward, reason) for forward, reason in found if reason)


def domains(config: Config) -> list[DomainState]:
    """Return libvirt's domains."""
    with api.connection(config.uri) as opened:
        return api.domains(opened)


def _declaring(states: list[DomainState]) -> Iterator[Domain]:
    for state in states:
        try:
            domain = parse_domain(state.xml)
        except VirtForwardError:
            continue
        if state.active and domain.declaration and domain.declaration.port_forwards:
            yield domain


def _invalid(states: list[DomainState]) -> Iterator[MetadataError]:
    for state in states:
        try:
            parse_domain(state.xml)
        except MetadataError as error:
            yield error
        except VirtForwardError:
            continue


def _hook(driver: str, store: Store) -> Hook:
    places = (f"{HOOKS}/{driver}", f"{HOOKS}/{driver}.d/virt-forward")
    path = next((place for place in places if MARK in collect.read_text(place)[:400]), places[0])
    ours = MARK in collect.read_text(path)[:400]
    changed = os.stat(path).st_ctime if ours else 0.0
    return Hook(driver, path, ours, os.access(path, os.X_OK), changed, _looked_at(driver, store))


def _looked_at(driver: str, store: Store) -> float:
    started = max(_started(daemon) for daemon in DAEMONS[driver])
    try:
        told = os.stat(os.path.join(store.path, RELOADED)).st_mtime
    except OSError:
        told = 0.0
    return max(started, told, *map(_reloaded, DAEMONS[driver])) if started else 0.0


def _started(daemon: str) -> float:
    """Return when a daemon was started, in seconds since the epoch; 0 without one (proc_pid_stat(5))."""
    pid = collect.read_text(f"/run/{daemon}.pid").strip()
    fields = collect.read_text(f"/proc/{pid}/stat").rpartition(")")[2].split() if pid.isdigit() else []
    if len(fields) < 20:
        return 0.0
    boot = next(
        (line for line in collect.read_text("/proc/stat").splitlines() if line.startswith("btime ")),
        "btime 0",
    )
    # Rounded up: a file made in the second of the start is taken for older.
    return int(boot.split()[1]) + int(fields[19]) / os.sysconf("SC_CLK_TCK") + 1


def _reloaded(daemon: str) -> float:
    """Return when systemd last reloaded a daemon, in seconds since the epoch; 0 where it has not."""
    shown = run(["systemctl", "show", f"{daemon}.service", "--property=ExecReload", "--timestamp=unix"])
    found = re.findall(r"start_time=\[@(\d+)\]", shown.stdout)
    # systemd tells whole seconds; a file made in that second is taken for older.
    return max(map(int, found), default=-1) + 1.0


def _flush(store: Store) -> Flush:
    path = next(filter(os.path.exists, RULESETS), RULESETS[-1])
    text = collect.read_text(path)
    return Flush(
        path,
        includes.flushes(text, _included),
        includes.included_after(text, store.include_path, _included),
        any(os.path.exists(f"{top}/nftables.service.d/virt-forward.conf") for top in DROP_INS),
        run(["systemctl", "-q", "is-active", "virt-forward.service"]).status == 0,
    )


def _included(pattern: str) -> Iterator[tuple[str, str]]:
    for path in sorted(glob.glob(os.path.join(INCLUDES, pattern))):
        yield path, collect.read_text(path)


def _forwarding() -> Iterator[Forwarding]:
    for device in sorted(collect.default_route_devices()):
        for version in (4, 6):
            values = [
                collect.read_text(f"/proc/sys/net/{path}").strip() for path in _switches(device, version)
            ]
            if any(values):
                yield Forwarding(device, version, any(value not in ("", "0") for value in values))


def _switches(device: str, version: int) -> tuple[str, ...]:
    """Return what makes the kernel forward what comes in by a device, any of them (ip-sysctl.rst).

    With IPv4 it is the device's own switch. With IPv6 that one tells a router from a host; packets
    are forwarded by the switch for all devices or, since Linux 6.17, by force_forwarding.
    """
    if version == 4:
        return (f"ipv4/conf/{device}/forwarding",)
    return ("ipv6/conf/all/forwarding", f"ipv6/conf/{device}/force_forwarding")


def _ignored_ipforward() -> Iterator[str]:
    words = run(["systemctl", "--version"]).stdout.split()
    version = int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
    if version < 256:
        return
    for name, text in collect.networkd_files().items():
        if any(line.strip().startswith("IPForward=") for line in text.splitlines()):
            yield name
