"""Taking everything back: what the uninstaller runs before it removes the files.

PYTHONPATH=lib python3 -c 'from virt_forward.reconcile import teardown; teardown.main()'
"""

import contextlib

from virt_forward.effects import converge
from virt_forward.errors import VirtForwardError
from virt_forward.host import log
from virt_forward.reconcile.reconciler import Reconciler
from virt_forward.state.config_file import load_config_or_last
from virt_forward.state.store import Store


def main() -> int:
    """Close every forward, end its connections, undo what was done outside our table.

    Return 0, or 1 where something of that failed. What is outside our table is taken back even
    where the state is damaged, in use, or not found.
    """
    store = Store()
    status = 0
    with contextlib.ExitStack() as stack:
        if store.exists():
            try:
                stack.enter_context(store.lock())
                reconciler = Reconciler(store, load_config_or_last(store))
                reconciler.apply(dict.fromkeys(reconciler.ledger.merged()))
            except VirtForwardError as error:
                log.error(f"uninstall: {error}")
                status = 1
        if not converge.release(store):
            status = 1
    return status
