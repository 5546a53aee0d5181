"""The only caller of conntrack: ends connections that would continue to the former guest of a forward."""

from collections.abc import Iterable

from virt_forward.claims import flows
from virt_forward.host.files import read_text
from virt_forward.host.process import run
from virt_forward.model import Address
from virt_forward.text import output

TIMEOUT = 10.0


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
    changed = bool(before) and before != after
    if not changed and not any(forward.proto == "udp" for forward, _ in added):
        return None
    if _nothing_tracked():
        return None
    # The kernel walks its whole table for each listing, even a filtered one, so there is only one.
    listed = run(["conntrack", "-L"], timeout=TIMEOUT)
    if listed.status == 127:
        return "conntrack not found; install conntrack-tools so that old connections end with their guest"
    if listed.status:
        return f"conntrack: {output(listed.stderr)}"
    known = tuple(flows.parse(listed.stdout, _words(before, added, own)))
    doomed = {*(flows.stale(known, before, after) if changed else ()), *flows.predating(known, added, own)}
    if not doomed:
        return None
    # One process for all of them. A flow that has ended meanwhile is an error without consequences.
    done = run(["conntrack", "-R", "-"], "".join(sorted(_deletions(known, doomed))), TIMEOUT)
    return f"conntrack: {output(done.stderr)}" if done.status == 124 else None


def _words(
    before: Iterable[flows.Pair], added: Iterable[flows.Pair], own: frozenset[Address]
) -> frozenset[str]:
    """Return the words one of which is in each relevant line of the listing."""
    found = {f"src={endpoint.ip}" for _, endpoint in before}
    if any(forward.proto == "udp" for forward, _ in added):
        found |= {f"src={address}" for address in own}
    return frozenset(found)


def _nothing_tracked() -> bool:
    return read_text("/proc/sys/net/netfilter/nf_conntrack_count").strip() == "0"


def _deletions(known: Iterable[flows.Flow], doomed: set[flows.Flow]) -> set[str]:
    """Return the commands that end the doomed flows and no other known one.

    The kernel walks its whole table for each command as well, so one command ends all flows from a
    host address to a guest; where other flows of that kind stay, one for each port.
    """
    mixed = {_way(flow) for flow in known if flow not in doomed}
    return {_way(flow) + (_ports(flow) if _way(flow) in mixed else "") + "\n" for flow in doomed}


def _way(flow: flows.Flow) -> str:
    family = f"ipv{flow.destination.version}"
    return f"-D -f {family} -p {flow.proto} -d {flow.destination} -r {flow.answering}"


def _ports(flow: flows.Flow) -> str:
    return f" --dport {flow.destination_port} --reply-port-src {flow.answering_port}"
