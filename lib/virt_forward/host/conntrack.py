"""The only user of ctnetlink: ends tracked connections that would continue to the former guest of a forward.

Each connection is deleted by its own tuple and ID, never by a filter: a kernel that does not know a filter's
attributes ignores them, and deletes all connections.
"""

from errno import EINVAL, ENOENT, ETIMEDOUT
from os import strerror
from struct import pack

from virt_forward.claims import flows
from virt_forward.host import netlink
from virt_forward.host.files import read_text
from virt_forward.model import Address

CT_GET, CT_DELETE = 0x101, 0x102
CTA_STATUS, CTA_STATUS_MASK = 3, 26
IPS_DST_NAT = 0x20
"""linux/netfilter/nfnetlink.h, nfnetlink_conntrack.h and nf_conntrack_common.h."""

_ALL = bytes(4)
"""struct nfgenmsg: any family."""

_TRANSLATED = _ALL + b"".join(
    pack("=HH", 8, kind) + pack(">I", IPS_DST_NAT) for kind in (CTA_STATUS, CTA_STATUS_MASK)
)
"""Only connections with another destination than they were opened to; before Linux 5.15, all."""


def end_flows(
    before: frozenset[flows.Pair],
    after: frozenset[flows.Pair],
    added: frozenset[flows.Pair],
    own: frozenset[Address],
) -> str | None:
    """End the flows that ``after`` sends elsewhere, and UDP flows to the host on ``added`` forwards.

    ``before`` and ``after`` are the pairs of the guests that change, ``own`` the host's addresses.
    Returns an error message, or None.
    """
    former = {endpoint.ip for _, endpoint in before} if before != after else set()
    opened = own if any(forward.proto == "udp" for forward, _ in added) else frozenset()
    if not (former or opened):
        return None
    try:
        # The kernel walks its whole table for each dump, even a filtered one, so there is only one.
        listed = netlink.dump(netlink.NETLINK_NETFILTER, CT_GET, _ALL if opened else _TRANSLATED)
        known = flows.parse(listed, former | opened, any(forward.source for forward, _ in after))
        doomed = {*(flows.stale(known, before, after) if former else ()), *flows.predating(known, added, own)}
        return _delete([message for flow in doomed for message in known[flow]])
    except OSError as error:
        # What a socket raises after its time limit has no number.
        return _not_ended(error.errno or ETIMEDOUT)


def is_empty() -> bool:
    """Tell whether no connection is tracked at all, which is known without a dump."""
    return read_text("/proc/sys/net/netfilter/nf_conntrack_count").strip() == "0"


def _delete(messages: list[bytes]) -> str | None:
    """Delete the connections in messages of a dump: each message names its connection as the kernel does."""
    # A connection that has ended meanwhile, and one that has taken its tuple, is not found.
    errors = netlink.send(netlink.NETLINK_NETFILTER, CT_DELETE, messages) - {ENOENT}
    return _not_ended(min(errors)) if errors else None


def _not_ended(error: int) -> str:
    reason = strerror(error)
    if error == EINVAL:
        reason = "the kernel has no ctnetlink (module nf_conntrack_netlink)"
    return f"connections through removed or changed forwards are not ended: {reason}"
