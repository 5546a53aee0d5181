"""Checking the table without an event, in case one was missed."""

import re

from virt_forward.host import nft
from virt_forward.state.store import Store


def is_intact(store: Store) -> bool:
    """Tell, without the lock, whether the kernel has the revision of the include file.

    False as well while a hook is about to write the file; the caller then takes the lock and finds
    nothing to do. False also if a change is queued or was interrupted, as the table lacks it.
    """
    if store.queued()[0] or store.read("unfinished") is not None:
        return False
    text = store.read("ruleset.nft")
    if text is None:
        return False
    top = text.partition("\n\n")[0]
    found = re.search(r"\brevision \{ (\d+) \}\Z", top.rstrip("\n"))
    if found is None:
        # Without open forwards there is no table.
        return nft.revision() is None
    return nft.revision() == int(found[1]) and nft.dispatches()
