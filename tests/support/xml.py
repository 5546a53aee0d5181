"""Domain and network XML as libvirt prints it to its hooks."""

from __future__ import annotations

import uuid as uuids
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from support.netns import BRIDGE, GUEST_MAC

URI = "urn:virt-forward:1"
Phase = Literal["prepare", "started", "stopped"]
Mode = Literal["nat", "route", "open", "bridge", ""]


def uuid_of(name: str) -> str:
    """Return the same UUID for the same name every time."""
    return str(uuids.uuid5(uuids.NAMESPACE_DNS, name))


def forwards(*children: str, attributes: str = "") -> str:
    """Wrap un-namespaced children in our root element, as ``virsh metadata --set`` leaves it."""
    inner = "\n      ".join(children)
    return f'<forwards xmlns="{URI}"{attributes and " " + attributes}>\n      {inner}\n    </forwards>'


def port_forward(*ranges: str, proto: str = "tcp", attributes: str = "") -> str:
    """Write a portForward; ranges: ``"8080:80"``, ``"443"``, ``"5000-5020:6000"``, ``"!5010"`` excludes."""
    inner = "".join(map(_range, ranges))
    return f'<portForward proto="{proto}"{attributes and " " + attributes}>{inner}</portForward>'


def _range(words: str) -> str:
    exclude, words = words.startswith("!"), words.lstrip("!")
    host, _, to = words.partition(":")
    start, _, end = host.partition("-")
    parts = [("start", start), ("end", end), ("to", to), ("exclude", "yes" if exclude else "")]
    return "<range " + " ".join(f'{key}="{value}"' for key, value in parts if value) + "/>"


def host_ip(ip: str, mac: str | None = None) -> str:
    return f'<host mac="{mac}" ip="{ip}"/>' if mac else f'<host ip="{ip}"/>'


@dataclass(frozen=True)
class Nic:
    """An interface of a domain; ``source`` is a bridge or, for type network, the network's name."""

    source: str = BRIDGE
    mac: str = GUEST_MAC
    type: Literal["bridge", "network", "user", "direct"] = "bridge"
    bridge: str = BRIDGE

    def xml(self, index: int, phase: Phase) -> str:
        target = f"\n      <target dev='vnet{index}'/>" if phase == "started" and self.type != "user" else ""
        alias = f"\n      <alias name='net{index}'/>" if phase == "started" else ""
        return f"""\
    <interface type='{self.type}'>
      <mac address='{self.mac}'/>{self._source(phase)}{target}
      <model type='virtio'/>{alias}
      <address type='pci' domain='0x0000' bus='0x01' slot='0x{index:02x}' function='0x0'/>
    </interface>"""

    def _source(self, phase: Phase) -> str:
        if self.type == "user":
            return ""
        if self.type == "direct":
            return f"\n      <source dev='{self.source}' mode='bridge'/>"
        if self.type == "bridge":
            return f"\n      <source bridge='{self.source}'/>"
        resolved = f" portid='{uuid_of(self.mac)}' bridge='{self.bridge}'" if phase == "started" else ""
        return f"\n      <source network='{self.source}'{resolved}/>"


def domain(
    name: str = "web", metadata: str = "", nics: Iterable[Nic] = (Nic(),), phase: Phase = "started",
    *, uuid: str | None = None, number: int = 1,
) -> str:  # fmt: skip
    """Print a domain as its hook gets it; vnet names and resolved bridges are there only while it runs."""
    live = f" id='{number}'" if phase == "started" else ""
    interfaces = "\n".join(nic.xml(index, phase) for index, nic in enumerate(nics))
    inside = f"\n  <metadata>\n    {OSINFO}\n    {metadata}\n  </metadata>"
    return f"""\
<domain type='kvm'{live}>
  <name>{name}</name>
  <uuid>{uuid or uuid_of(name)}</uuid>{inside}
  <memory unit='KiB'>1048576</memory>
  <currentMemory unit='KiB'>1048576</currentMemory>
  <vcpu placement='static'>1</vcpu>
  <resource>
    <partition>/machine</partition>
  </resource>
  <os>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <boot dev='hd'/>
  </os>
  <features>
    <acpi/>
    <apic/>
  </features>
  <clock offset='utc'/>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='/var/lib/libvirt/images/{name}.qcow2'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <controller type='pci' index='0' model='pcie-root'/>
{interfaces}
    <serial type='pty'>
      <target type='isa-serial' port='0'/>
    </serial>
    <memballoon model='virtio'/>
  </devices>
  <seclabel type='dynamic' model='dac' relabel='yes'/>
</domain>
"""


OSINFO = (
    '<libosinfo:libosinfo xmlns:libosinfo="http://libosinfo.org/xmlns/libvirt/domain/1.0">'
    '<libosinfo:os id="http://debian.org/debian/12"/></libosinfo:libosinfo>'
)


@dataclass(frozen=True)
class Network:
    """A libvirt network; reservations are (mac, ip, name) of its ``<dhcp><host>``."""

    name: str = "default"
    bridge: str = "virbr0"
    mode: Mode = "nat"
    ip4: str = "192.168.122.1"
    ip6: str | None = None
    reservations: tuple[tuple[str, str, str], ...] = ()

    def xml(self) -> str:
        forward = f"\n  <forward mode='{self.mode}'/>" if self.mode else ""
        return f"""\
<network>
  <name>{self.name}</name>
  <uuid>{uuid_of("network " + self.name)}</uuid>{forward}
  <bridge name='{self.bridge}' stp='on' delay='0'/>
  <mac address='52:54:00:70:e5:01'/>{self._ips() if self.mode != "bridge" else ""}
</network>"""

    def _ips(self) -> str:
        hosts = "".join(
            f"\n      <host mac='{mac}' name='{name}' ip='{ip}'/>" for mac, ip, name in self.reservations
        )
        start = self.ip4.rsplit(".", 1)[0]
        v4 = f"""
  <ip address='{self.ip4}' netmask='255.255.255.0'>
    <dhcp>
      <range start='{start}.2' end='{start}.254'/>{hosts}
    </dhcp>
  </ip>"""
        v6 = f"\n  <ip family='ipv6' address='{self.ip6}' prefix='64'>\n  </ip>" if self.ip6 else ""
        return v4 + v6


def network_hook(network: Network, port_of: str | None = None, mac: str = GUEST_MAC) -> str:
    """Print the network hook's stdin; with ``port_of`` that domain's port comes along."""
    port = f"\n{_port(network, port_of, mac)}" if port_of else ""
    return f"<hookData>\n{network.xml()}{port}\n</hookData>\n"


def _port(network: Network, owner: str, mac: str) -> str:
    plug = "bridge" if network.mode == "bridge" else "network"
    return f"""\
<networkport>
  <uuid>{uuid_of(mac)}</uuid>
  <owner>
    <name>{owner}</name>
    <uuid>{uuid_of(owner)}</uuid>
  </owner>
  <mac address='{mac}'/>
  <plug type='{plug}' bridge='{network.bridge}'/>
</networkport>"""
