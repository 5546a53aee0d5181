"""As much of nft as our commands need, in memory: a transaction is applied as a whole or not at all.

It reads the text that virt_forward.ruleset renders, and fails a test on any other. Rules are opaque
lines of which only the chains, maps and sets that they refer to are known. nft's errors are those
that we rely on; that the real nft does the same is what support.nft_contract is for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import TypeVar

from virt_forward.errors import NftError
from virt_forward.host.nft import Parts

T = TypeVar("T")

NAME = "virt-forward"
TABLE = f"inet {NAME}"

EXIST, NOENT, BUSY = "File exists", "No such file or directory", "Device or resource busy"
"""The words of errno(3) by which nft says why it refused."""

_COMMAND = re.compile(rf"(add|delete|flush) (table|chain|map|set|element) {TABLE}(?: (\S+))?(?: {{ (.*) }})?")
_DECLARED = re.compile(r"(map|set) (\S+) { (type .*;) }")
_HOOKED = re.compile(r"chain (\S+) { ?(.*?) ?}")
_OPENED = re.compile(r"chain (\S+) {")
_REFERS = re.compile(r"\b(?:jump|goto) ([\w.-]+)|@([\w-]+)")
_ITEM = re.compile(r'(?:"[^"]*"|[^",])+')


class UnknownTextError(BaseException):
    """The text is none that the fake understands: the fake has to learn it, or the text is wrong.

    Not an Exception, so that the hook under test does not handle it.
    """


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
        return {name for text in texts for name in _references(text)}


def _found(items: dict[str, T], name: str) -> T:
    if name not in items:
        raise _refused(NOENT, name)
    return items[name]


def _refused(why: str, what: str) -> NftError:
    return NftError(f"nft refused: Error: Could not process rule: {why} ({what})")


def _references(text: str) -> Iterator[str]:
    """Yield the chains that a rule or a verdict leads to, and with an @ the containers it looks into."""
    bare = re.sub(r'"[^"]*"', '""', text)
    for found in _REFERS.finditer(bare):
        yield found[1] or f"@{found[2]}"


class FakeNft:
    """Our table in a kernel that is not there; offers what virt_forward.host.nft does.

    ``applied`` are the transactions that were taken, ``before_apply`` is called with each text
    before it is (a test may raise from there, or change the table first).
    """

    def __init__(self) -> None:
        self.table: Table | None = None
        self.applied: list[str] = []
        self.before_apply: Callable[[str], None] = lambda _text: None

    # What virt_forward.host.nft offers.

    def apply(self, commands: str) -> None:
        self.before_apply(commands)
        self.table = _Transaction(self.table).run(commands)
        self.applied.append(commands)

    def delete_table(self) -> None:
        self.apply(f"add table {TABLE}\ndelete table {TABLE}\n")

    def parts(self) -> Parts | None:
        if self.table is None:
            return None
        return Parts(frozenset(self.table.chains), frozenset(self.table.containers))

    def revision(self) -> int | None:
        """Return the revision of the table, None where there is none."""
        item = self.table.containers.get("revision") if self.table else None
        return int(next(iter(item.elements))) if item and item.elements else None

    def dispatches(self) -> bool:
        chain = self.table.chains.get("dispatch") if self.table else None
        return chain is not None and any("vmap" in rule for rule in chain.rules)

    def listing(self) -> list[dict[str, object]] | None:
        """Return items in the form of nft's JSON; elements and rules in it are our own text."""
        return None if self.table is None else list(_items(self.table))

    def plain_listing(self) -> str | None:
        return None if self.table is None else listed(self.table)

    def scratch_listing(self, text: str) -> str:
        table = _Transaction(None).run(text)
        return listed(table) if table else ""

    # What somebody else may do to the table.

    def flush_ruleset(self) -> None:
        self.table = None

    def flush_table(self) -> None:
        """Take away all rules, as ``nft flush table`` does: chains and elements stay."""
        for chain in self.table.chains.values() if self.table else ():
            chain.rules.clear()


