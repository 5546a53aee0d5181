"""The whole table as text, and the transactions between two states of it.

The include file is a header and one paragraph a block, separated by empty lines, so that
one guest's change can be spliced into it without rendering the other guests. Its revision
is an element of a set in the table, too: a transaction that finds another revision there
fails as a whole, which tells us that somebody flushed or replaced the table.
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
from virt_forward.ruleset.block import Block, add, remove

_NUMBER = "([0-9]{1,19})"
_REVISION = re.compile(rf"add element {TABLE} revision {{ {_NUMBER} }}\Z")
_COMMENT = re.compile(rf"# revision {_NUMBER}\n")


_NOTICE = "# Written by virt-forward whenever a guest starts or stops: do not edit.\n"
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
    """Blocks before and after, by their keys; a block that is equal in both is left alone."""

    before: Mapping[str, Block]
    after: Mapping[str, Block]

    def same(self) -> bool:
        """Tell whether nothing changes."""
        return not self.removed() and not self.added()

    def removed(self) -> list[Block]:
        """Return the blocks to remove, in an order in which nft accepts it: guests' before shared ones."""
        return _ordered(block for key, block in self.before.items() if self.after.get(key) != block)

    def added(self) -> list[Block]:
        """Return the blocks to add, in an order in which nft accepts it: guests' before shared ones."""
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
    made = (guest_block.block(guest, config) for guest in guests)
    found = {block.key: block for block in made if block}
    return found | shared.blocks(index, touching, config)


def whole(guests: Iterable[Guest], config: Config, revision: int) -> Include:
    """Return the include file for a set of guests whose conflicts are settled."""
    guests = tuple(guests)
    index = tuple(row for guest in guests for row in claims.rows(guest))
    blocks = _ordered(blocks_of(guests, index, index, config).values())
    return Include(_header(config), revision, tuple(map(add, blocks)))


def text(include: Include) -> str:
    """Return an include file's text: loads on its own, any number of times."""
    if not include.paragraphs:
        return f"{_EMPTY}# revision {include.revision}\n"
    top = f"{include.header}\nadd element {TABLE} revision {{ {include.revision} }}"
    return "\n\n".join([top, *include.paragraphs]) + "\n"


def parse(source: str, config: Config) -> Include | None:
    """Return an include file taken apart; None where it is not one that this configuration made."""
    empty = _COMMENT.fullmatch(source, len(_EMPTY))
    if empty and source.startswith(_EMPTY):
        return Include(_header(config), int(empty[1]), ())
    top, *paragraphs = source.rstrip("\n").split("\n\n")
    found = _REVISION.search(top)
    header = top[: found.start()].rstrip("\n") if found else ""
    if not found or header != _header(config):
        return None
    return Include(header, int(found[1]), tuple(paragraphs))


def splice(include: Include, change: Change) -> Include:
    """Return the include file after a change: guests first, as shared blocks refer to them."""
    added = change.added()
    changed = {f"# {block.key}" for block in (*change.removed(), *added)}
    kept = [text for text in include.paragraphs if text.partition("\n")[0] not in changed]
    first = [add(block) for block in added if not block.shared]
    last = [add(block) for block in added if block.shared]
    return Include(include.header, include.revision + 1, (*first, *kept, *last))


def knows_more(include: Include, change: Change) -> bool:
    """Tell whether the file has a block that the change adds and does not replace.

    The record of its guest was lost, so that what the kernel has of it is not known: the table must be
    rebuilt.
    """
    new = {f"# {block.key}" for block in change.added() if block.key not in change.before}
    return bool(new) and any(text.partition("\n")[0] in new for text in include.paragraphs)


def transaction(include: Include, change: Change) -> str:
    """Return the commands of a change on top of a kernel that holds ``include``."""
    guard = [
        f"delete element {TABLE} revision {{ {include.revision} }}",
        f"add element {TABLE} revision {{ {include.revision + 1} }}",
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
