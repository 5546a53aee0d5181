"""Ending the connections that the table would now send elsewhere, and those that began without it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from virt_forward.claims import flows
from virt_forward.errors import VirtForwardError
from virt_forward.host import conntrack, log
from virt_forward.model import Address, Guest
from virt_forward.namedtuple import TYPE_CHECKING

if TYPE_CHECKING:
    from virt_forward.host.collect import Reader


def end(
    before: Iterable[Guest | None],
    after: Iterable[Guest],
    present: Collection[Guest],
    host: Callable[[], Reader],
    *,
    loaded: bool,
) -> None:
    """End the flows that ``after`` would send elsewhere than ``before``; a failure is logged.

    UDP flows that clients have opened to the host's own ports end where a forward was added; with
    ``loaded``, there may have been no table, and they end on all forwards of ``present``.
    """
    if conntrack.is_empty():
        return
    old, new, all_present = map(_pairs, (before, after, present))
    opened = all_present if loaded else all_present - old
    own: frozenset[Address] = frozenset()
    if any(forward.proto == "udp" for forward, _ in opened):
        try:
            own = host().own_addresses() - {ip for guest in present for ip in guest.gateways}
        except VirtForwardError as error:
            log.warning(str(error))
    problem = conntrack.end_flows(old, new, opened, own)
    if problem:
        log.warning(problem)


def _pairs(guests: Iterable[Guest | None]) -> frozenset[flows.Pair]:
    return frozenset(pair for guest in guests for pair in flows.pairs(guest))
