"""From the guests to what becomes of packets to their forwards."""

from collections.abc import Iterable

from virt_forward.check.clone import namespace, probes, read_host, session
from virt_forward.check.clone.verdict import Asked, Report
from virt_forward.config import Config
from virt_forward.model import Guest

TIMEOUT = 30.0
"""Seconds."""


def report(
    guests: Iterable[Guest],
    config: Config,
    explained: frozenset[str] = frozenset(),
    asked: Iterable[Asked] = (),
) -> Report:
    """Return what becomes of a packet to each open forward. Raises VirtForwardError.

    ``explained`` are the UUIDs of guests whose packets are followed also if they arrive, ``asked`` TCP ports
    of guests that the host is to connect to as well.
    """
    host = read_host.read()
    wanted = probes.probes(guests, host, config)
    if not wanted:
        return Report()
    bridges = {(probe.endpoint.bridge, probe.endpoint.mac) for probe in wanted}
    known = [(endpoint, port) for endpoint, port in asked if (endpoint.bridge, endpoint.mac) in bridges]
    return namespace.run_in_clone(lambda: session.run_probes(host, wanted, explained, known), TIMEOUT)
