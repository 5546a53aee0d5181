"""What happens in the clone: probes are sent, and sent again until all that stops them is found."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

from virt_forward import names
from virt_forward.check import rules
from virt_forward.check.clone import build, plan, tables, verdict
from virt_forward.check.clone.host_state import HostState
from virt_forward.check.clone.probes import Probe
from virt_forward.check.clone.verdict import Asked, Book, Obstacle, Report, Result
from virt_forward.check.clone.wires import Observation, Wires
from virt_forward.host import nft
from virt_forward.host.files import read_text
from virt_forward.host.process import run
from virt_forward.text import output

MAX_TRACED = 256
MAX_LOST = 8
"""How many lost probes of one device and IP version are traced in a round."""
MAX_ASKED = 16
MAX_RELOADS = 16
MAX_ROUNDS = 8


def run_probes(
    host: HostState, probes: Sequence[Probe], explained: frozenset[str], asked: Iterable[Asked] = ()
) -> Report:
    """Build the clone around this process and send the probes.

    ``explained`` are UUIDs of guests; ``asked`` are TCP ports of guests to which the host itself connects.
    To be called in the namespaces of namespace.run_in_clone. Raises VirtForwardError, OSError.
    """
    built = plan.plan(host, probes)
    not_copied = build.wire(built)
    missing = build.load(host)
    with contextlib.closing(Wires(built)) as wires:
        blocked = frozenset(ask for ask in islice(asked, MAX_ASKED) if not wires.connects(*ask))
        session = _Session(host, wires)
        found = session.explain(probes, explained)
    results = (Result(probe, *found[probe], tuple(session.paths.get(probe, ()))) for probe in probes)
    chains = {table.key: frozenset(table.chains) for table in rules.parse(host.ruleset)}
    return Report(tuple(results), tuple(missing), tuple(not_copied), chains, blocked)


class _Session:
    """The search for what stops probes. What is found is taken away, to see what comes after it."""

    def __init__(self, host: HostState, wires: Wires) -> None:
        self.host, self.wires = host, wires
        self.book: Book | None = None
        self.reloads = 0
        self.bypassed: dict[tuple[str, str, str, str], None] = {}
        self.paths: dict[Probe, list[str]] = {}

    def explain(
        self, probes: Sequence[Probe], explained: frozenset[str]
    ) -> dict[Probe, tuple[tuple[Obstacle, ...], bool]]:
        """Return the obstacles of each probe, and whether they are all."""
        delivered = self.wires.send_all(probes)
        followed = (probe for probe in probes if probe in delivered and probe.uuid in explained)
        self.paths = {probe: self._path(probe) for probe in islice(followed, MAX_TRACED)}
        obstacles: dict[Probe, list[Obstacle]] = {probe: [] for probe in probes}
        pending = [probe for probe in probes if probe not in delivered]
        stuck: set[Probe] = set()
        for _ in range(MAX_ROUNDS):
            if not pending:
                break
            pending = self._round(pending, obstacles, stuck)
        left = stuck | {*pending}
        return {probe: (tuple(found), probe not in left) for probe, found in obstacles.items()}

    def _round(
        self, pending: list[Probe], obstacles: dict[Probe, list[Obstacle]], stuck: set[Probe]
    ) -> list[Probe]:
        """Find an obstacle of each probe and take it away; return the probes that may have another.

        Those whose obstacle cannot be taken away are added to ``stuck``.
        """
        found = self._trace_some(pending)
        arrived = {probe for probe, obstacle in found.items() if obstacle is None}
        for probe in pending:
            obstacle = found.get(probe) or _like(probe, found)
            if obstacle and probe not in arrived:
                obstacles[probe].append(obstacle)
                if obstacle.kind not in _REMOVABLE:
                    stuck.add(probe)
        changed = False
        for key in dict.fromkeys(item.base_key for item in found.values() if item and item.kind == "dropped"):
            if not self._bypass(*key):
                return []
            changed = True
        changed = changed or any(item and item.kind in _SETTINGS for item in found.values())
        rest = [probe for probe in pending if probe not in arrived | stuck]
        if not changed:
            stuck |= {*rest}
            return []
        delivered = self.wires.send_all(rest)
        return [probe for probe in rest if probe not in delivered]

    def _trace_some(self, pending: Iterable[Probe]) -> dict[Probe, Obstacle | None]:
        """Return what stops each of some probes; of those that are just lost, which takes time, few."""
        found: dict[Probe, Obstacle | None] = {}
        lost: dict[tuple[str, int], int] = {}
        for probe in islice(pending, MAX_TRACED):
            key = probe.device, probe.endpoint.ip.version
            if lost.get(key, 0) >= MAX_LOST:
                continue
            found[probe] = obstacle = self._trace_unlimited(probe)
            if obstacle and (obstacle.kind != "dropped" or obstacle.family.startswith("legacy")):
                # Once a sysctl is changed, the others of that device get on.
                lost[key] = MAX_LOST if obstacle.kind in _SETTINGS else lost.get(key, 0) + 1
        return found

    def _trace_unlimited(self, probe: Probe) -> Obstacle | None:
        """Trace a probe; where a rate limit may have stopped it, once more as the first packet of all."""
        found = self.trace(probe)
        table = self.book and found and self.book.clone.get((found.family, found.table))
        if not found or found.kind != "dropped" or not table or not table.is_limited:
            return found
        if self.reloads >= MAX_RELOADS:
            return found._replace(
                kind="unknown", detail="its rules depend on the rate of packets or the time"
            )
        self._reload()
        return self.trace(probe)

    def _reload(self) -> None:
        """Load the ruleset again, so that limits, quotas and sets are what they are on the host."""
        self.reloads += 1
        run(["nft", "flush ruleset"])
        build.load(self.host)
        self.book = None
        for key in [*self.bypassed]:
            self._bypass(*key)

    def _bypass(self, family: str, table: str, base: str, hook: str) -> bool:
        """Accept probes at the top of a base chain of the clone, so that what comes after it is found."""
        self.bypassed[family, table, base, hook] = None
        if family.startswith("legacy "):
            program = "iptables-legacy" if family.endswith(" ip") else "ip6tables-legacy"
            return run([program, "-t", table, "-I", base, "-j", "ACCEPT"]).status == 0
        match = (
            f"ct label {names.LABEL} " if hook in ("forward", "postrouting") and family != "bridge" else ""
        )
        return run(["nft", f"insert rule {family} {table} {base} {match}accept"]).status == 0

    def trace(self, probe: Probe) -> Obstacle | None:
        """Send one probe and return what stops it or its answer; None if nothing does."""
        book = self._start_trace()
        first = self.wires.try_first(probe)
        if not self.wires.reaches_guest(probe, first):
            return self._stopped(probe, first, book, answer=False)
        second = self.wires.try_answer(probe, first)
        if verdict.answered(probe, second.seen):
            return None
        return self._stopped(probe, second, book, answer=True)

    def _again(self, probe: Probe, *, answer: bool) -> Observation:
        """Return what is observed of the first packet, or of its answer."""
        first = self.wires.try_first(probe)
        return self.wires.try_answer(probe, first) if answer else first

    def _path(self, probe: Probe) -> list[str]:
        """Return the decisions on the way of a probe that arrives."""
        book = self._start_trace()
        return verdict.path(self.wires.try_first(probe).events, book)

    def _start_trace(self) -> Book:
        if self.book is None:
            state = self.host
            listed = run(["nft", "-a", "list", "ruleset"], timeout=nft.TIMEOUT).stdout
            ours, theirs = rules.parse(listed), rules.parse(state.ruleset)
            self.book = Book({t.key: t for t in ours}, {t.key: t for t in theirs}, state)
            nft.apply(tables.tracer(frozenset(t.family for t in ours), self.wires.devices()))
        return self.book

    def _stopped(self, probe: Probe, observed: Observation, book: Book, *, answer: bool) -> Obstacle:
        return (
            verdict.obstacle(probe, observed.events, observed.seen, book, answer=answer)
            or self._legacy(probe, answer=answer)
            or self._kernel(probe, verdict.hooks_reached(observed.events), answer=answer)
        )

    def _legacy(self, probe: Probe, *, answer: bool) -> Obstacle | None:
        """Return the rule of legacy iptables that drops a packet: the one that counts it."""
        if not self.host.legacy:
            return None
        family = names.family(probe.endpoint.ip.version)
        program = ["iptables-legacy-save" if family == "ip" else "ip6tables-legacy-save", "-c"]
        before = run(program).stdout
        self._again(probe, answer=answer)
        found = verdict.legacy_drop(family, before, run(program).stdout)
        return found and found._replace(answer=answer)

    def _kernel(self, probe: Probe, hooks: set[str], *, answer: bool) -> Obstacle:
        """Return why the kernel itself does not forward a packet: by trying what makes it do so."""
        if "forward" in hooks or "prerouting" not in hooks:
            where = "after the forward hook" if "forward" in hooks else "before the prerouting hook"
            return Obstacle("unknown", answer, detail=f"it is lost {where}")
        device = probe.endpoint.bridge if answer else probe.device
        version = probe.endpoint.ip.version
        family = names.family(version)
        if self._helps(probe, _forwarding(device, version), answer=answer):
            return Obstacle("forwarding", answer, family, detail=device)
        if version == 4 and self._helps(probe, _rp_filter(device), answer=answer):
            return Obstacle("rp_filter", answer, family, detail=device)
        return Obstacle("unrouted", answer, family, detail=self._route(probe, device, answer=answer))

    def _helps(self, probe: Probe, settings: Iterable[tuple[str, str]], *, answer: bool) -> bool:
        """Change sysctls in the clone, and tell whether the packet then gets on. They stay changed."""
        before = {path: read_text(f"/proc/sys/net/{path}") for path, _ in settings}
        if all(before[path].strip() in (value, "") for path, value in settings):
            return False
        for path, value in settings:
            build.write(path, value)
        return "forward" in verdict.hooks_reached(self._again(probe, answer=answer).events)

    def _route(self, probe: Probe, device: str, *, answer: bool) -> str:
        ends = (probe.endpoint.ip, probe.client)
        src, dst = ends if answer else reversed(ends)
        result = run(["ip", "route", "get", str(dst), "from", str(src), "iif", device])
        return output(result.stderr).removeprefix("RTNETLINK answers: ") or output(result.stdout)


_SETTINGS = ("forwarding", "rp_filter")
_REMOVABLE = ("dropped", *_SETTINGS)


def _like(probe: Probe, found: Mapping[Probe, Obstacle | None]) -> Obstacle | None:
    """Return the obstacle of a traced probe that takes the same way."""
    way = probe.device, probe.endpoint.bridge, probe.endpoint.ip.version
    alike = (
        obstacle
        for other, obstacle in found.items()
        if (other.device, other.endpoint.bridge, other.endpoint.ip.version) == way
    )
    return next(filter(None, alike), None)


def _forwarding(device: str, version: int) -> tuple[tuple[str, str], ...]:
    if version == 4:
        return ((f"ipv4/conf/{device}/forwarding", "1"),)
    return (("ipv6/conf/all/forwarding", "1"),)


def _rp_filter(device: str) -> tuple[tuple[str, str], ...]:
    return (("ipv4/conf/all/rp_filter", "0"), (f"ipv4/conf/{device}/rp_filter", "0"))
