"""The only caller of conntrack: ends connections that would go on to where a forward no longer leads."""

from collections.abc import Iterable

from virt_forward.claims import flows
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
    """End the flows that ``after`` sends elsewhere, and UDP flows to the host that an ``added`` pair takes.

    ``before`` and ``after`` are the pairs of the guests that change, ``own`` the host's addresses.
    Returns why it could not be done, or None.
    """
    changed = bool(before) and before != after
    if not changed and not any(forward.proto == "udp" for forward, _ in added):
        return None
    if _nothing_tracked():
        return None
    # The kernel walks its whole table for every listing, however narrow: one serves for all.
    listed = run(["conntrack", "-L"], timeout=TIMEOUT)
    if listed.status == 127:
        return "conntrack is not there; install conntrack-tools so that old connections end with their guest"
    if listed.status:
        return f"conntrack: {output(listed.stderr)}"
    known = tuple(flows.parse(listed.stdout, _words(before, added, own)))
    doomed = {*(flows.stale(known, before, after) if changed else ()), *flows.predating(known, added, own)}
    if not doomed:
        return None
    # One process for all of them. One that has ended by itself meanwhile is an error nobody minds.
    done = run(["conntrack", "-R", "-"], "".join(sorted(_deletions(known, doomed))), TIMEOUT)
    return f"conntrack: {output(done.stderr)}" if done.status == 124 else None


def _words(
    before: Iterable[flows.Pair], added: Iterable[flows.Pair], own: frozenset[Address]
) -> frozenset[str]:
    """Return the words of which a line of the listing has one, where it can matter."""
    found = {f"src={endpoint.ip}" for _, endpoint in before}
    if any(forward.proto == "udp" for forward, _ in added):
        found |= {f"src={address}" for address in own}
    return frozenset(found)


def _nothing_tracked() -> bool:
    try:
        with open("/proc/sys/net/netfilter/nf_conntrack_count", encoding="ascii") as file:
            return file.read().strip() == "0"
    except OSError:
        return False


def _deletions(known: Iterable[flows.Flow], doomed: set[flows.Flow]) -> set[str]:
    """Return the commands that end the doomed flows and no other known one.

    The kernel walks its whole table for each, too: so all that went one way go at once,
    whoever came, and whichever port they took where every port is doomed.
    """
    mixed = {_way(flow) for flow in known if flow not in doomed}
    return {_way(flow) + (_ports(flow) if _way(flow) in mixed else "") + "\n" for flow in doomed}


def _way(flow: flows.Flow) -> str:
    family = f"ipv{flow.destination.version}"
    return f"-D -f {family} -p {flow.proto} -d {flow.destination} -r {flow.answering}"


def _ports(flow: flows.Flow) -> str:
    return f" --dport {flow.destination_port} --reply-port-src {flow.answering_port}"
