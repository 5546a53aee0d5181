"""A look at the table by itself, for what no event has told."""

import re

from virt_forward.host import nft
from virt_forward.state.store import Store


def intact(store: Store) -> bool:
    """Tell, without the lock, whether the kernel has the table of the include file, by its revision.

    While a hook is about to write the file the two differ, too: whoever takes the lock then
    finds nothing to do. A change that is queued or was interrupted is one that the table lacks.
    """
    if store.left()[0] or store.read("unfinished") is not None:
        return False
    text = store.read("ruleset.nft")
    if text is None:
        return False
    top = text.partition("\n\n")[0]
    found = re.search(r"\brevision \{ (\d+) \}\Z", top.rstrip("\n"))
    if found is None:
        # Without forwards that are open there is no table.
        return nft.revision() is None
    return nft.revision() == int(found[1]) and nft.dispatches()
