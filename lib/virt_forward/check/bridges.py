"""Reading the host's bridges: their ports, who wants their names, and whether br_netfilter is on."""

import os
import re
from collections.abc import Iterable, Iterator

from virt_forward.addresses import networkd
from virt_forward.check.facts import Clash
from virt_forward.config import Config
from virt_forward.effects import hairpin_port
from virt_forward.errors import VirtForwardError
from virt_forward.host import libvirt_networks, switches
from virt_forward.host.files import list_directory, read_text
from virt_forward.metadata.network import parse_network
from virt_forward.model import Guest, Network

NETWORKS = "/etc/libvirt/qemu/networks"
"""Where libvirt keeps the definitions of its networks, as NAME.xml."""

SYSFS = "/sys/class/net"


def ports() -> dict[str, str]:
    """Return the bridge of each bridge port (Documentation/ABI/testing/sysfs-class-net)."""
    names = list_directory(SYSFS)
    links = ((name, f"{SYSFS}/{name}/brport/bridge") for name in names)
    return {name: os.path.basename(os.readlink(path)) for name, path in links if os.path.islink(path)}


def clashes() -> Iterator[Clash]:
    """Yield the libvirt networks that want a bridge of networkd, or one that exists and is not theirs."""
    made = _netdevs()
    for network in _defined():
        active = os.path.exists(f"{libvirt_networks.DIRECTORY}/{network.name}.xml")
        if network.mode == "bridge" or not network.bridge:
            continue
        if network.bridge in made:
            yield Clash(network.name, network.bridge, f"networkd ({made[network.bridge]})")
        elif not active and os.path.isdir(f"{SYSFS}/{network.bridge}/bridge"):
            yield Clash(network.name, network.bridge, "the host, which exists already")


def _defined() -> Iterator[Network]:
    for name in sorted(list_directory(NETWORKS)):
        text = read_text(f"{NETWORKS}/{name}") if name.endswith(".xml") else ""
        try:
            if text:
                yield parse_network(text.encode())[0]
        except VirtForwardError:
            continue


_KIND = re.compile(r"^\s*Kind\s*=\s*bridge\s*$", re.MULTILINE | re.IGNORECASE)
_NAME = re.compile(r"^\s*Name\s*=\s*(\S+)\s*$", re.MULTILINE)


def _netdevs() -> dict[str, str]:
    """Return the bridges that networkd makes, each with the path of its file (systemd.netdev(5))."""
    files: dict[str, str] = {}
    for directory in reversed(networkd.DIRECTORIES):
        files |= {
            name: os.path.join(directory, name)
            for name in list_directory(directory)
            if name.endswith(".netdev")
        }
    texts = {path: read_text(path) for path in files.values()}
    return {
        found[1]: path for path, text in texts.items() if _KIND.search(text) and (found := _NAME.search(text))
    }


def without_hairpin(guests: Iterable[Guest], config: Config) -> Iterator[tuple[str, str]]:
    """Yield the UUIDs of guests that br_netfilter keeps from their own forwards, with the bridge port."""
    if config.hairpin is False or not any(switches.is_on(path) for path in hairpin_port.CALLS):
        return
    for guest in guests:
        for item in sorted(hairpin_port.ports([guest])):
            if hairpin_port.present(item) is False:
                yield guest.uuid, item.dev
