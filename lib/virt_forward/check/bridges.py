"""Reading the host's bridges: their ports, who makes them and wants their names, and br_netfilter."""

import os
from collections.abc import Iterable, Iterator, Mapping

from virt_forward.check.facts import Clash
from virt_forward.config import Config
from virt_forward.effects import hairpin_port
from virt_forward.host import libvirt_networks, switches
from virt_forward.host.files import list_directory
from virt_forward.host.netdevs import netdevs
from virt_forward.model import Guest

SYSFS = "/sys/class/net"


def ports() -> dict[str, str]:
    """Return the bridge of each bridge port (Documentation/ABI/testing/sysfs-class-net)."""
    names = list_directory(SYSFS)
    links = ((name, f"{SYSFS}/{name}/brport/bridge") for name in names)
    return {name: os.path.basename(os.readlink(path)) for name, path in links if os.path.islink(path)}


def clashes(made: Mapping[str, str]) -> Iterator[Clash]:
    """Yield the libvirt networks that want a bridge of networkd, or one that exists and is not theirs.

    ``made`` are networkd's, each with the path of its file.
    """
    for network in libvirt_networks.in_directory(libvirt_networks.DEFINED):
        active = os.path.exists(f"{libvirt_networks.DIRECTORY}/{network.name}.xml")
        if network.mode == "bridge" or not network.bridge:
            continue
        if network.bridge in made:
            yield Clash(network.name, network.bridge, f"networkd ({made[network.bridge]})")
        elif not active and os.path.isdir(f"{SYSFS}/{network.bridge}/bridge"):
            yield Clash(network.name, network.bridge, "the host, which exists already")


def of_networkd() -> dict[str, str]:
    """Return the bridges that networkd makes, each with the path of its file."""
    return {name: each.path for name, each in netdevs().items() if each.kind == "bridge"}


def without_hairpin(guests: Iterable[Guest], config: Config) -> Iterator[tuple[str, str]]:
    """Yield the UUIDs of guests that br_netfilter keeps from their own forwards, with the bridge port."""
    if config.hairpin is False or not any(switches.is_on(path) for path in hairpin_port.CALLS):
        return
    for guest in guests:
        for item in sorted(hairpin_port.ports([guest])):
            if hairpin_port.present(item) is False:
                yield guest.uuid, item.dev