class _Transaction:
    """One text, applied to a copy of the table."""

    def __init__(self, table: Table | None) -> None:
        self._table = table.copy() if table else None

    def run(self, text: str) -> Table | None:
        lines = iter(text.splitlines())
        for line in lines:
            if not line or line.startswith("#"):
                continue
            if line == f"table {TABLE} {{":
                self._block(lines)
            elif found := _COMMAND.fullmatch(line):
                self._command(found[1], found[2], found[3] or "", found[4])
            else:
                raise UnknownTextError(line)
        return self._table

    def _found(self) -> Table:
        if self._table is None:
            raise _refused(NOENT, TABLE)
        return self._table

    def _command(self, verb: str, kind: str, name: str, inside: str | None) -> None:
        method = getattr(self, f"_{verb}_{kind}", None)
        if method is None or (inside is None) != (kind != "element") or bool(name) != (kind != "table"):
            raise UnknownTextError(f"{verb} {kind} {name}")
        method(*([name] if name else []), *([inside] if inside is not None else []))

    def _add_table(self) -> None:
        self._table = self._table or Table()

    def _delete_table(self) -> None:
        self._found()
        self._table = None

    def _flush_table(self) -> None:
        for chain in self._found().chains.values():
            chain.rules.clear()

    def _flush_chain(self, name: str) -> None:
        self._found().chain(name).rules.clear()

    def _delete_chain(self, name: str) -> None:
        self._found().chain(name).rules.clear()
        if name in self._found().referred():
            raise _refused(BUSY, name)
        del self._found().chains[name]

    def _flush_map(self, name: str) -> None:
        self._found().container(name).elements.clear()

    _flush_set = _flush_map

    def _delete_map(self, name: str) -> None:
        self._found().container(name)
        if f"@{name}" in self._found().referred():
            raise _refused(BUSY, name)
        del self._found().containers[name]

    _delete_set = _delete_map

    def _add_element(self, name: str, inside: str) -> None:
        item = self._found().container(name)
        for key, data in _elements(inside):
            if (item.kind == "map") != bool(data):
                raise UnknownTextError(f"{name}: {key} : {data}")
            self._refer(data)
            if item.elements.get(key, data) != data or (item.interval and _overlaps(item, key)):
                raise _refused(EXIST, f"{name} {key}")
            item.elements[key] = data

    def _delete_element(self, name: str, inside: str) -> None:
        item = self._found().container(name)
        for key, _ in _elements(inside):
            if key not in item.elements:
                raise _refused(NOENT, f"{name} {key}")
            del item.elements[key]

    def _refer(self, text: str) -> None:
        for name in _references(text):
            if name.startswith("@"):
                self._found().container(name[1:])
            else:
                self._found().chain(name)

    def _block(self, lines: Iterator[str]) -> None:
        """Add what a table block has: nft takes chains, maps and sets first, then rules."""
        self._add_table()
        rules: list[tuple[Chain, str]] = []
        for line in lines:
            if line == "}":
                break
            if found := re.fullmatch(r'\tcomment (".*")', line):
                self._found().comment = self._found().comment or found[1]
            elif found := _DECLARED.fullmatch(line.strip()):
                self._declare(found[1], found[2], found[3])
            elif found := _HOOKED.fullmatch(line.strip()):
                self._hook(found[1], found[2])
            elif found := _OPENED.fullmatch(line.strip()):
                chain = self._found().chains.setdefault(found[1], Chain())
                rules += ((chain, rule) for rule in _chain_lines(chain, lines))
            else:
                raise UnknownTextError(line)
        else:
            raise UnknownTextError("a table block without an end")
        for chain, rule in rules:
            self._refer(rule)
            chain.rules.append(rule)

    def _declare(self, kind: str, name: str, declaration: str) -> None:
        item = self._found().containers.setdefault(name, Container(kind, declaration))
        if (item.kind, item.declaration) != (kind, declaration):
            raise _refused(EXIST, name)

    def _hook(self, name: str, hook: str) -> None:
        chain = self._found().chains.setdefault(name, Chain(hook))
        if hook and chain.hook != hook:
            raise _refused("Operation not supported", name)


def _chain_lines(chain: Chain, lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        if line == "\t}":
            return
        if not line.startswith("\t\t"):
            raise UnknownTextError(line)
        if found := re.fullmatch(r'\t\tcomment (".*")', line):
            chain.comment = chain.comment or found[1]
        else:
            yield line[2:]


def _elements(inside: str) -> Iterator[tuple[str, str]]:
    for item in _ITEM.findall(inside):
        key, _, data = item.strip().partition(" : ")
        yield key, data


def _overlaps(item: Container, key: str) -> bool:
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


def _items(table: Table) -> Iterator[dict[str, object]]:
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
