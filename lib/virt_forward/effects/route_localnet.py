"""The only writer of sysctls: route_localnet on guest bridges, for forwards on 127.0.0.1.

Without it the kernel drops the guest's answers to the host's loopback as martian. It also
lets guests address the host's loopback, which the table's guard chain forbids; so it is
switched on only after that chain is there, and off before it goes (ip-sysctl.rst).
"""

from collections.abc import Iterable

from virt_forward.host import switches
from virt_forward.state.store import Store

RECORD = "route_localnet"
"""The file in the run directory that names the bridges where we have switched it on."""


def _path(bridge: str) -> str:
    return f"/proc/sys/net/ipv4/conf/{bridge}/route_localnet"


def switch_off(store: Store, keep: Iterable[str]) -> None:
    """Switch it off where we had switched it on, but for the bridges to ``keep``."""
    ours = set((store.read(RECORD) or "").split())
    gone = ours - set(keep)
    for bridge in sorted(gone):
        _set(bridge, "0")
    if gone:
        store.write(RECORD, "\n".join(sorted(ours - gone)))


def switch_on(store: Store, bridges: Iterable[str]) -> None:
    """Switch it on for bridges, and remember those where somebody else had not done so."""
    ours = set((store.read(RECORD) or "").split())
    fresh = {bridge for bridge in bridges if bridge not in ours and switches.read(_path(bridge)) == "0"}
    if fresh:
        store.write(RECORD, "\n".join(sorted(ours | fresh)))
    failed = {bridge for bridge in sorted(fresh) if not _set(bridge, "1")}
    if failed:
        store.write(RECORD, "\n".join(sorted((ours | fresh) - failed)))


def _set(bridge: str, value: str) -> bool:
    return switches.turn(_path(bridge), value, "forwards on 127.0.0.1 do not work for guests on it")
