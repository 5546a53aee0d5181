"""The tables, chains and rules in what ``nft -a list ruleset`` prints."""

import re
from collections.abc import Iterator
from typing import NamedTuple

_TABLE = re.compile(r"^table (\w+) (\S+) \{(.*)$")
_CHAIN = re.compile(r"^\tchain (\S+) \{")
_BASE = re.compile(r"^type (\w+) hook (\w+) (?:devices? .*?)?priority ([^;]+?);(?: policy (\w+);)?")
_HANDLE = re.compile(r" # handle (\d+)$")
_COUNTER = re.compile(r"\bcounter packets \d+ bytes \d+")
_XT = re.compile(r"\bxt (?:match|target|watcher)\b|# xt_|^\s*#\s*-[mj]", re.MULTILINE)

_XT_TABLES = ("filter", "nat", "mangle", "raw", "security", "broute")
_LIMITED = re.compile(
    r"\b(?:limit rate|quota|ct count|numgen|meta (?:hour|day|time))\b"
    r"|-m (?:limit|hashlimit|recent|connlimit|statistic|quota|time|nth)\b"
)


class Rule(NamedTuple):
    """A rule: its handle, 0 where it is not listed, and its text without it and without counts."""

    handle: int
    text: str


class Chain(NamedTuple):
    """A chain; ``hook``, ``type``, ``priority`` and ``policy`` are empty where it is not a base chain."""

    name: str
    hook: str = ""
    type: str = ""
    priority: str = ""
    policy: str = ""
    rules: tuple[Rule, ...] = ()


class Table(NamedTuple):
    """A table: its text as listed, and its chains by name in the order of the listing."""

    family: str
    name: str
    text: str
    chains: dict[str, Chain]

    @property
    def key(self) -> tuple[str, str]:
        """The family and the name."""
        return self.family, self.name

    @property
    def uses_xtables(self) -> bool:
        """Whether a rule has an extension of iptables, which nft prints and does not load."""
        return bool(_XT.search(self.text))

    @property
    def is_iptables(self) -> bool:
        """Whether it is named and hooked as iptables-nft does, so that iptables takes it for its own."""
        bases = [chain for chain in self.chains.values() if chain.hook]
        named = self.family in ("ip", "ip6", "bridge") and self.name in _XT_TABLES
        return named and all(chain.name == chain.hook.upper() for chain in bases)

    @property
    def is_limited(self) -> bool:
        """Whether a verdict may depend on the rate of packets, or on the time."""
        return bool(_LIMITED.search(self.text))


def parse(text: str) -> list[Table]:
    """Return the tables in a listing."""
    return [_table(lines) for lines in _blocks(text.splitlines())]


def _blocks(lines: list[str]) -> Iterator[list[str]]:
    block: list[str] = []
    for line in lines:
        if _TABLE.match(line):
            block = [line]
        elif block:
            block.append(line)
        if block and line == "}":
            yield block
            block = []


def _table(lines: list[str]) -> Table:
    found = _TABLE.match(lines[0])
    assert found
    chains: dict[str, Chain] = {}
    inside: list[str] | None = None
    for line in lines[1:]:
        started = _CHAIN.match(line)
        if started:
            name, inside = started[1], []
        elif line == "\t}" and inside is not None:
            chains[name] = _chain(name, inside)
            inside = None
        elif inside is not None:
            inside.append(line.strip())
    return Table(found[1], found[2], "\n".join(lines) + "\n", chains)


def _chain(name: str, lines: list[str]) -> Chain:
    base = next(filter(None, map(_BASE.match, lines)), None)
    rules = (line for line in lines if line and not _BASE.match(line) and not line.startswith('comment "'))
    chain = Chain(name, rules=tuple(map(_rule, rules)))
    if base is None:
        return chain
    return chain._replace(type=base[1], hook=base[2], priority=base[3], policy=base[4] or "accept")


def _rule(line: str) -> Rule:
    handle = _HANDLE.search(line)
    text = _COUNTER.sub("counter", line[: handle.start()] if handle else line)
    return Rule(int(handle[1]) if handle else 0, text)
