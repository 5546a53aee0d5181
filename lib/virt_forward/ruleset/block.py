"""A block: chains and elements that come and go together, in one transaction."""

from collections.abc import Iterable
from typing import NamedTuple

from virt_forward.names import TABLE


class Chain(NamedTuple):
    """A regular chain; ``comment`` is already quoted."""

    name: str
    comment: str
    rules: tuple[str, ...]


class Element(NamedTuple):
    """One element of a named set, or of a verdict map where it has data."""

    container: str
    key: str
    data: str = ""


class Block(NamedTuple):
    """``key`` is unique in the table; ``shared`` blocks refer to the chains of the others."""

    key: str
    chains: tuple[Chain, ...] = ()
    elements: tuple[Element, ...] = ()
    shared: bool = False


def load(block: Block) -> str:
    """Return the commands that bring a block into the table, as one paragraph."""
    lines = [f"# {block.key}"]
    if block.chains:
        lines += [f"table {TABLE} {{", *(line for chain in block.chains for line in _chain(chain)), "}"]
    lines += _elements("add", block.elements)
    return "\n".join(lines)


def unload(blocks: Iterable[Block], come: Iterable[Block] = ()) -> list[str]:
    """Return the commands that take blocks out of the table, whatever refers to whatever in them.

    Chains that ``come`` back are only emptied: a block that stays may refer to them.
    """
    blocks = list(blocks)
    back = {chain.name for block in come for chain in block.chains}
    chains = [chain.name for block in blocks for chain in block.chains]
    lines = _elements("delete", (e._replace(data="") for block in blocks for e in block.elements))
    lines += [f"flush chain {TABLE} {name}" for name in chains]
    return lines + [f"delete chain {TABLE} {name}" for name in chains if name not in back]


def _chain(chain: Chain) -> list[str]:
    rules = [f"\t\t{rule}" for rule in chain.rules]
    return [f"\tchain {chain.name} {{", f"\t\tcomment {chain.comment}", *rules, "\t}"]


def _elements(verb: str, elements: Iterable[Element]) -> list[str]:
    grouped: dict[str, list[str]] = {}
    for element in elements:
        data = f" : {element.data}" if element.data else ""
        grouped.setdefault(element.container, []).append(element.key + data)
    return [f"{verb} element {TABLE} {name} {{ {', '.join(keys)} }}" for name, keys in grouped.items()]
