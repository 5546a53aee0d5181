"""A host with guests in every state that a run directory can have one in, for the old hooks and for ours.

web     runs on the bridge           db      runs on the libvirt network "house", which rejects what is new
wire    runs, its address learned from the neighbour table
twin    runs, kept out of one port   late    prepared, its qemu not yet running
mail    its "started" was killed before nft ran: the file "unfinished"
ready   its "started" could not have the lock in time: a queued change
gone    its "stopped" could not have the lock in time: a queued change
"""

from __future__ import annotations

from pathlib import Path

from netns.support import PHASES, bridge_netfilter, mac_of
from support import netns, xml
from support.netns import Lab, Ns
from support.xml import port_forward

CONFIG = '[forward]\nlocalhost = true\nhairpin = "ports"\n'
DATA = Path(__file__).parent / "data"
HOUSE = xml.Network(
    "house", "virbr5", ip4="10.50.0.1", reservations=((mac_of(50), "10.50.0.5", "db"),)
)  # fmt: skip
LIBVIRT = """
table ip libvirt_network {
  chain forward { type filter hook forward priority filter; policy accept; jump guest_input; }
  chain guest_input {
    oif "virbr5" ip daddr 10.50.0.0/24 ct state established,related counter accept
    oif "virbr5" counter reject
  }
}
"""
"""What libvirt 11.3 has for the IPv4 guests of a network with forward mode nat, as far as it matters here."""

NUMBERS = {
    "web": 200,
    "db": 50,
    "late": 201,
    "twin": 202,
    "mail": 203,
    "ready": 204,
    "gone": 205,
    "new": 206,
    "wire": 207,
}
FORWARDS = {
    "web": [port_forward("8080:80", "443"), port_forward("9000", attributes='dev="enp1s0"')],
    "db": [port_forward("5432", "6000-6020:7000"), port_forward("5353:53", proto="udp")],
    "late": [port_forward("7000-9999:7000", proto="udp")],
    "twin": [port_forward("8080:8080", "8081")],
    "mail": [port_forward("2525:25"), port_forward("9000", attributes='source="192.0.2.0/24"')],
    "ready": [port_forward("3000:80")],
    "gone": [port_forward("3001:80")],
    "new": [port_forward("3002:80")],
    "wire": [port_forward("4000:80")],
}
RUNNING = ("web", "db", "wire", "twin", "mail", "ready")
"""The guests that run for libvirt, in the order of their starts; late joins them later."""


def address(name: str) -> str:
    """Return a guest's IPv4 address."""
    return "10.50.0.5" if name == "db" else f"10.10.0.{NUMBERS[name]}"


def domain(name: str, operation: str) -> str:
    """Return the XML that libvirt gives the qemu hook for an event of a guest."""
    mac = mac_of(NUMBERS[name])
    if name == "db":
        nic, host = xml.Nic(HOUSE.name, mac, "network", HOUSE.bridge), ""
    else:
        nic, host = xml.Nic(mac=mac), xml.host_ip(address(name)) if name != "wire" else ""
    return xml.domain(name, xml.forwards(host, *FORWARDS[name]), [nic], PHASES[operation][1])


def build(lab: Lab, *, libvirt: str = LIBVIRT) -> dict[str, Ns]:
    """Add the bridges, libvirt's rules and the guests to a lab; return the guests by name."""
    bridge_netfilter(lab.host, True)
    lab.add_bridge(HOUSE.bridge, "10.50.0.1/24")
    lab.host.nft(libvirt)
    lab.configure(CONFIG)
    guests = {name: _guest(lab, name) for name in NUMBERS}
    # The host's neighbour table has who has talked to it: once the port's refusal came back, however late.
    assert guests["wire"].ask(netns.GATEWAY4, 9, "udp") is None
    return guests


def _guest(lab: Lab, name: str) -> Ns:
    bridge, gateway = (HOUSE.bridge, "10.50.0.1") if name == "db" else (netns.BRIDGE, netns.GATEWAY4)
    return lab.guest(
        name, address(name), None, mac_of(NUMBERS[name]), bridge=bridge, gateway4=gateway
    )  # fmt: skip


def flag_files(lab: Lab) -> list[str]:
    """Return the kernel switches that forwards turn on in this host: route_localnet and hairpin mode."""
    bridges = [f"/proc/sys/net/ipv4/conf/{bridge}/route_localnet" for bridge in (netns.BRIDGE, HOUSE.bridge)]
    return bridges + [f"/sys/class/net/vnet{n}/brport/hairpin_mode" for n in range(len(NUMBERS))]


def flags(lab: Lab) -> str:
    """Return those switches, a digit each."""
    return "".join(lab.host.run(["cat", *flag_files(lab)]).out.split())
