"""The whole table as text, and the transactions between two states of it.

The include file is a header and one paragraph a block, separated by empty lines, so that
one guest's change can be spliced into it without rendering the other guests anew. Its
revision stands in the table, too: a transaction that finds another revision than the file
has fails as a whole, which tells us that somebody flushed or replaced the table.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from virt_forward.claims import index as claims
from virt_forward.config import Config
from virt_forward.model import Guest
from virt_forward.names import TABLE
from virt_forward.ruleset import guest as guest_block
from virt_forward.ruleset import shared, static
from virt_forward.ruleset.block import Block, load, unload

_NUMBER = "([0-9]{1,19})"
_REVISION = re.compile(rf"add element {TABLE} revision {{ {_NUMBER} }}\Z")


_NOTICE = "# Made by virt-forward, and made anew with every guest that starts or stops: do not edit.\n"
_EMPTY = (
    f"{_NOTICE}# No running guest has forwards, so there is no table.\n"
    f"add table {TABLE}\ndelete table {TABLE}\n"
)


class Include(NamedTuple):
    """The include file taken apart."""

    header: str
    revision: int
    paragraphs: tuple[str, ...]


class Change(NamedTuple):
    """Blocks before and after, by their keys; blocks that are equal in both need nothing."""

    before: Mapping[str, Block]
    after: Mapping[str, Block]

    def same(self) -> bool:
        """Tell whether nothing changes."""
        return not self.gone() and not self.come()

    def gone(self) -> list[Block]:
        """Return the blocks to take out, in the order in which they may go."""
        return _ordered(block for key, block in self.before.items() if self.after.get(key) != block)

    def come(self) -> list[Block]:
        """Return the blocks to bring in, in the order in which they may come."""
        return _ordered(block for key, block in self.after.items() if self.before.get(key) != block)


def _ordered(blocks: Iterable[Block]) -> list[Block]:
    return sorted(blocks, key=lambda block: (block.shared, block.key))


def blocks_of(
    guests: Iterable[Guest],
    index: Iterable[claims.Row],
    touching: Iterable[claims.Row],
    config: Config,
) -> dict[str, Block]:
    """Return the blocks of ``guests``, and the shared ones that ``touching`` have a part in."""
    own = (guest_block.block(guest, config) for guest in guests)
    found = {block.key: block for block in own if block}
    return found | shared.blocks(index, touching)


def whole(guests: Iterable[Guest], config: Config, revision: int) -> Include:
    """Return the include file for a set of guests whose conflicts are settled."""
    guests = tuple(guests)
    index = tuple(row for guest in guests for row in claims.rows(guest))
    blocks = _ordered(blocks_of(guests, index, index, config).values())
    return Include(_header(config), revision, tuple(load(block) for block in blocks))


def text(include: Include) -> str:
    """Return an include file's text: loads on its own, any number of times."""
    if not include.paragraphs:
        return f"{_EMPTY}# revision {include.revision}\n"
    top = f"{include.header}\nadd element {TABLE} revision {{ {include.revision} }}"
    return "\n\n".join([top, *include.paragraphs]) + "\n"


def parse(source: str, config: Config) -> Include | None:
    """Return an include file taken apart; None where it is not one that this configuration made."""
    empty = re.fullmatch(rf"{re.escape(_EMPTY)}# revision {_NUMBER}\n", source)
    if empty:
        return Include(_header(config), int(empty[1]), ())
    top, *paragraphs = source.rstrip("\n").split("\n\n")
    found = _REVISION.search(top)
    header = top[: found.start()].rstrip("\n") if found else ""
    if not found or header != _header(config):
        return None
    return Include(header, int(found[1]), tuple(paragraphs))


def splice(include: Include, change: Change) -> Include:
    """Return the include file after a change: guests first, as shared blocks refer to them."""
    gone = {f"# {block.key}" for block in (*change.gone(), *change.come())}
    kept = [text for text in include.paragraphs if text.partition("\n")[0] not in gone]
    come = change.come()
    first = [load(block) for block in come if not block.shared]
    last = [load(block) for block in come if block.shared]
    return Include(include.header, include.revision + 1, (*first, *kept, *last))


def knows_more(include: Include, change: Change) -> bool:
    """Tell whether the file has a block that is to come though it was not there before.

    Its guest's record was lost; what the kernel has of it cannot be told apart from what comes.
    """
    new = {f"# {block.key}" for block in change.come() if block.key not in change.before}
    return bool(new) and any(text.partition("\n")[0] in new for text in include.paragraphs)


def transaction(include: Include, change: Change) -> str:
    """Return the commands of a change on top of a kernel that holds ``include``."""
    guard = [
        f"delete element {TABLE} revision {{ {include.revision} }}",
        f"add element {TABLE} revision {{ {include.revision + 1} }}",
    ]
    gone = unload(change.gone(), change.come())
    return "\n".join([*guard, *gone, *map(load, change.come())]) + "\n"


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
    return "\n".join([*lines, *include.paragraphs]) + "\n"


def _header(config: Config) -> str:
    return "\n".join(
        [
            f"{_NOTICE}add table {TABLE}",
            f"delete table {TABLE}",
            static.render(config),
            static.render_rules(config),
        ]
    )
