"""The only writer of bridge port flags: hairpin mode for guests' ports, where the configuration asks for it.

With br_netfilter a guest's packet to its own forward comes back to the very port it left,
and a bridge sends nothing back there unless the port is in hairpin mode (bridge(8)).
"""

import os
from collections.abc import Iterable, Iterator

from virt_forward.config import Config
from virt_forward.host import switches
from virt_forward.model import Guest
from virt_forward.state.store import Store

RECORD = "hairpin"
"""The file in the run directory that names the ports that we have put into hairpin mode."""

CALLS = tuple(f"/proc/sys/net/bridge/bridge-nf-call-{name}" for name in ("iptables", "ip6tables"))


def follow(
    store: Store, config: Config, before: Iterable[Guest | None], after: Iterable[Guest | None]
) -> None:
    """Put the ports of guests that have forwards into hairpin mode, and take others out of it again.

    Raises StateError where it cannot be written down; then nothing is switched on.
    """
    ours = set((store.read(RECORD) or "").split())
    asked = config.hairpin == "ports"
    if not asked and not ours:
        return
    now = set(_ports(after))
    wanted = now if asked and _bridges_call_us() else set()
    fresh = {port for port in wanted - ours if switches.read(_flag(port)) == "0"}
    stale = ours & (now | set(_ports(before))) - wanted
    for port in sorted(stale):
        _set(port, "0")
    left = {port for port in ours - stale if os.path.exists(_flag(port))} | fresh
    if left != ours:
        _record(store, left)
    failed = {port for port in sorted(fresh) if not _set(port, "1")}
    if failed:
        _record(store, left - failed)


def _record(store: Store, ports: set[str]) -> None:
    if ports:
        store.write(RECORD, "\n".join(sorted(ports)))
    else:
        store.remove(RECORD)


def _ports(guests: Iterable[Guest | None]) -> Iterator[str]:
    """Yield the ports of running guests that have forwards.

    libvirt gives a tap device its guest's MAC address, but for the first byte, which is fe
    (or fa, where the guest's is fe): virNetDevTapCreateInBridgePort().
    """
    for guest in guests:
        if guest and guest.phase == "running" and guest.forwards:
            for bridge, mac in {(endpoint.bridge, endpoint.mac) for endpoint in guest.endpoints}:
                first = "fa" if mac.startswith("fe") else "fe"
                yield from _ports_with(bridge, first + mac[2:])


def _ports_with(bridge: str, mac: str) -> Iterator[str]:
    try:
        names = os.listdir(f"/sys/class/net/{bridge}/brif")
    except OSError:
        return
    yield from (name for name in names if switches.read(f"/sys/class/net/{name}/address") == mac)


def _bridges_call_us() -> bool:
    return any(switches.read(path) == "1" for path in CALLS)


def _flag(port: str) -> str:
    return f"/sys/class/net/{port}/brport/hairpin_mode"


def _set(port: str, value: str) -> bool:
    return switches.turn(_flag(port), value, "the guest may not reach its own forwards")
