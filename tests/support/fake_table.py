"""The table of the fake nft: chains, maps and sets, what refers to what, and how they are listed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import TypeVar

from virt_forward.errors import NftError

T = TypeVar("T")

NAME = "virt-forward"
TABLE = f"inet {NAME}"

EXIST, NOENT, BUSY = "File exists", "No such file or directory", "Device or resource busy"
"""The words of errno(3) by which nft says why it refused."""

_REFERS = re.compile(r"\b(?:jump|goto) ([\w.-]+)|@([\w-]+)")


@dataclass
class Chain:
    """A chain; ``hook`` is its declaration, empty for a regular chain, and ``rules`` are lines."""

    hook: str = ""
    comment: str = ""
    rules: list[str] = field(default_factory=list)


@dataclass
class Container:
    """A map or set: its declaration, and the data (empty in a set) by the key of each element."""

    kind: str
    declaration: str
    elements: dict[str, str] = field(default_factory=dict)

    @property
    def interval(self) -> bool:
        return "flags interval" in self.declaration


@dataclass
class Table:
    """Our table, all of it."""

    comment: str = ""
    chains: dict[str, Chain] = field(default_factory=dict)
    containers: dict[str, Container] = field(default_factory=dict)

    def copy(self) -> Table:
        chains = {n: Chain(c.hook, c.comment, [*c.rules]) for n, c in self.chains.items()}
        containers = {n: Container(c.kind, c.declaration, {**c.elements}) for n, c in self.containers.items()}
        return Table(self.comment, chains, containers)

    def chain(self, name: str) -> Chain:
        return _found(self.chains, name)

    def container(self, name: str) -> Container:
        return _found(self.containers, name)

    def referred(self) -> set[str]:
        """Return the names that a rule or an element refers to: chains, and maps and sets with an @."""
        texts = [rule for chain in self.chains.values() for rule in chain.rules]
        texts += [data for item in self.containers.values() for data in item.elements.values()]
        return {name for text in texts for name in references(text)}


def _found(items: dict[str, T], name: str) -> T:
    if name not in items:
        raise refused(NOENT, name)
    return items[name]


def refused(why: str, what: str) -> NftError:
    """Return the error that nft gives for ``what``."""
    return NftError(f"nft refused: Error: Could not process rule: {why} ({what})")


def references(text: str) -> Iterator[str]:
    """Yield the chains that a rule or a verdict leads to, and with an @ the containers it looks into."""
    bare = re.sub(r'"[^"]*"', '""', text)
    for found in _REFERS.finditer(bare):
        yield found[1] or f"@{found[2]}"


def overlaps(item: Container, key: str) -> bool:
    """Tell whether another interval than that of ``key`` has a value that is in it, too."""
    return any(other != key and _meet(key, other) for other in item.elements)


def _meet(one: str, other: str) -> bool:
    return all(map(_meets, one.split(" . "), other.split(" . ")))


def _meets(one: str, other: str) -> bool:
    if one == other:
        return True
    span, other_span = _span(one), _span(other)
    return bool(span and other_span) and span[0] <= other_span[1] and other_span[0] <= span[1]


def _span(part: str) -> tuple[int, ...]:
    """Return the first and last value of a range or subnet; nothing for what is neither."""
    if re.fullmatch(r"\d+-\d+", part):
        return tuple(map(int, part.split("-")))
    try:
        network = ip_network(part)
    except ValueError:
        return ()
    return int(network.network_address), int(network.broadcast_address)


def listed(table: Table) -> str:
    """Return a table's text, chains, maps and elements in the order of their names."""
    lines = [f"table {TABLE} {{", f"\tcomment {table.comment}"]
    for name, item in sorted(table.containers.items()):
        elements = sorted(f"{key} : {data}" if data else key for key, data in item.elements.items())
        lines += [f"\t{item.kind} {name} {{", f"\t\t{item.declaration}"]
        lines += [f"\t\telements = {{ {', '.join(elements)} }}"] if elements else []
        lines.append("\t}")
    for name, chain in sorted(table.chains.items()):
        head = [f"\t\t{text}" for text in (chain.comment and f"comment {chain.comment}", chain.hook) if text]
        lines += [f"\tchain {name} {{", *head, *(f"\t\t{rule}" for rule in chain.rules), "\t}"]
    return "\n".join([*lines, "}"]) + "\n"


def items(table: Table) -> Iterator[dict[str, object]]:
    """Yield a table's parts in the form of nft's JSON."""
    where = {"family": "inet", "table": NAME}
    yield {"table": {"family": "inet", "name": NAME}}
    for name, chain in table.chains.items():
        yield {"chain": {**where, "name": name}}
        for rule in chain.rules:
            counter = [{"counter": {"packets": 0, "bytes": 0}}] if " counter " in f" {rule} " else []
            comment = re.search(r' comment "([^"]*)"$', rule)
            extra = {"comment": comment[1]} if comment else {}
            yield {"rule": {**where, "chain": name, "expr": counter, **extra}}
    for name, item in table.containers.items():
        elements = {"elem": [*item.elements]} if item.elements else {}
        yield {item.kind: {**where, "name": name, **elements}}
