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
    wanted = {(f.proto, s.ip.version) for f, s in gone}
    wanted |= {("udp", s.ip.version) for f, s in come if f.proto == "udp"}
    for proto, version in sorted(wanted):
        problem = _end(proto, version, gone, come, own)
        if problem:
            return problem
    return None


def _end(
    proto: str,
    version: int,
    gone: tuple[flows.Pair, ...],
    come: tuple[flows.Pair, ...],
    own: frozenset[Address],
) -> str | None:
    listed = run(["conntrack", "-L", "-f", f"ipv{version}", "-p", proto], timeout=TIMEOUT)
    if listed.status == 127:
        return "conntrack is not there; install conntrack-tools so that old connections end with their guest"
    if listed.status:
        return f"conntrack: {listed.stderr.strip()}"
    known = tuple(flows.parse(listed.stdout))
    doomed = {*flows.stale(known, gone), *flows.knocked(known, come, own)}
    if doomed:
        # One process for all of them. One that has ended by itself meanwhile is an error nobody minds.
        commands = "".join(_delete(flow, version) for flow in sorted(doomed, key=str))
        run(["conntrack", "-R", "-"], commands, TIMEOUT)
    return None


def _delete(flow: flows.Flow, version: int) -> str:
    return (
        f"-D -f ipv{version} -p {flow.proto} -s {flow.source} -d {flow.destination} "
        f"--sport {flow.source_port} --dport {flow.destination_port}\n"
    )
