"""The whole table as text, and the transactions between two states of it.

The include file is a header and one paragraph a block, separated by empty lines. The first line of a
paragraph is the key of its block, by which they are sorted: so one guest's change can be spliced into
the file without rendering, or even reading, the others. Its revision is an element of a set in the
table, too: a transaction that finds another revision there fails as a whole, which tells us that
somebody flushed or replaced the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from virt_forward.claims import index as claims
from virt_forward.config import Config
from virt_forward.model import Guest
from virt_forward.namedtuple import NamedTuple
from virt_forward.names import TABLE
from virt_forward.ruleset import guest as guest_block
from virt_forward.ruleset import shared, static
from virt_forward.ruleset.block import Block, add, remove

_NOTICE = "# Written by virt-forward whenever a guest starts or stops: do not edit.\n"
_EMPTY = (
    f"{_NOTICE}# No running guest has an open forward, so there is no table.\n"
    f"add table {TABLE}\ndelete table {TABLE}\n"
)


class Include(NamedTuple):
    """The include file in parts."""

    header: str
    revision: int
    paragraphs: tuple[str, ...]


class Change(NamedTuple):
    """Blocks before and after, by their keys; a block that is equal in both is left alone."""

    before: Mapping[str, Block]
    after: Mapping[str, Block]

    def same(self) -> bool:
        """Tell whether nothing changes."""
        return not self.removed() and not self.added()

    def removed(self) -> list[Block]:
        """Return the blocks to remove, in an order in which nft accepts it."""
        return _ordered(block for key, block in self.before.items() if self.after.get(key) != block)

    def added(self) -> list[Block]:
        """Return the blocks to add, in an order in which nft accepts it."""
        return _ordered(block for key, block in self.after.items() if self.before.get(key) != block)


def _ordered(blocks: Iterable[Block]) -> list[Block]:
    return sorted(blocks, key=lambda block: _order(block.key.encode()))


def _order(key: bytes) -> tuple[bool, bytes]:
    """Return what blocks are sorted by: guests' first, as shared ones refer to their chains."""
    return not key.startswith(guest_block.KEY.encode()), key


def blocks_of(
    guests: Iterable[Guest],
    index: Iterable[claims.Row],
    touching: Iterable[claims.Row],
    config: Config,
) -> dict[str, Block]:
    """Return the blocks of ``guests``, and the shared ones that ``touching`` have a part in."""
    made = (guest_block.block(guest, config) for guest in guests)
    found = {block.key: block for block in made if block}
    return found | shared.blocks(index, touching, config)


def whole(guests: Iterable[Guest], config: Config, revision: int) -> Include:
    """Return the include file for guests whose conflicts are resolved."""
    guests = tuple(guests)
    index = tuple(row for guest in guests for row in claims.rows(guest))
    blocks = _ordered(blocks_of(guests, index, index, config).values())
    return Include(_header(config), revision, tuple(map(add, blocks)))


def text(include: Include) -> str:
    """Return an include file's text: loads on its own, any number of times."""
    if not include.paragraphs:
        return f"{_EMPTY}# revision {include.revision}\n"
    return "\n\n".join([_top(include.header, include.revision), *include.paragraphs]) + "\n"


def replacement(include: Include) -> str:
    """Return commands to the same effect as :func:`text`, which nft and the kernel run in less time."""
    return "\n".join([_top(include.header, include.revision), *_grouped(include.paragraphs)]) + "\n"


def regrouped(text: str) -> str:
    """Return the commands of an include file's text in the form of :func:`replacement`."""
    top, *paragraphs = text.removesuffix("\n").split("\n\n")
    return "\n".join([top, *_grouped(paragraphs)]) + "\n"


