"""The only caller of conntrack: ends connections that would go on to where a forward no longer leads."""

from collections.abc import Iterable

from virt_forward import flows
from virt_forward.model import Address
from virt_forward.process import run

TIMEOUT = 10.0


def end_flows(gone: Iterable[flows.Pair], come: Iterable[flows.Pair], own: frozenset[Address]) -> str | None:
    """End the flows of pairs that are gone, and UDP flows that knocked before their pair came.

    ``own`` are the host's addresses. Returns why it could not be done, or None.
    """
    gone, come = tuple(gone), tuple(come)
    if not gone and not any(forward.proto == "udp" for forward, _ in come):
        return None
    if _nothing_tracked():
        return None
    # The kernel walks its whole table for every listing, however narrow: one serves for all.
    listed = run(["conntrack", "-L"], timeout=TIMEOUT)
    if listed.status == 127:
        return "conntrack is not there; install conntrack-tools so that old connections end with their guest"
    if listed.status:
        return f"conntrack: {listed.stderr.strip()}"
    known = tuple(flows.parse(listed.stdout))
    doomed = {*flows.stale(known, gone), *flows.knocked(known, come, own)}
    if doomed:
        # One process for all of them. One that has ended by itself meanwhile is an error nobody minds.
        run(["conntrack", "-R", "-"], "".join(_delete(flow) for flow in sorted(doomed, key=str)), TIMEOUT)
    return None


def _nothing_tracked() -> bool:
    try:
        with open("/proc/sys/net/netfilter/nf_conntrack_count", encoding="ascii") as file:
            return file.read().strip() == "0"
    except OSError:
        return False


def _delete(flow: flows.Flow) -> str:
    return (
        f"-D -f ipv{flow.source.version} -p {flow.proto} -s {flow.source} -d {flow.destination} "
        f"--sport {flow.source_port} --dport {flow.destination_port}\n"
    )
