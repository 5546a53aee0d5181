"""Bringing the kernel's table from one state to the next: by one transaction, or by a rebuild."""

import os
from collections.abc import Callable, Mapping
from typing import NamedTuple

from virt_forward.claims import index as claims
from virt_forward.config import Config
from virt_forward.errors import NftError, NftUnusableError
from virt_forward.host import log, nft
from virt_forward.model import Guest
from virt_forward.ruleset import static, table

AllGuests = Callable[[], Mapping[str, Guest | None]]
"""Reads all guests, a file each: only what rebuilds the table calls it."""


class Table(NamedTuple):
    """The include file of the kernel's table now; ``rebuilt`` tells whether it had to be rebuilt."""

    include: table.Include
    rebuilt: bool = False


class Step(NamedTuple):
    """From which guests and claims to which; ``include`` is the file before, None where it cannot be trusted.

    ``running`` tells whether a running guest is concerned, whose rules deserve a look at the kernel.
    """

    include: table.Include | None
    before: tuple[Guest, ...]
    after: tuple[Guest, ...]
    claims_before: claims.Index
    claims_after: claims.Index

    @property
    def running(self) -> bool:
        """Tell whether a running guest is concerned, whose rules deserve a look at the kernel."""
        return any(guest.phase == "running" for guest in (*self.before, *self.after))


def change(step: Step, guests: AllGuests, config: Config) -> Table:
    """Make the kernel's table what a step says, and return it.

    ``guests`` returns all guests after the step, for a rebuild. Raises NftError.
    """
    if step.include is None or not step.include.paragraphs:
        return rebuild(step.include, guests, config)
    blocks = _blocks(step, config)
    if table.knows_more(step.include, blocks):
        return rebuild(step.include, guests, config)
    if blocks.same() and not step.running:
        return Table(step.include)
    include = table.splice(step.include, blocks)
    try:
        if include.paragraphs:
            nft.apply(table.transaction(step.include, blocks))
        else:
            nft.delete_table()
    except NftUnusableError:
        raise
    except NftError as error:
        log.warning(f"the table is not as it was left ({error}); it is rebuilt")
        return rebuild(step.include, guests, config)
    return Table(include)


def _blocks(step: Step, config: Config) -> table.Change:
    touching = tuple(row for guest in (*step.before, *step.after) for row in claims.rows(guest))
    return table.Change(
        table.blocks_of(step.before, step.claims_before, touching, config),
        table.blocks_of(step.after, step.claims_after, touching, config),
    )


def rebuild(before: table.Include | None, guests: AllGuests, config: Config) -> Table:
    """Make the kernel's table that of all guests, whatever it is now, and return it. Raises NftError."""
    # Never a revision that a table somebody saved and loaded again may have by chance.
    revision = before.revision + 1 if before else int.from_bytes(os.urandom(3))
    include = table.whole(filter(None, guests().values()), config, revision)
    known_empty = before is not None and not before.paragraphs
    if not include.paragraphs:
        if not known_empty:
            nft.delete_table()
    elif known_empty:
        nft.apply(table.text(include))
    else:
        _replace(include, config)
    return Table(include, rebuilt=True)


def _replace(include: table.Include, config: Config) -> None:
    """Rebuild the table without deleting it, so that no packet finds it without its hooks."""
    found = nft.parts()
    if found is None or found.others - set(static.containers()):
        nft.apply(table.text(include))
        return
    try:
        nft.apply(table.rebuild(include, config, found.chains))
    except NftUnusableError:
        raise
    except NftError as error:
        # Another version's table may have maps of other types: then nothing but a new one will do.
        log.warning(f"the table cannot be converted ({error}); it is replaced")
        nft.apply(table.text(include))
