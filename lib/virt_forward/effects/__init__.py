"""What is changed outside our table, each item recorded as ours and taken back.

item              what an effect is: the values, and what its module has to offer
record            the one record of what we have set
converge          from what is recorded to what is desired, in an order that survives a crash
EFFECTS           one module each:
route_localnet    the sysctl, for forwards on 127.0.0.1
hairpin_port      bridge ports in hairpin mode, for a guest's own forwards with br_netfilter
libvirt_accept    a rule in libvirt's own chains, for networks whose forward mode makes libvirt reject
"""

from __future__ import annotations

from virt_forward.effects import hairpin_port, libvirt_accept, route_localnet
from virt_forward.namedtuple import TYPE_CHECKING

if TYPE_CHECKING:
    from virt_forward.effects.item import Effect

EFFECTS: tuple[Effect, ...] = (route_localnet, hairpin_port, libvirt_accept)
