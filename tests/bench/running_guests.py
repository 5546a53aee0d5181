"""Many running guests with ten forwards each: their XML, and what stands in for libvirt-python.

Linked as libvirt.py beside the package, it is what the service and its child processes import; the
environment says how many guests run.
"""

from __future__ import annotations

import os
import time
from typing import Any

EACH = 10
COUNT = "BENCH_GUESTS"
"""The name of the environment variable that says how many guests run."""

XML = """<domain type='kvm' id='{id}'><name>g{n}</name><uuid>{uuid}</uuid><metadata>
<vf:forwards xmlns:vf="urn:virt-forward:1"><vf:host ip="{ip}"/>
<vf:portForward proto="{proto}">{ranges}</vf:portForward></vf:forwards></metadata><devices>
<interface type='{kind}'><mac address='52:54:00:00:{high:02x}:{low:02x}'/><source {kind}='{source}'/>
<target dev='vnet{n}'/></interface></devices></domain>"""


def uuid(number: int) -> str:
    """Return the UUID of a guest."""
    return f"00000000-0000-4000-8000-{number:012x}"


def proto(number: int) -> str:
    """Return the protocol of a guest's forwards."""
    return "tcp" if number % 2 == 0 else "udp"


def first_port(number: int) -> int:
    """Return the first host port of a guest: two guests have the same, one with tcp, one with udp."""
    return 1024 + number // 2 * EACH


def guest_port(port: int) -> int:
    """Return the guest's port that a host port leads to."""
    return 1000 + port % 10


def address(number: int) -> str:
    """Return the address of a guest."""
    return f"10.10.{number + 256 >> 8}.{number + 256 & 255}"


def xml(number: int, *, start: int | None = None, network: bool = False) -> str:
    """Return the live XML of a guest with ten forwards; half of all have tcp, half udp."""
    first = first_port(number) if start is None else start
    return XML.format(
        n=number,
        id=number + 1,
        uuid=uuid(number),
        ip=address(number),
        proto=proto(number),
        ranges="".join(
            f'<vf:range start="{port}" to="{guest_port(port)}"/>' for port in range(first, first + EACH)
        ),
        high=number + 256 >> 8,
        low=number + 256 & 255,
        kind="network" if network else "bridge",
        source="bench" if network else "virbr0",
    )


class Domain:
    """A running domain, as libvirt-python has it."""

    def __init__(self, number: int) -> None:
        self._number = number

    def isActive(self) -> int:  # noqa: N802 - libvirt's name
        return 1

    def ID(self) -> int:  # noqa: N802
        return self._number + 1

    def state(self) -> list[int]:
        return [1, 1]  # VIR_DOMAIN_RUNNING, VIR_DOMAIN_RUNNING_BOOTED

    def name(self) -> str:
        return f"g{self._number}"

    def UUIDString(self) -> str:  # noqa: N802
        return uuid(self._number)

    def XMLDesc(self, _flags: int) -> str:  # noqa: N802
        return xml(self._number)


class Connection:
    """A connection to a libvirt with these domains and no networks, and without events."""

    def listAllDomains(self) -> list[Domain]:  # noqa: N802
        return [Domain(number) for number in range(int(os.environ[COUNT]))]

    def listAllNetworks(self, _flags: int) -> list[Any]:  # noqa: N802
        return []

    def close(self) -> None:
        pass

    def setKeepAlive(self, *_: int) -> None:  # noqa: N802
        pass

    def registerCloseCallback(self, *_: object) -> None:  # noqa: N802
        pass

    def domainEventRegisterAny(self, *_: object) -> None:  # noqa: N802
        pass


class libvirtError(Exception):  # noqa: N801
    """libvirt-python's error."""


VIR_DOMAIN_PAUSED = 3
VIR_CONNECT_LIST_NETWORKS_ACTIVE = 2
VIR_DOMAIN_EVENT_ID_LIFECYCLE, VIR_DOMAIN_EVENT_ID_METADATA_CHANGE = 0, 23
VIR_DOMAIN_EVENT_ID_DEVICE_ADDED, VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED = 22, 15


def open(_uri: str) -> Connection:  # noqa: A001 - libvirt's name
    """Connect."""
    return Connection()


openReadOnly = open  # noqa: N816


def registerErrorHandler(*_: object) -> None:  # noqa: N802
    """Do nothing: there are no errors."""


def virEventRegisterDefaultImpl() -> None:  # noqa: N802
    """Do nothing: there are no events."""


def virEventRunDefaultImpl() -> None:  # noqa: N802
    """Wait for events; there are none."""
    time.sleep(3600)
