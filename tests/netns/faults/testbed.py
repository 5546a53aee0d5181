"""A host with its guests' XML, the events that libvirt would send, and what the table should be."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from netns.faults.edges import Environment, Outcome, Steps, apart
from netns.support import PHASES, mac_of
from support import person, state
from support.netns import HOOK_ENV, Lab, Ns
from support.xml import Nic, domain, forwards, host_ip, port_forward, uuid_of
from virt_forward.check import listing
from virt_forward.hooks import dispatch, prefilter
from virt_forward.libvirtd.api import DomainState
from virt_forward.reconcile import resync

DEV = 'dev="enp1s0"'
METADATA = {
    # One port narrowed by device and one by source: web and mail share a chain of the table.
    "web": (200, [port_forward("8080:80", "443"), port_forward("9000", attributes=DEV)]),
    "db": (201, [port_forward("5432", "6000-6020:7000"), port_forward("5353:53", proto="udp")]),
    "mail": (202, [port_forward("2525:25"), port_forward("9000", attributes='source="192.0.2.0/24"')]),
    "late": (203, [port_forward("7000-9999:7000", proto="udp")]),
    # Wants what web has.
    "twin": (204, [port_forward("8080:8080", "8081")]),
}
NAMES = tuple(METADATA)


def xml_of(name: str, operation: str, *more: str) -> str:
    number, children = METADATA[name]
    metadata = forwards(host_ip(f"10.10.0.{number}"), host_ip(f"fd10:10::{number:x}"), *children, *more)
    return domain(name, metadata, [Nic(mac=mac_of(number))], PHASES[operation][1])


def libvirt_says(running: tuple[str, ...]) -> list[DomainState]:
    return [DomainState(name, uuid_of(name), True, xml_of(name, "started").encode()) for name in running]


def keeps(now: listing.Listing, part: str, line: str) -> bool:
    """Tell whether a table has a line; a port that leads to a guest may do so by the port's own chain."""
    present = now.get(part, ())
    key, jump, guest = line.partition(" : jump ")
    slots = (
        other.partition(" : jump port-")[2] for other in present if other.startswith(f"{key} : jump port-")
    )
    return line in present or any(
        rule.endswith(f"jump {guest}") for slot in slots for rule in now.get(f"chain port-{slot}", ()) if jump
    )


