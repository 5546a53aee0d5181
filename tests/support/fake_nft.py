"""As much of nft as our commands need, in memory: a transaction is applied as a whole or not at all.

It reads the text that virt_forward.ruleset renders, and fails a test on any other. Rules are opaque
lines of which only the chains, maps and sets that they refer to are known. nft's errors are those
that we rely on; that the real nft does the same is what support.nft_contract is for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from support import fake_table
from support.fake_table import (
    BUSY,
    EXIST,
    NOENT,
    TABLE,
    Chain,
    Container,
    Table,
    listed,
    overlaps,
    references,
    refused,
)
from virt_forward.host.nft import Parts

_COMMAND = re.compile(rf"(add|delete|flush) (table|chain|map|set|element) {TABLE}(?: (\S+))?(?: {{ (.*) }})?")
_DECLARED = re.compile(r"(map|set) (\S+) { (type .*;) }")
_HOOKED = re.compile(r"chain (\S+) { ?(.*?) ?}")
_OPENED = re.compile(r"chain (\S+) {")
_ADDED = re.compile(rf"add chain {TABLE} (\S+) {{")
_ITEM = re.compile(r'(?:"[^"]*"|[^",])+')


class UnknownTextError(BaseException):
    """The text is none that the fake understands: the fake has to learn it, or the text is wrong.

    Not an Exception, so that the hook under test does not handle it.
    """


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
        chain = self.table.chains.get("prerouting") if self.table else None
        return chain is not None and any("vmap" in rule for rule in chain.rules)

    def listing(self) -> list[dict[str, object]] | None:
        """Return items in the form of nft's JSON; elements and rules in it are our own text."""
        return None if self.table is None else list(fake_table.items(self.table))

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
            elif found := _ADDED.fullmatch(line):
                chain = self._found().chains.setdefault(found[1], Chain())
                self._add_rules([(chain, rule) for rule in _chain_lines(chain, lines, "\t")])
            elif found := _COMMAND.fullmatch(line):
                self._command(found[1], found[2], found[3] or "", found[4])
            else:
                raise UnknownTextError(line)
        return self._table

    def _found(self) -> Table:
        if self._table is None:
            raise refused(NOENT, TABLE)
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
            raise refused(BUSY, name)
        del self._found().chains[name]

    def _flush_map(self, name: str) -> None:
        self._found().container(name).elements.clear()

    _flush_set = _flush_map

    def _delete_map(self, name: str) -> None:
        self._found().container(name)
        if f"@{name}" in self._found().referred():
            raise refused(BUSY, name)
        del self._found().containers[name]

    _delete_set = _delete_map

    def _add_element(self, name: str, inside: str) -> None:
        item = self._found().container(name)
        for key, data in _elements(inside):
            if (item.kind == "map") != bool(data):
                raise UnknownTextError(f"{name}: {key} : {data}")
            self._refer(data)
            if item.elements.get(key, data) != data or (item.interval and overlaps(item, key)):
                raise refused(EXIST, f"{name} {key}")
            item.elements[key] = data

    def _delete_element(self, name: str, inside: str) -> None:
        item = self._found().container(name)
        for key, _ in _elements(inside):
            if key not in item.elements:
                raise refused(NOENT, f"{name} {key}")
            del item.elements[key]

    def _refer(self, text: str) -> None:
        for name in references(text):
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
                rules += ((chain, rule) for rule in _chain_lines(chain, lines, "\t\t"))
            else:
                raise UnknownTextError(line)
        else:
            raise UnknownTextError("a table block without an end")
        self._add_rules(rules)

    def _add_rules(self, rules: Iterable[tuple[Chain, str]]) -> None:
        for chain, rule in rules:
            self._refer(rule)
            chain.rules.append(rule)

    def _declare(self, kind: str, name: str, declaration: str) -> None:
        item = self._found().containers.setdefault(name, Container(kind, declaration))
        if (item.kind, item.declaration) != (kind, declaration):
            raise refused(EXIST, name)

    def _hook(self, name: str, hook: str) -> None:
        chain = self._found().chains.setdefault(name, Chain(hook))
        if hook and chain.hook != hook:
            raise refused("Operation not supported", name)


def _chain_lines(chain: Chain, lines: Iterator[str], indent: str) -> Iterator[str]:
    for line in lines:
        if line == f"{indent[1:]}}}":
            return
        if not line.startswith(indent):
            raise UnknownTextError(line)
        if found := re.fullmatch(r'comment (".*")', line.removeprefix(indent)):
            chain.comment = chain.comment or found[1]
        else:
            yield line.removeprefix(indent)


def _elements(inside: str) -> Iterator[tuple[str, str]]:
    for item in _ITEM.findall(inside):
        key, _, data = item.strip().partition(" : ")
        yield key, data
