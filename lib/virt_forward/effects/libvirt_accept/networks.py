"""The libvirt networks of this host: those of our records, and those that our hook has not seen start."""

import os

from virt_forward.host import libvirt_networks
from virt_forward.model import Network
from virt_forward.state.snapshot import Snapshot


def known(state: Snapshot, bridges: set[str]) -> list[Network]:
    """Return the networks of our records, and libvirt's own word on ``bridges`` that are in none."""
    recorded = state.networks()
    missing = bridges - {network.bridge for network in recorded}
    return [*recorded, *libvirt_networks.active_on(missing)]


def may_exist() -> bool:
    """Tell whether libvirt may have made chains on this host: it has run networks, or can."""
    import shutil

    daemons = ("libvirtd", "virtqemud", "virtnetworkd")
    return os.path.isdir(libvirt_networks.DIRECTORY) or any(map(shutil.which, daemons))