@dataclass
class FaultTestbed:
    """A host; ``reference`` is a lab of the same shape where nothing ever goes wrong."""

    lab: Lab
    reference: Lab
    wanted: dict[tuple[str, ...], listing.Listing] = field(default_factory=dict)
    made: dict[str, listing.Listing] = field(default_factory=dict)
    before: dict[Path, bytes] = field(default_factory=dict)

    @property
    def run_dir(self) -> Path:
        return self.lab.run_dir

    def event(
        self, name: str, operation: str, steps: Steps | None = None, *,
        patch: Callable[[], None] = lambda: None, xml: str = "",
    ) -> Outcome:  # fmt: skip
        """Run the hook for one event, its steps counted or broken."""
        text = (xml or xml_of(name, operation)).encode()
        arguments = [name, operation, PHASES[operation][0], "-"]

        def call() -> int:
            patch()
            return dispatch.main("qemu", arguments, text) if prefilter.concerns_us(arguments, text) else 0

        return self.apart(call, steps)

    def sync(self, *running: str, steps: Steps | None = None) -> Outcome:
        """Do what ``virt-forward sync`` does, while libvirt says that these guests run."""

        def call() -> int:
            libvirt: Any = vars(resync)["api"]
            libvirt.connection = lambda _uri: contextlib.nullcontext()
            libvirt.domains = lambda *_: libvirt_says(running)
            libvirt.networks = lambda _: []
            # There are no guests in this testbed that could answer.
            return 1 if resync.sync(probe_guests=False).errors else 0

        return self.apart(call, steps)

    def apart(self, call: Callable[[], int], steps: Steps | None = None) -> Outcome:
        """Call a function in a process of its own, on this host."""
        environment = Environment(self.lab.host.path, {**HOOK_ENV, **self.lab.env}, self.lab.dir)
        return apart(environment, call, steps or Steps())

    def start(self, *names: str) -> None:
        for name in names:
            for operation in ("prepare", "started"):
                done = self.event(name, operation)
                assert done.status == 0, done

    def stop(self, *names: str) -> None:
        for name in names:
            for operation in ("stopped", "release"):
                done = self.event(name, operation)
                assert done.status == 0, done

    def table(self) -> listing.Listing:
        return listing.parse(listed(self.lab.host))

    def should(self, *running: str) -> listing.Listing:
        """Return the table as undisturbed hooks make it for these guests, started in this order."""
        if running not in self.wanted:
            undisturbed = FaultTestbed(self.lab, self.reference)
            undisturbed.lab = self.reference
            undisturbed.start(*running)
            self.wanted[running] = listing.parse(listed(self.reference.host))
            undisturbed.stop(*running)
            assert listed(self.reference.host) == ""
        return self.wanted[running]

    def assert_right(self, *running: str, why: object = "") -> None:
        """Kernel, include file and records are just what these guests declare, and nothing is pending."""
        assert not (wrong := listing.differences(self.table(), self.should(*running))), f"{wrong}\n{why}"
        self.assert_loads(*running, why=why)
        assert state.uuids(self.run_dir) == {uuid_of(name) for name in running}, why
        assert not (left := state.left(self.run_dir)), f"{left}\n{why}"

    def assert_loads(self, *running: str, why: object = "") -> None:
        """The include file loads on its own, twice, and makes the table of these guests."""
        include = self.run_dir / "ruleset.nft"
        if not include.exists():
            assert not running, f"no include file\n{why}"
            return
        text = re.sub(r"revision( \{)? \d+", "", include.read_text())
        if text not in self.made:
            self.made[text] = loaded(self.reference.host, include)
        assert not (wrong := listing.differences(self.made[text], self.should(*running))), f"{wrong}\n{why}"

    def assert_kept(self, *running: str, why: object = "") -> None:
        """Nothing of what these guests have is missing in the kernel, whatever else is there."""
        should, now = self.should(*running), self.table()
        for part, lines in should.items():
            if part.startswith(("chain guest-", "chain forward-", "chain lan-", "map ", "set own")):
                missing = [line for line in lines if not keeps(now, part, line)]
                assert not missing, f"{part}: {missing} in {now.get(part)}\n{why}"

    def restore(self) -> None:
        """Put the run directory back as it was before; the kernel is the caller's."""
        self._forget()
        for path, data in self.before.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        state.adopt_include(self.run_dir)

    def saved(self) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in self.run_dir.rglob("*") if path.is_file()}

    def clear(self) -> None:
        """Forget everything, in the kernel as well."""
        self._forget()
        self.lab.config.unlink(missing_ok=True)
        self.flush()

    def flush(self) -> None:
        """Reload the person's ruleset, which takes our table along."""
        self.lab.host.nft(person.RULESET)

    def _forget(self) -> None:
        for path in sorted(self.run_dir.rglob("*"), reverse=True):
            if path.is_file():
                path.unlink()


def listed(host: Ns) -> str:
    return host.run(["nft", "-s", "list", "table", "inet", "virt-forward"], check=False).out


def loaded(host: Ns, include: Path) -> listing.Listing:
    """Load a file twice into a namespace without our table, and return what it makes."""
    for _ in range(2):
        host.run(["nft", "-f", include])
    made = listing.parse(listed(host))
    host.run(["nft", "delete", "table", "inet", "virt-forward"], check=False)
    return made


@contextlib.contextmanager
def testbed() -> Iterator[FaultTestbed]:
    from support import netns

    with netns.lab() as host, netns.lab() as reference:
        yield FaultTestbed(host, reference)
