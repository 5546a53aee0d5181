"""A host whose libvirt networks are made of namespaces, with the very rules libvirt had made for them."""

from __future__ import annotations

from typing import Literal

from netns.libvirtnet import DATA
from netns.support import bridge_netfilter
from support import xml
from support.netns import Lab, Ns
from support.proc import Done

Backend = Literal["iptables", "nftables"]
BACKENDS: tuple[Backend, ...] = ("iptables", "nftables")
VERSION = {"iptables": "9.0", "nftables": "11.3"}
MAC = "52:54:00:00:01:05"


def mac_on(bridge: str) -> str:
    return f"52:54:00:00:0{bridge[-1]}:05" if bridge != "virbr5" else MAC


ADDRESS, MOVED, ADDRESS6 = "10.50.0.5", "10.50.0.9", "fd50::5"
NETWORKS = {"virbr5": "50", "virbr6": "60", "virbr7": "70", "virbr8": "80"}
WEB = xml.port_forward("8080:80")


class LibvirtTestbed:
    """The networks house (nat), wide (route), open one and alone (isolated), and guests on them."""

    def __init__(self, lab: Lab, backend: Backend) -> None:
        self.lab, self.backend, self.host, self.client = lab, backend, lab.host, lab.client
        self.data = DATA / VERSION[backend]
        self.running: dict[str, None] = {}
        self.as_started = False
        bridge_netfilter(self.host, False)
        for bridge, number in NETWORKS.items():
            lab.add_bridge(bridge, f"10.{number}.0.1/24", f"fd{number}::1/64")
            self.guest(f"on-{bridge}", bridge, 5, mac_on(bridge))
        self.guest("second", "virbr5", 6, SECOND.mac)
        self.rebuild()

    def rebuild(self, updated: bool = False) -> None:
        """Make libvirt's rules as they were when all networks had started, or after a net-update of house."""
        suffix = "-updated" if updated else ""
        if self.backend == "iptables":
            for program in ("iptables", "ip6tables"):
                text = (self.data / f"{program}-save{suffix}").read_text()
                self.host.run([f"{program}-restore"], stdin=text)
        else:
            tables = "".join(f"add table {f} libvirt_network\ndelete table {f} libvirt_network\n" for f in IP)
            self.host.nft(tables + (self.data / f"{'updated' if updated else 'started'}.nft").read_text())

    def push_down(self, bridge: str = "virbr5") -> None:
        """Insert what libvirt inserts when it makes its rules anew: above everything that is there."""
        for family in IP:
            if self.backend == "iptables":
                words = ["-I", "LIBVIRT_FWI", "-o", bridge, "-j", "REJECT"]
                self.host.run([PROGRAM[family], "-w", "5", *words])
            else:
                self.host.nft(
                    f"insert rule {family} libvirt_network guest_input oif {bridge} counter reject\n"
                )

    def admitting(self, family: str = "ip") -> list[str]:
        """Return libvirt's chain from the top, the lines with our comment marked by nothing else."""
        if self.backend == "iptables":
            lines = self.host.run([PROGRAM[family], "-w", "5", "-S", "LIBVIRT_FWI"]).out.splitlines()[1:]
        else:
            lines = self.host.ruleset("chain", family, "libvirt_network", "guest_input").splitlines()[2:-2]
        return [line.strip() for line in lines]

    def rules(self, family: str = "ip") -> list[str]:
        """Return the bridges that rules of ours in libvirt's chain admit to."""
        found = [line for line in self.admitting(family) if "virt-forward" in line]
        return [bridge for line in found for bridge in NETWORKS if bridge in line]

    def reset(self) -> None:
        """Stop all guests; let libvirt's networks be as they were in the beginning."""
        for name in list(self.running):
            self.stop(name)
        if not self.as_started:
            self.network("started", "started")

    def network(self, file: str, operation: str, name: str = "house", *, check: bool = True) -> Done:
        """Run the network hook with what libvirt had given it."""
        self.as_started = (file, operation) == ("started", "started")
        sub = "end" if operation == "stopped" else "begin"
        text = (self.data / f"{file}.xml").read_text()
        return self.lab.hook("network", name, operation, sub, xml=text, check=check)

    def guest(self, name: str, bridge: str, number: int, mac: str) -> None:
        """Plug a guest into a bridge; a web server runs on it."""
        ip = NETWORKS[bridge]
        made = self.lab.guest(
            name, f"10.{ip}.0.{number}", f"fd{ip}::{number}", mac, bridge=bridge,
            gateway4=f"10.{ip}.0.1", gateway6=f"fd{ip}::1",
        )  # fmt: skip
        made.serve("tcp", 80, name=name)

    def event(
        self, operation: str, *children: str, name: str = "inner", nics: Nics = (), check: bool = True
    ) -> Done:
        """Run the qemu hook for a guest on house; its IPv6 address stands in its metadata."""
        sub, phase = EVENTS[operation]
        metadata = xml.forwards(*(children or (xml.host_ip(ADDRESS6), WEB)))
        text = xml.domain(name, metadata, nics or (HOUSE,), phase)
        return self.lab.hook("qemu", name, operation, sub, xml=text, check=check)

    def start(self, *children: str, name: str = "inner", nics: Nics = ()) -> None:
        self.running[name] = None
        self.event("started", *children, name=name, nics=nics)

    def stop(self, name: str = "inner") -> None:
        self.running.pop(name, None)
        self.event("stopped", name=name)

    def asks(self, ns: Ns | None = None, host: str = "192.0.2.1", port: int = 8080) -> str | None:
        """Ask from outside, or from a place; return who answered, None for a refusal."""
        answer = (ns or self.client).ask(host, port)
        return answer.name if answer else None


IP = ("ip", "ip6")
PROGRAM = {"ip": "iptables", "ip6": "ip6tables"}
Nics = tuple[xml.Nic, ...]
HOUSE = xml.Nic("house", MAC, "network", "virbr5")
SECOND = xml.Nic("house", "52:54:00:00:01:06", "network", "virbr5")
INNER = "on-virbr5"
EVENTS: dict[str, tuple[str, xml.Phase]] = {
    "prepare": ("begin", "prepare"),
    "started": ("begin", "started"),
    "reconnect": ("begin", "started"),
    "stopped": ("end", "stopped"),
    "release": ("end", "stopped"),
}
