"""libvirt's status files of its active networks: its own word, which needs no connection to it."""

import os
from collections.abc import Iterable, Iterator

from virt_forward.errors import VirtForwardError
from virt_forward.host.files import list_directory, read_text
from virt_forward.model import Network

DIRECTORY = "/run/libvirt/network"
"""Where libvirt keeps the status of its active networks, as NAME.xml."""

DEFINED = "/etc/libvirt/qemu/networks"
"""Where it keeps the definitions of its networks, likewise."""


def current(recorded: Iterable[Network], names: Iterable[str]) -> dict[str, Network]:
    """Return the networks of our records by name; of those in ``names``, the status files count more.

    An event of a network may have been missed.
    """
    texts = (_status(f"{name}.xml") for name in sorted(names) if "/" not in name)
    active = [network for text in texts for network in parsed(text.encode())]
    return {network.name: network for network in (*recorded, *active)}


def active_on(bridges: set[str]) -> list[Network]:
    """Return the active networks on one of ``bridges``."""
    files = list_directory(DIRECTORY) if bridges else ()
    texts = (_status(name) for name in files if name.endswith(".xml"))
    # Parsing costs more than all else here, and hardly ever is a bridge a libvirt network's.
    likely = (text for text in texts if any(f"'{bridge}'" in text for bridge in bridges))
    return [network for text in likely for network in parsed(text.encode()) if network.bridge in bridges]


def _status(file: str) -> str:
    return read_text(os.path.join(DIRECTORY, file))


def in_directory(directory: str) -> Iterator[Network]:
    """Yield the networks in DIRECTORY or DEFINED, by the names of their files."""
    for name in sorted(list_directory(directory)):
        if name.endswith(".xml"):
            yield from parsed(read_text(os.path.join(directory, name)).encode())


def parsed(xml: bytes) -> Iterator[Network]:
    """Yield the network of an XML; nothing where it is none."""
    if not xml:
        return
    from virt_forward.metadata.network import parse_network

    try:
        yield parse_network(xml)[0]
    except VirtForwardError:
        return
