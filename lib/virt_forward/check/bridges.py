"""Reading the host's bridges: their ports, who makes them and wants their names, and br_netfilter."""

import os
import re
from collections.abc import Iterable, Iterator

from virt_forward.check.facts import Clash
from virt_forward.config import Config
from virt_forward.effects import hairpin_port
from virt_forward.host import collect, libvirt_networks, switches
from virt_forward.host.files import list_directory, read_text
from virt_forward.model import Guest

SYSFS = "/sys/class/net"


def ports() -> dict[str, str]:
    """Return the bridge of each bridge port (Documentation/ABI/testing/sysfs-class-net)."""
    names = list_directory(SYSFS)
    links = ((name, f"{SYSFS}/{name}/brport/bridge") for name in names)
    return {name: os.path.basename(os.readlink(path)) for name, path in links if os.path.islink(path)}


def clashes() -> Iterator[Clash]:
    """Yield the libvirt networks that want a bridge of networkd, or one that exists and is not theirs."""
    made = netdevs()
    for network in libvirt_networks.in_directory(libvirt_networks.DEFINED):
        active = os.path.exists(f"{libvirt_networks.DIRECTORY}/{network.name}.xml")
        if network.mode == "bridge" or not network.bridge:
            continue
        if network.bridge in made:
            yield Clash(network.name, network.bridge, f"networkd ({made[network.bridge]})")
        elif not active and os.path.isdir(f"{SYSFS}/{network.bridge}/bridge"):
            yield Clash(network.name, network.bridge, "the host, which exists already")


_KIND = re.compile(r"^\s*Kind\s*=\s*bridge\s*$", re.MULTILINE | re.IGNORECASE)
_NAME = re.compile(r"^\s*Name\s*=\s*(\S+)\s*$", re.MULTILINE)


def netdevs() -> dict[str, str]:
    """Return the bridges that networkd makes, each with the path of its file (systemd.netdev(5))."""
    texts = {path: read_text(path) for path in collect.networkd_paths(".netdev").values()}
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
