"""Bringing the kernel's table to what it should be where it may be anything now."""

from virt_forward import names
from virt_forward.config import Config
from virt_forward.errors import NftError, NftUnusableError
from virt_forward.host import log, nft
from virt_forward.ruleset import guest as guest_block
from virt_forward.ruleset import static, table


def load(include: table.Include, config: Config, *, absent: bool = False) -> None:
    """Make the table that of an include file; raises NftError.

    ``absent`` tells that there is none now.
    """
    if not include.paragraphs:
        nft.delete_table()
        return
    found = None if absent else nft.parts()
    if found is None or found.others - set(static.containers()):
        nft.apply(table.replacement(include))
        return
    try:
        # The table is not deleted, so that no packet finds it without its hooks.
        nft.apply(table.rebuild(include, config, found.chains))
    except NftUnusableError:
        raise
    except NftError as error:
        # Another version's table may have maps of other types: then nothing but a new one will do.
        log.warning(f"the table cannot be converted ({error}); it is replaced")
        nft.apply(table.replacement(include))


def empty_chains(name: str, uuid: str) -> None:
    """Empty the chains of a guest of which nothing is known: nothing leads to it then; raises NftError."""
    suffix, found = names.suffix(name, uuid), nft.parts()
    chains = {guest_block.nat_chain(suffix), guest_block.count_chain(suffix)}
    chains &= found.chains if found else set()
    if chains:
        nft.apply("".join(f"flush chain {names.TABLE} {chain}\n" for chain in sorted(chains)))
