"""A block: chains and elements that are added and removed together, in one transaction."""

from __future__ import annotations

from collections.abc import Iterable

from virt_forward.namedtuple import NamedTuple
from virt_forward.names import TABLE


class Chain(NamedTuple):
    """A regular chain; ``comment`` is already quoted.

    Without one, it is a chain that the static part declares, and the block has its rules alone.
    """

    name: str
    comment: str
    rules: tuple[str, ...]


class Element(NamedTuple):
    """One element of a named set, or of a verdict map where it has data."""

    container: str
    key: str
    data: str = ""


class Block(NamedTuple):
    """``key`` is unique in the table."""

    key: str
    chains: tuple[Chain, ...] = ()
    elements: tuple[Element, ...] = ()


def add(block: Block) -> str:
    """Return the commands that add a block to the table, as one paragraph without an empty line.

    Chains are added one by one: for each block of a table, nft makes a cache, which takes half a MiB and a
    quarter of a millisecond.
    """
    chains = (line for chain in block.chains for line in _chain(chain))
    return "\n".join([f"# {block.key}", *chains, *_elements("add", block.elements)])


def remove(blocks: Iterable[Block], added: Iterable[Block] = ()) -> list[str]:
    """Return the commands that remove blocks from the table, whatever refers to whatever in them.

    Chains of the blocks that are ``added`` afterwards are flushed but not deleted: a block that
    stays may refer to them.
    """
    blocks = list(blocks)
    kept = {chain.name for block in added for chain in block.chains}
    chains = [chain for block in blocks for chain in block.chains]
    lines = _elements("delete", (e._replace(data="") for block in blocks for e in block.elements))
    lines += [f"flush chain {TABLE} {chain.name}" for chain in chains]
    gone = [chain.name for chain in chains if chain.comment and chain.name not in kept]
    return lines + [f"delete chain {TABLE} {name}" for name in gone]


def _chain(chain: Chain) -> list[str]:
    comment = [f"\tcomment {chain.comment}"] if chain.comment else []
    return [f"add chain {TABLE} {chain.name} {{", *comment, *(f"\t{rule}" for rule in chain.rules), "}"]


def _elements(verb: str, elements: Iterable[Element]) -> list[str]:
    grouped: dict[str, list[str]] = {}
    for element in elements:
        data = f" : {element.data}" if element.data else ""
        grouped.setdefault(element.container, []).append(element.key + data)
    return [f"{verb} element {TABLE} {name} {{ {', '.join(keys)} }}" for name, keys in grouped.items()]
