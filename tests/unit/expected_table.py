"""What the table should be after hook events on a fake host: what a fresh load makes of its guests."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from support.fake_host import FakeHost
from support.netns import BRIDGE, GATEWAY4, GATEWAY6, GUEST_MAC
from support.xml import uuid_of
from virt_forward.config import Config
from virt_forward.model import Endpoint, Forward, Guest, HostAddress, Nic
from virt_forward.ruleset import table


def guest(name: str, ip: str, *forwards: Forward) -> Guest:
    """Return a running guest as it should be in the table."""
    address = ip_address(ip)
    return Guest(
        uuid_of(name),
        name,
        forwards=forwards,
        nics=(Nic(GUEST_MAC, "bridge", BRIDGE),),
        hosts=(HostAddress(address),),
        endpoints=(Endpoint(address, BRIDGE, GUEST_MAC),),
        lans=((ip_network("10.10.0.0/24"), BRIDGE), (ip_network("fd10:10::/64"), BRIDGE)),
        gateways=(ip_address(GATEWAY4), ip_address(GATEWAY6)),
    )


def holds(host: FakeHost, *guests: Guest, config: Config | None = None) -> bool:
    """Tell whether the table is what a fresh load of these guests makes."""
    whole = table.whole(guests, config or Config(), host.nft.revision() or 0)
    if not whole.paragraphs:
        return host.nft.table is None
    return host.nft.plain_listing() == host.nft.scratch_listing(table.text(whole))


def include_loads_the_same(host: FakeHost) -> bool:
    """Tell whether the include file makes the table that is in the kernel."""
    text = (host.run_dir / "ruleset.nft").read_text()
    return host.nft.scratch_listing(text) == (host.nft.plain_listing() or "")
