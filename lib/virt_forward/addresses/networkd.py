"""The parts of systemd-networkd's configuration that have addresses of guests (systemd.network(5)).

A ``.network`` file of a bridge has its subnets (Address=) and its static leases
([DHCPServerStaticLease] MACAddress=, Address=).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from ipaddress import IPv4Interface, IPv6Interface, ip_interface

from virt_forward.metadata import values
from virt_forward.model import Reservation
from virt_forward.namedtuple import NamedTuple

DIRECTORIES = (
    "/etc/systemd/network",
    "/run/systemd/network",
    "/usr/local/lib/systemd/network",
    "/usr/lib/systemd/network",
)
"""The directories of the files, in order of precedence (systemd.network(5))."""

Section = tuple[str, list[tuple[str, str]]]


class BridgeConfig(NamedTuple):
    """The addresses and static leases that networkd has configured on a bridge."""

    addresses: tuple[IPv4Interface | IPv6Interface, ...] = ()
    leases: tuple[Reservation, ...] = ()


def parse_ini(text: str) -> list[Section]:
    """Return the sections with their assignments, in order (systemd.syntax(7))."""
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
    """Return the configuration of ``bridge`` from the first ``.network`` file that matches it.

    ``files`` maps the names of the files to their text with drop-ins appended; they are tried in
    lexical order, as by systemd. ``mac`` is the MAC address of the bridge.
    """
    facts = {"Name": bridge, "Type": "bridge", "Kind": "bridge", "MACAddress": mac.lower()}
    for name in sorted(files):
        sections = parse_ini(files[name])
        if matches(sections, facts):
            return _read(sections)
    return BridgeConfig()


def matches(sections: list[Section], facts: Mapping[str, str]) -> bool:
    """Tell whether a ``.network`` file is for an interface.

    ``facts`` are the interface's properties by the keys of [Match]; a key that is not in it does not match.
    """
    conditions = [item for name, items in sections if name == "Match" for item in items]
    merged: dict[str, list[str]] = {}
    for key, text in conditions:
        value = text.lower().replace("-", ":") if key == "MACAddress" else text
        merged[key] = [*merged.get(key, []), *_patterns(value)] if value else []
    wanted = {key: patterns for key, patterns in merged.items() if patterns}
    return bool(wanted) and all(
        key in facts and _match_words(patterns, facts[key]) for key, patterns in wanted.items()
    )


def _patterns(value: str) -> list[str]:
    """Return the patterns of one assignment; a "!" before the first one applies to all of them."""
    mark = "!" if value.startswith("!") else ""
    return [f"{mark}{pattern}" for pattern in value.removeprefix("!").split()]


def _match_words(patterns: list[str], fact: str) -> bool:
    # As net_condition_test_strv() in systemd: an excluded name never matches.
    wanted = [pattern for pattern in patterns if not pattern.startswith("!")]
    excluded = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    if any(fnmatchcase(fact, pattern) for pattern in excluded):
        return False
    return not wanted or any(fnmatchcase(fact, pattern) for pattern in wanted)


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
        address, slash, prefix = text.partition("/")
        found = ip_interface(f"{values.address(address)}{slash}{prefix}")
    except ValueError:
        return []
    # With the unspecified address networkd chooses one, which the kernel then has.
    return [] if found.ip.is_unspecified else [found]


def _lease(items: dict[str, str]) -> list[Reservation]:
    try:
        mac = values.mac(items.get("MACAddress", "").replace("-", ":"))
        return [Reservation(values.address(items.get("Address", "")), mac)]
    except ValueError:
        return []
