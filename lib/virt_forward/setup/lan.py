"""A wired NIC in a bridge: guests are on the LAN, and the host's own addresses move to the bridge."""

from collections.abc import Iterator
from posixpath import basename

from virt_forward.addresses import networkd
from virt_forward.errors import VirtForwardError
from virt_forward.setup import choose
from virt_forward.setup.facts import Link, SetupFacts
from virt_forward.setup.options import File, Options
from virt_forward.setup.routed import DIRECTORY, MARK, netdev

OWN = ("Match", "Link")
"""Sections of the NIC's file that stay with the NIC; all others are its addressing, which moves."""


def nic(name: str, facts: SetupFacts, yes: bool) -> Link:
    """Return the NIC. Raises VirtForwardError if it cannot be in a bridge, or if that has to be confirmed."""
    link = facts.link(name)
    if link is None:
        raise VirtForwardError(
            f"--lan {name}: this host has no such interface", "ip -br link lists the interfaces"
        )
    if link.wifi:
        raise VirtForwardError(
            f"--lan {name}: is a Wi-Fi interface, which cannot be in a bridge with guests: the access point "
            "accepts frames from the MAC address that has associated only, and drops those of the guests",
            "leave --lan out: guests then reach the network through this host, by NAT",
        )
    if not link.ethernet or link.kind in ("bridge", "tun"):
        raise VirtForwardError(f"--lan {name}: is no wired NIC", "name an Ethernet interface")
    if link.master:
        raise VirtForwardError(
            f"--lan {name}: is part of {link.master} already", "attach guests to that if it is a bridge"
        )
    if facts.uplinks == (name,) and not yes:
        raise VirtForwardError(f"--lan {name}: is {only_way()}", "have a console at hand, then say --yes")
    return link


def only_way() -> str:
    """Return what happens to the only NIC of a host."""
    return (
        "this host's only way to the network, and its addresses move to the bridge: once networkd applies "
        "that, connections pause for some seconds, and an ssh session ends if the address changes"
    )


def files(bridge: str, link: Link, options: Options, facts: SetupFacts) -> Iterator[File]:
    """Yield the bridge's files and the NIC's, which is the first to match the NIC."""
    # With the NIC's own MAC address the bridge gets the lease that the NIC had.
    mac = options.mac or link.mac
    stem = choose.file_name({"Name": bridge, "Type": "bridge", "Kind": "bridge", "MACAddress": mac}, facts)
    properties = {"Name": link.name, "Type": "ether", "MACAddress": link.mac}
    port = choose.file_name(properties, facts, basename(link.network_file))
    yield File(f"{DIRECTORY}/{stem}.netdev", netdev(bridge, mac))
    yield File(f"{DIRECTORY}/{stem}.network", f"{MARK}\n[Match]\nName={bridge}\n\n{_addressing(link, facts)}")
    yield File(
        f"{DIRECTORY}/{port}.network", f"{MARK}\n[Match]\nName={link.name}\n\n[Network]\nBridge={bridge}\n"
    )


def _addressing(link: Link, facts: SetupFacts) -> str:
    content = facts.networks.get(basename(link.network_file), "")
    sections = [(name, items) for name, items in networkd.parse_ini(content) if name not in OWN]
    if sections:
        written = (
            "\n".join([f"[{name}]", *(f"{key}={value}" for key, value in items)]) for name, items in sections
        )
        return "\n\n".join(written) + "\n"
    lines = ["[Network]"]
    static = [] if link.dynamic else [address for address in link.addresses if address.version == 4]
    lines += [f"Address={address}" for address in static] or ["DHCP=yes"]
    if static:
        lines += [f"Gateway={gateway}" for gateway in link.gateways if gateway.version == 4]
        lines += [f"DNS={server}" for server in facts.nameservers]
    return "\n".join(lines) + "\n"


def notes(bridge: str, link: Link, facts: SetupFacts) -> Iterator[str]:
    """Yield what happens, and what the person has to do where another program configures the NIC."""
    if facts.uplinks == (link.name,):
        yield f"{link.name} is {only_way()}"
    if link.manager == "NetworkManager":
        yield (
            f"NetworkManager configures {link.name}, and has to leave it alone before networkd takes it: "
            f'a file /etc/NetworkManager/conf.d/{bridge}.conf with the lines "[keyfile]" and '
            f'"unmanaged-devices=interface-name:{link.name}", then nmcli general reload'
        )
    if link.manager == "ifupdown":
        yield f"/etc/network/interfaces configures {link.name}: remove it there before networkd takes it"
    yield (
        f"guests on {bridge} are on the LAN, with addresses of their own, and need no forwards; for guests "
        "behind this host's address, run virt-forward init without --lan"
    )
