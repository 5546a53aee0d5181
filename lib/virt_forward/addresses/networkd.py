"""systemd-networkd's configuration, as far as it tells where guests sit (systemd.network(5)).

A ``.network`` file of a bridge gives its subnets (Address=) and its static leases
([DHCPServerStaticLease] MACAddress=, Address=).
"""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface
from typing import NamedTuple

from virt_forward.metadata import values
from virt_forward.model import Reservation

DIRECTORIES = (
    "/etc/systemd/network",
    "/run/systemd/network",
    "/usr/local/lib/systemd/network",
    "/usr/lib/systemd/network",
)
"""Where the files are, the most important first: systemd.network(5)."""

Section = tuple[str, list[tuple[str, str]]]


class BridgeConfig(NamedTuple):
    """What networkd is configured to do on a bridge."""

    addresses: tuple[IPv4Interface | IPv6Interface, ...] = ()
    leases: tuple[Reservation, ...] = ()


def parse_ini(text: str) -> list[Section]:
    """Return sections with their assignments in order, after systemd.syntax(7)."""
    sections: list[Section] = []
    for line in _logical_lines(text):
        if line.startswith("[") and line.endswith("]"):
            sections.append((line[1:-1], []))
        elif sections and "=" in line:
            key, _, value = line.partition("=")
            sections[-1][1].append((key.strip(), value.strip()))
    return sections


def _logical_lines(text: str) -> Iterable[str]:
    pending = ""
    for raw in text.splitlines():
        line = raw.strip()
        if line.startswith(("#", ";")):
            continue
        if line.endswith("\\"):
            pending += line[:-1] + " "
            continue
        if pending or line:
            yield (pending + line).strip()
        pending = ""
    if pending:
        yield pending.strip()


def bridge_config(files: Mapping[str, str], bridge: str, mac: str = "") -> BridgeConfig:
    """Return the configuration of ``bridge`` out of the ``.network`` files that could be its.

    ``files`` maps file names (drop-ins already appended to their main text) to their text;
    the first in lexical order that matches is the one, as in systemd. ``mac`` is the
    bridge's own.
    """
    for name in sorted(files):
        sections = parse_ini(files[name])
        if _matches(sections, bridge, mac):
            return _read(sections)
    return BridgeConfig()


def _matches(sections: list[Section], bridge: str, mac: str) -> bool:
    conditions = [item for name, items in sections if name == "Match" for item in items]
    facts = {"Name": bridge, "Type": "bridge", "Kind": "bridge", "MACAddress": mac.lower()}
    merged: dict[str, list[str]] = {}
    for key, value in conditions:
        merged[key] = [*merged.get(key, []), *value.split()] if value else []
    wanted = {key: patterns for key, patterns in merged.items() if patterns}
    return bool(wanted) and all(
        key in facts and _match_words(patterns, facts[key]) for key, patterns in wanted.items()
    )


def _match_words(patterns: list[str], fact: str) -> bool:
    if patterns[0].startswith("!"):
        return not any(fnmatchcase(fact, pattern.removeprefix("!")) for pattern in patterns)
    return any(fnmatchcase(fact, pattern) or fnmatchcase(fact, pattern.lower()) for pattern in patterns)


def _read(sections: list[Section]) -> BridgeConfig:
    addresses: list[IPv4Interface | IPv6Interface] = []
    leases: list[Reservation] = []
    for name, items in sections:
        if name in ("Network", "Address"):
            for value in (value for key, value in items if key == "Address"):
                addresses = addresses + _interface(value) if value else []
        if name == "DHCPServerStaticLease":
            leases += _lease(dict(items))
    return BridgeConfig(tuple(addresses), tuple(leases))


def _interface(text: str) -> list[IPv4Interface | IPv6Interface]:
    try:
        return [ip_interface(text)]
    except ValueError:
        return []


def _lease(items: dict[str, str]) -> list[Reservation]:
    try:
        mac = values.mac(items.get("MACAddress", "").replace("-", ":"))
        return [Reservation(ip_address(items.get("Address", "")), mac)]
    except (values.Bad, ValueError):
        return []
