"""Checking the table without an event, in case one was missed, and loading it when it is gone."""

from virt_forward.errors import NftError
from virt_forward.host import nft
from virt_forward.names import TABLE
from virt_forward.state.include import IncludeFile
from virt_forward.state.store import Store


def load_include(store: Store) -> bool:
    """Load the include file if the kernel has no table, and tell whether that was done.

    It is not if there is no such file, or it is not that of the state, or not of all that is queued. The
    caller then has to look at the state as a whole. Raises LockTimeout, StateError.
    """
    with store.open() as state:
        include = IncludeFile(store.include_path)
        if state.queued or not state.has_table() or not include.is_named(state.value("include")):
            return False
        try:
            # That there is no table is part of the transaction.
            nft.apply(f"create table {TABLE}\n{include.read().decode()}")
        except NftError:
            return False
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
