"""Checking the table without an event, in case one was missed."""

from virt_forward.host import nft
from virt_forward.state.store import Store


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
