"""Reading the facts: the edge of ``virt-forward check``. Nothing of the host is changed."""

import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

from virt_forward.addresses.attachments import HostFacts, find_attachments
from virt_forward.addresses.portchecks import PortChecks
from virt_forward.check import bridges, includes, reach
from virt_forward.check.clone import run as run_clone
from virt_forward.check.clone.verdict import Asked, Report
from virt_forward.check.facts import Definition, Facts, Flush, Forwarding, Hook, Invalid, Veto
from virt_forward.config import Config
from virt_forward.errors import VirtForwardError
from virt_forward.host import collect, nft, nftables_service, starter, systemd
from virt_forward.host.collect import Reader
from virt_forward.host.files import read_text
from virt_forward.host.process import run
from virt_forward.libvirtd import api, metadata
from virt_forward.libvirtd.api import DomainState
from virt_forward.metadata.domain import MetadataError, parse_domain
from virt_forward.model import Domain, Forward, Guest, Network
from virt_forward.ruleset import table
from virt_forward.state.store import Store

HOOKS = "/etc/libvirt/hooks"
MARK = "# virt-forward hook"
PACKAGED_HOOKS = "/usr/lib/virt-forward/hooks.sh"
"""How the Debian package puts its hooks in place; install.sh installs no such file (debian/rules)."""

INCLUDES = "/etc"
"""The directory of relative includes (nft(8), --includepath)."""

DROP_INS = ("/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system")
DAEMONS = {"qemu": ("virtqemud", "libvirtd"), "network": ("virtnetworkd", "libvirtd")}
RELOAD_MARK = "libvirt-reloaded"
"""The file in the run directory that the installer touches after it has reloaded libvirt."""

RELOADED = "7b05ebc668384222baa8881179cfda54"
"""SD_MESSAGE_UNIT_RELOADED of systemd's sd-messages.h."""


TRIES = 3
"""How often the facts are read until the table has not changed meanwhile."""


class Defined(NamedTuple):
    """What libvirt says of all domains: ``configured`` is as of ``metadata.configurations``."""

    domains: Sequence[DomainState] = ()
    configured: Mapping[str, bytes] = MappingProxyType({})


def read_facts(
    config: Config,
    store: Store,
    defined: Defined | None,
    explained: frozenset[str] = frozenset(),
    tell: Callable[[str], None] = lambda _: None,
) -> Facts:
    """Return the facts; ``defined`` is None if libvirt is not reachable.

    ``explained`` are the UUIDs of the guests that are explained. ``tell`` is called with the name of each
    part that may take a while. All is read again if the table has changed meanwhile: what is of two
    revisions would differ though nothing is wrong.
    """
    for _ in range(TRIES):
        tell("reading the table and the records")
        with store.open(create=False) as state:
            revision = state.revision
            guests, networks = tuple(state.guests().values()), tuple(state.networks())
        facts = _facts_about(guests, networks, config, store, defined, explained=explained, tell=tell)
        with store.peek() as now:
            if now is None or now.revision == revision:
                break
    return facts


def _facts_about(  # noqa: PLR0913 - each is another thing that is known already
    guests: tuple[Guest, ...],
    networks: tuple[Network, ...],
    config: Config,
    store: Store,
    defined: Defined | None,
    *,
    explained: frozenset[str],
    tell: Callable[[str], None],
) -> Facts:
    include = table.whole(guests, config, 1)
    domains, configured = defined or Defined()
    running, invalid = parsed(domains, configured)
    actual = nft.plain_listing()
    expected = _expected(table.replacement(include), actual) if include.paragraphs else None
    tell("asking the guests")
    responses = reach.responses(guests)
    tell("following packets in a copy of the host")
    asked = [
        (item.endpoint, item.forward.to)
        for item in responses
        if item.answer == "filtered" and not item.excuse
    ]
    report, unverified = _follow(guests, config, explained, asked)
    tell("reading hooks, units and configuration")
    made = bridges.of_networkd()
    return Facts(
        guests,
        networks,
        None if defined is None else tuple(running),
        actual,
        expected,
        tuple(_hook(driver, store) for driver in DAEMONS),
        _flush(store),
        tuple(_forwarding()),
        tuple(_ignored_ipforward()),
        collect.listen_targets(),
        tuple(_vetoes(guests, config, networks)),
        tuple(invalid),
        config,
        report,
        unverified,
        responses,
        bridges.ports(),
        tuple(bridges.clashes(made)),
        tuple(bridges.without_hairpin(guests, config)),
        systemd.version(),
        frozenset(state.uuid for state in domains if state.paused),
        frozenset(made),
        _networkd(),
        os.path.exists(PACKAGED_HOOKS),
    )