def _grouped(paragraphs: Iterable[str]) -> list[str]:
    """Return the commands of paragraphs with one command for all elements of a map, after all chains.

    A large table loads a little faster than with a command for each block's elements.
    """
    chains: list[str] = []
    elements: dict[str, list[str]] = {}
    for line in (line for paragraph in paragraphs for line in paragraph.split("\n")):
        if line.startswith("add element "):
            command, _, keys = line.partition(" { ")
            elements.setdefault(command, []).append(keys.removesuffix(" }"))
        else:
            chains.append(line)
    return [*chains, *(f"{command} {{ {', '.join(keys)} }}" for command, keys in elements.items())]


def _top(header: str, revision: int) -> str:
    return f"{header}\nadd element {TABLE} revision {{ {revision} }}"


def splice(
    data: bytes, before: int, after: int, change: Change, config: Config
) -> list[bytes | memoryview] | None:
    """Return the pieces of the include file of revision ``after``, out of that of revision ``before``.

    Together they are what :func:`text` returns. Paragraphs of other blocks are neither read nor copied here.
    None where the file is not one of that revision and this configuration, or has other blocks than
    the change knows of.
    """
    top = _top(_header(config), before).encode() + b"\n"
    if not data.startswith(top + b"\n# "):
        return None
    new = {block.key: block for block in change.added()}
    old = {block.key: block for block in change.removed()}
    pieces: list[bytes | memoryview] = [_top(_header(config), after).encode() + b"\n"]
    view, end = memoryview(data), len(top)
    for key in (block.key for block in _ordered((old | new).values())):
        start = _find_paragraph(data, key.encode(), end)
        known = data.startswith(f"\n# {key}\n".encode(), start)
        if known != (key in change.before):
            return None
        pieces.append(view[end:start])
        pieces += [_paragraph(add(new[key]))] if key in new else []
        end = _end_of_paragraph(data, start) if known else start
    return [*pieces, view[end:]]


def _find_paragraph(data: bytes, key: bytes, low: int) -> int:
    """Return where the paragraph of a block begins, or has to be inserted: at its empty line.

    ``low`` is where one begins that is not after it. By bisection, a paragraph at a time.
    """
    wanted, high = _order(key), len(data)
    while low < high:
        # The one with the byte in the middle; from the line break that ends the paragraph before it.
        start = data.rfind(b"\n\n# ", low - 1, (low + high) // 2 + 3) + 1
        if _order(data[start + 3 : data.find(b"\n", start + 3)]) < wanted:
            low = _end_of_paragraph(data, start)
        else:
            high = start
    return low


def _end_of_paragraph(data: bytes, start: int) -> int:
    end = data.find(b"\n\n# ", start + 1)
    return len(data) if end < 0 else end + 1


def _paragraph(text: str) -> bytes:
    return f"\n{text}\n".encode()


def transaction(before: int, after: int, change: Change) -> str:
    """Return the commands of a change on top of a kernel that has revision ``before``.

    They fail as a whole where it has another one. Without a change of blocks, they only look.
    """
    guard = [
        f"delete element {TABLE} revision {{ {before} }}",
        f"add element {TABLE} revision {{ {after} }}",
    ]
    added = change.added()
    return "\n".join([*guard, *remove(change.removed(), added), *map(add, added)]) + "\n"


def rebuild(include: Include, config: Config, chains: Iterable[str]) -> str:
    """Return the commands that make an existing table right without deleting it.

    ``chains`` are the names of those it has. Base chains stay registered, so that no
    packet finds the table without its hooks.
    """
    stale = sorted(set(chains) - set(static.base_chains(config)))
    lines = [static.render(config), f"flush table {TABLE}"]
    for name, declaration in static.containers().items():
        lines.append(f"flush {declaration.partition(' ')[0]} {TABLE} {name}")
    lines += [f"delete chain {TABLE} {name}" for name in stale]
    lines.append(static.render_rules(config))
    lines.append(f"add element {TABLE} revision {{ {include.revision} }}")
    return "\n".join([*lines, *_grouped(include.paragraphs)]) + "\n"


def _header(config: Config) -> str:
    return "\n".join(
        [
            f"{_NOTICE}add table {TABLE}",
            f"delete table {TABLE}",
            static.render(config),
            static.render_rules(config),
        ]
    )
