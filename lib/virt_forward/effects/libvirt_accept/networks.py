"""The libvirt networks of this host: those of our records, and those that our hook has not seen start."""

import contextlib
import os
from collections.abc import Iterator

from virt_forward.errors import VirtForwardError
from virt_forward.host import collect
from virt_forward.model import Network
from virt_forward.state.store import Store


def known(store: Store, bridges: set[str]) -> list[Network]:
    """Return the networks of our records, and libvirt's own word on ``bridges`` that are in none."""
    recorded = store.networks()
    missing = bridges - {network.bridge for network in recorded}
    return [*recorded, *(network for network in _active(missing) if network.bridge in missing)]


def may_exist() -> bool:
    """Tell whether libvirt may have made chains on this host: it has run networks, or can."""
    import shutil

    daemons = ("libvirtd", "virtqemud", "virtnetworkd")
    return os.path.isdir(collect.LIBVIRT_NETWORKS) or any(map(shutil.which, daemons))


def _active(bridges: set[str]) -> Iterator[Network]:
    """Yield the active networks whose status mentions one of ``bridges``.

    Parsing costs more than all else here, and hardly ever is one of them a libvirt network's.
    """
    for text in _status() if bridges else ():
        if any(f"'{bridge}'" in text for bridge in bridges):
            from virt_forward.metadata.network import parse_network

            with contextlib.suppress(VirtForwardError):
                yield parse_network(text.encode())[0]


def _status() -> Iterator[str]:
    with contextlib.suppress(OSError):
        for entry in os.scandir(collect.LIBVIRT_NETWORKS):
            if entry.name.endswith(".xml"):
                yield collect.read_text(entry.path)
