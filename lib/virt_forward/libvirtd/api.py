"""Access to libvirt by libvirt-python. Hooks never import it: a call to libvirt from a hook deadlocks."""

import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from virt_forward import text
from virt_forward.errors import VirtForwardError

LOOK = "see journalctl -u libvirtd (or virtqemud)"

PID_FILES = "/run"
"""The directory of the PID files of libvirt's daemons, NAME.pid."""

SYSTEMD = "/run/systemd/system"
"""A directory that exists if systemd is the service manager (sd_booted(3))."""


class DomainState(NamedTuple):
    """A domain of libvirt, with its XML: the live one if it is active. Only an active one has an ``id``."""

    name: str
    uuid: str
    active: bool
    xml: bytes
    id: int | None = None
    paused: bool = False


@contextmanager
def connection(uri: str, *, read_only: bool = False) -> Iterator[Any]:
    """Open a connection. Raises VirtForwardError if libvirt is not reachable.

    By polkit's default rules, anybody may open one that is ``read_only``, and nobody is asked for a password.
    """
    libvirt = module()
    try:
        opened = (libvirt.openReadOnly if read_only else libvirt.open)(uri)
    except libvirt.libvirtError as error:
        raise VirtForwardError(
            f"libvirt is not reachable at {text.plain(uri)}: {text.output(str(error))}",
            "start it (systemctl start libvirtd, or virtqemud), or set [libvirt] uri in the configuration",
        ) from None
    try:
        yield opened
    finally:
        opened.close()


def daemon_runs(uri: str) -> bool:
    """Tell whether a connection starts no daemon: systemd starts a stopped one on a connection to its socket.

    An administrator may have stopped libvirt on purpose, and its daemons exit when they are idle.
    Always true without systemd, and for URIs of other than the host's own daemons.
    """
    driver = re.match(r"(\w+):///system(?![^?])", uri)
    if not driver or not os.path.isdir(SYSTEMD):
        return True
    return any(_runs(name) for name in ("libvirtd", f"virt{driver[1]}d"))


def _runs(daemon: str) -> bool:
    """Tell whether the process in the PID file of a daemon is running; a killed daemon leaves the file."""
    try:
        with open(f"{PID_FILES}/{daemon}.pid", encoding="ascii") as file:
            pid = int(file.read(20))
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().rstrip("\n") == daemon
    except (OSError, ValueError):
        return False


def module() -> Any:
    """Return libvirt-python. Raises VirtForwardError if it is not installed."""
    try:
        import libvirt
    except ImportError:
        raise VirtForwardError("libvirt-python not found", "install the package python3-libvirt") from None
    # Errors are raised as exceptions; libvirt must not print them as well.
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    return libvirt


def domains(opened: Any, only: Collection[str] | None = None) -> list[DomainState]:
    """Return domains sorted by name: all, or those with a UUID in ``only`` that exist."""
    libvirt = module()
    try:
        listed = opened.listAllDomains() if only is None else _looked_up(libvirt, opened, only)
        states = [_state(libvirt, domain) for domain in listed]
    except libvirt.libvirtError as error:
        raise not_listed(error) from None
    return sorted(state for state in states if state)


def not_listed(error: Exception) -> VirtForwardError:
    """Return the error of a list of domains that libvirt did not give, or not whole."""
    return VirtForwardError(f"libvirt does not list its domains: {text.output(str(error))}", LOOK)


def is_undefined(libvirt: Any, error: Any) -> bool:
    """Tell whether an error of libvirt says that a domain does not exist, or not any more.

    Any other, such as a connection that broke, says nothing of the domain.
    """
    return bool(error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN)


def networks(opened: Any) -> list[bytes] | None:
    """Return the XML of each active network; None if libvirt's network driver is not reachable."""
    libvirt = module()
    try:
        active = opened.listAllNetworks(libvirt.VIR_CONNECT_LIST_NETWORKS_ACTIVE)
        return [network.XMLDesc(0).encode() for network in active]
    except libvirt.libvirtError:
        return None


def _looked_up(libvirt: Any, opened: Any, uuids: Collection[str]) -> Iterator[Any]:
    for uuid in uuids:
        try:
            yield opened.lookupByUUIDString(uuid)
        except libvirt.libvirtError as error:
            if not is_undefined(libvirt, error):
                raise


def _state(libvirt: Any, domain: Any) -> DomainState | None:
    try:
        active = bool(domain.isActive())
        number = domain.ID() if active else None
        paused = active and domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED
        xml = domain.XMLDesc(0).encode()
        return DomainState(domain.name(), domain.UUIDString(), active, xml, number, paused)
    except libvirt.libvirtError as error:
        if is_undefined(libvirt, error):
            return None
        raise