def _expected(text: str, actual: str | None) -> str:
    """Return how nft lists the expected table; the actual listing where no namespace can be made for it."""
    try:
        return nft.scratch_listing(text)
    except VirtForwardError:
        return actual or text


def _follow(
    guests: Iterable[Guest], config: Config, explained: frozenset[str], asked: Iterable[Asked]
) -> tuple[Report, str]:
    """Return what becomes of packets, or in words why that cannot be tried."""
    try:
        return run_clone.report(guests, config, explained, asked), ""
    except VirtForwardError as error:
        return Report(), "; ".join(error.messages)


def _vetoes(guests: Iterable[Guest], config: Config, networks: Iterable[Network]) -> Iterator[Veto]:
    """Yield the host's vetoes against open forwards: their reasons are newer than the forwards."""
    running = [guest for guest in guests if guest.phase == "running"]
    reader = Reader(config, lambda: networks)
    for guest in running:
        found = reader.complete(partial(_reasons, guest, config), guest.nics)
        yield from (Veto(guest.uuid, forward, reason) for forward, reason in found if reason)


def _reasons(guest: Guest, config: Config, facts: HostFacts) -> list[tuple[Forward, str | None]]:
    """Return the forwards of a guest, each with what the host has against it."""
    attachments = find_attachments(guest.nics, facts)
    checks = PortChecks(config, attachments, facts, hosts=guest.hosts)
    return [(forward, checks.veto(forward)) for forward in guest.forwards]


def defined(config: Config) -> Defined:
    """Return all domains of libvirt. Raises VirtForwardError if it is not reachable."""
    with api.connection(config.uri) as opened:
        return Defined(api.domains(opened), metadata.configurations(opened))


def parsed(
    states: Iterable[DomainState], configured: Mapping[str, bytes]
) -> tuple[list[Domain], list[Invalid]]:
    """Return the running domains that declare forwards, and what is wrong with the metadata of any domain."""
    running: list[Domain] = []
    invalid: list[Invalid] = []
    for state in states:
        xmls: dict[Definition, bytes] = {"live" if state.active else "only": state.xml}
        if state.uuid in configured:
            xmls["config"] = configured[state.uuid]
        for definition, xml in xmls.items():
            try:
                domain = parse_domain(xml)
            except MetadataError as error:
                invalid.append(Invalid(error, definition))
            except VirtForwardError:
                continue
            else:
                if definition == "live" and domain.declaration and domain.declaration.port_forwards:
                    running.append(domain)
    return running, invalid


def _hook(driver: str, store: Store) -> Hook:
    paths = (f"{HOOKS}/{driver}", f"{HOOKS}/{driver}.d/virt-forward")
    path = next((path for path in paths if MARK in read_text(path)[:400]), paths[0])
    ours = MARK in read_text(path)[:400]
    changed = os.stat(path).st_ctime if ours else 0.0
    daemon = next(filter(_started, DAEMONS[driver]), "")
    loaded_at = _loaded_at(driver, store)
    if daemon and changed > loaded_at:
        loaded_at = max(loaded_at, _logged_reload(daemon, changed))
    return Hook(driver, path, ours, os.access(path, os.X_OK), changed, loaded_at, daemon)


