"""Taking everything back: what the uninstaller runs before it removes the files.

PYTHONPATH=lib python3 -c 'from virt_forward.reconcile import teardown; teardown.main()'
"""

from virt_forward.errors import VirtForwardError
from virt_forward.host import log
from virt_forward.reconcile.reconciler import Reconciler
from virt_forward.state.config_file import load_config_or_last
from virt_forward.state.store import Store


def main() -> int:
    """Close every forward, end its connections, undo what was done beyond our table."""
    store = Store()
    if not store.exists():
        return 0
    try:
        with store.lock():
            reconciler = Reconciler(store, load_config_or_last(store))
            reconciler.apply(dict.fromkeys(reconciler.ledger.merged()))
    except VirtForwardError as error:
        log.error(f"uninstall: {error}")
        return 1
    return 0
