"""One directory of golden files: guests and what the host knows in, nft text out.

The static part of the table depends on the configuration alone. It is saved once for each, beside
the directories, as static.nft, static-localhost.nft and so on, with the rules that ask the map of single
ports; a case has the rest, and the rules where it needs others.

NAME.xml        a guest, as libvirt gives it to the hook; several, one after the other by name
config.toml     the configuration, where it is not the default
facts.json      what the host knows, where it is not the usual: bridges, and excluded ports
events          "started NAME" and "stopped NAME", one a line; absent: every guest is started
ruleset.nft     the include file after all of them, without the static part
transaction.nft where there are events, what the last of them says to nft
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any, NamedTuple

from unit.build import Answering, NoRoutes
from unit.simulation import Event, Simulation
from virt_forward import ports
from virt_forward.addresses.attachments import BridgeFacts, HostFacts
from virt_forward.addresses.resolve import resolve
from virt_forward.claims.rows import LookupRow
from virt_forward.config import Config, parse_config
from virt_forward.metadata.domain import parse_domain
from virt_forward.model import Guest, PortForward, Reservation, Span
from virt_forward.ruleset import shared, table
from virt_forward.ruleset.block import add

HERE = Path(__file__).parent
USUAL = {"addresses": ["198.51.100.1/24", "2001:db8:10::1/64"]}


class Outcome(NamedTuple):
    """The result of a case's events.

    ``before`` is the include file before the last one, ``static`` the static part of the one after
    it (empty where it is the file that deletes the table), and ``ruleset`` the rest of that.
    """

    before: str
    static: str
    ruleset: str
    transaction: str | None


def static_file(config: Config) -> Path:
    """Return the golden file of the static part of the table under a configuration."""
    words = ["static", *(["localhost"] if config.localhost else []), *(["uplinks"] if config.uplinks else [])]
    return HERE / f"{'-'.join(words)}.nft"


class Case:
    """A directory of golden files."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def _text(self, name: str) -> str:
        path = self.path / name
        return path.read_text() if path.exists() else ""

    def events(self) -> list[tuple[str, str]]:
        lines = self._text("events").splitlines()
        if not lines:
            return [("started", path.stem) for path in sorted(self.path.glob("*.xml"))]
        return [(verb, name) for verb, _, name in (line.partition(" ") for line in lines)]

    def facts(self) -> HostFacts:
        bridges = json.loads(self._text("facts.json") or "{}").get("bridges", {"virbr0": USUAL})
        made = {name: _bridge(fields) for name, fields in bridges.items()}
        return HostFacts(bridges=made, answers=Answering(), routes=NoRoutes())

    def excluded(self, item: PortForward) -> list[Span]:
        if not ports.names_no_port(item):
            return []
        known = json.loads(self._text("facts.json") or "{}").get("excluded", {})
        return [Span(start, end) for start, end in known.get(item.proto, [])]

    @property
    def config(self) -> Config:
        return parse_config(self._text("config.toml"))

    def saved(self) -> str:
        """Return the whole include file, as the golden files have it."""
        rest = self._text("ruleset.nft")
        if "delete table" in rest:
            return rest
        static = static_file(self.config).read_text()
        if "# lookups\n" in rest:
            static = static.removesuffix(f"\n{_usual_lookups(self.config)}")
        return static + rest

    def run(self) -> Outcome:
        """Apply the events, one after the other."""
        simulation = Simulation(self.config)
        numbers: dict[str, int] = {}
        before, transaction = "", ""
        for verb, name in self.events():
            guest = self._guest(name, simulation)
            number = numbers.setdefault(guest.uuid, len(numbers))
            before = table.text(simulation.include)
            transaction = simulation.commands(Event(number, guest if verb == "started" else None))
        has_events = (self.path / "events").exists()
        after, header = table.text(simulation.include), f"{simulation.include.header}\n"
        if not after.startswith(header):
            return Outcome(before, "", after, transaction if has_events else None)
        usual = _usual_lookups(simulation.config)
        rest = after.removeprefix(header).replace(f"\n{usual}", "")
        return Outcome(before, f"{header}\n{usual}", rest, transaction if has_events else None)

    def _guest(self, name: str, simulation: Simulation) -> Guest:
        domain = parse_domain((self.path / f"{name}.xml").read_bytes())
        return resolve(domain, self.facts(), simulation.config, "running", self.excluded)


def _usual_lookups(config: Config) -> str:
    """Return the paragraph of the rules for guests that have nothing but single ports."""
    row = LookupRow("", "", "ports")
    return f"{add(shared.blocks([row], [], config)['lookups'])}\n"


def _bridge(fields: dict[str, Any]) -> BridgeFacts:
    return BridgeFacts(
        tuple(map(ip_interface, fields.get("addresses", []))),
        tuple(_reservations(fields.get("reservations", []))),
        tuple(_reservations(fields.get("leases", []))),
    )


def _reservations(pairs: list[list[str]]) -> Iterator[Reservation]:
    for ip, mac in pairs:
        yield Reservation(ip_address(ip), mac)


CASES = [Case(path) for path in sorted(HERE.iterdir()) if path.is_dir() and not path.name.startswith("__")]