def _logged_reload(daemon: str, since: float) -> float:
    """Return when the journal says that a daemon was last reloaded, 0 if not since then.

    systemd itself forgets it when it reloads its units, as at each installation of a package.
    """
    words = ["journalctl", "-q", "-o", "short-unix", "-n", "1", f"--since=@{int(since)}"]
    shown = run([*words, f"--unit={daemon}.service", f"MESSAGE_ID={RELOADED}"]).stdout
    found = re.match(r"\d+\.\d+(?= )", shown)
    return float(found[0]) if found else 0.0


def _loaded_at(driver: str, store: Store) -> float:
    started = max(_started(daemon) for daemon in DAEMONS[driver])
    try:
        reloaded = os.stat(os.path.join(store.path, RELOAD_MARK)).st_mtime
    except OSError:
        reloaded = 0.0
    return max(started, reloaded, *map(_reloaded, DAEMONS[driver])) if started else 0.0


def _started(daemon: str) -> float:
    """Return when a daemon was started, in seconds since the epoch; 0 without one (proc_pid_stat(5))."""
    pid = read_text(f"/run/{daemon}.pid").strip()
    ticks = starter.start_ticks(read_text(f"/proc/{pid}/stat")) if pid.isdigit() else ""
    if not ticks:
        return 0.0
    boot = next(
        (line for line in read_text("/proc/stat").splitlines() if line.startswith("btime ")),
        "btime 0",
    )
    # Rounded up: a file changed in the same second counts as older.
    return int(boot.split()[1]) + int(ticks) / os.sysconf("SC_CLK_TCK") + 1


def _reloaded(daemon: str) -> float:
    """Return when systemd last reloaded a daemon, in seconds since the epoch; 0 if it never did."""
    shown = run(["systemctl", "show", f"{daemon}.service", "--property=ExecReload", "--timestamp=unix"])
    found = re.findall(r"start_time=\[@(\d+)\]", shown.stdout)
    # systemd prints whole seconds; a file changed in the same second counts as older.
    return max(map(int, found), default=-1) + 1.0


def _flush(store: Store) -> Flush:
    path = nftables_service.ruleset_path()
    text = read_text(path)
    return Flush(
        path,
        includes.flushes(text, _included),
        includes.included_after(text, store.include_path, _included),
        any(os.path.exists(f"{top}/nftables.service.d/virt-forward.conf") for top in DROP_INS),
        systemd.is_active("virt-forward.service"),
    )


def _included(pattern: str) -> Iterator[tuple[str, str]]:
    for path in sorted(glob.glob(os.path.join(INCLUDES, pattern))):
        yield path, read_text(path)


def _forwarding() -> Iterator[Forwarding]:
    for device in sorted(collect.default_route_devices()):
        for version in (4, 6):
            values = [read_text(f"/proc/sys/net/{path}").strip() for path in _switches(device, version)]
            if any(values):
                yield Forwarding(device, version, any(value not in ("", "0") for value in values))


def _switches(device: str, version: int) -> tuple[str, ...]:
    """Return the sysctls, any of which makes the kernel forward packets from a device (ip-sysctl.rst).

    For IPv4 it is the one of the device. For IPv6 that one only makes the host a router there; packets
    are forwarded by the one for all devices or, since Linux 6.17, by force_forwarding.
    """
    if version == 4:
        return (f"ipv4/conf/{device}/forwarding",)
    return ("ipv6/conf/all/forwarding", f"ipv6/conf/{device}/force_forwarding")


def _networkd() -> tuple[bool, bool]:
    if not systemd.is_manager():
        return True, True
    return systemd.is_active(systemd.NETWORKD), systemd.is_enabled(systemd.NETWORKD)


def _ignored_ipforward() -> Iterator[str]:
    if systemd.version() < 256:
        return
    for name, text in collect.networkd_files().items():
        if any(line.strip().startswith("IPForward=") for line in text.splitlines()):
            yield name
