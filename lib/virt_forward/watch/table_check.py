"""Whether the kernel has the table of the state, and restoring it where it has not."""

from virt_forward.errors import NftError
from virt_forward.host import nft
from virt_forward.names import TABLE
from virt_forward.reconcile.apply import follow_load
from virt_forward.reconcile.planning import context
from virt_forward.reconcile.refresh import verify
from virt_forward.ruleset.table import regrouped
from virt_forward.state.config_file import load_config_or_last
from virt_forward.state.include import IncludeFile
from virt_forward.state.store import Store

LARGE = 1 << 20
"""From how many bytes on an include file is that of a large table: some 4,000 forwards, a second of nft."""


def is_large(store: Store) -> bool:
    """Tell whether nft takes long to load the table."""
    return IncludeFile(store.include_path).size() >= LARGE


def restore(store: Store, *, verified: bool) -> None:
    """Restore the table where the kernel has none, or another one than the state.

    Unless it was ``verified`` before, changes that are queued are made in any case. Raises NftError,
    LockTimeout, StateError.
    """
    # A rebuild is an event, too; where the include file cannot be written, each call is one.
    if not load_include(store) and not (verified and is_intact(store)):
        verify(store)


def load_include(store: Store) -> bool:
    """Load the include file if the kernel has no table, and tell whether that was done.

    It is not if there is no such file, or it is not that of the state, or not of all that is queued. The
    caller then has to look at the state as a whole. Raises LockTimeout, StateError.
    """
    with store.open() as state:
        include = IncludeFile(store.include_path)
        if state.queued or not state.has_table() or not include.is_named(state.value("include")):
            return False
        # Of a large one, nft would read all before the kernel says that there is a table.
        if is_large(store) and nft.revision() is not None:
            return False
        try:
            # That there is no table is part of the transaction.
            nft.apply(f"create table {TABLE}\n{regrouped(include.read().decode())}")
        except NftError:
            return False
        follow_load(context(store, state, load_config_or_last(state)))
        return True


def is_intact(store: Store) -> bool:
    """Tell, without the lock, whether the kernel has the revision of the state.

    False as well while a hook is between the two; the caller then takes the lock and finds nothing to
    do. False also if a change is queued, as the table lacks it.
    """
    with store.peek() as state:
        if state is None:
            return nft.revision() is None
        if state.queued:
            return False
        revision, has_table = state.revision, state.has_table()
    # Without open forwards there is no table.
    return nft.revision() == (revision if has_table else None) and (not has_table or nft.dispatches())
