"""Taking everything back: what the uninstaller runs before it removes the files.

PYTHONPATH=lib python3 -c 'from virt_forward.reconcile import teardown; teardown.main()'
"""

from virt_forward.effects import converge
from virt_forward.errors import VirtForwardError
from virt_forward.host import log
from virt_forward.reconcile.apply import reconcile
from virt_forward.reconcile.planning import context
from virt_forward.reconcile.wants import Absent
from virt_forward.state import database
from virt_forward.state.config_file import load_config_or_last
from virt_forward.state.snapshot import Snapshot
from virt_forward.state.store import Store


def main() -> int:
    """Close every forward, end its connections, undo what was done outside our table.

    Return 0, or 1 where something of that failed. What is outside our table is taken back even
    where the state is damaged, in use, or not found.
    """
    store = Store()
    try:
        with store.open(create=store.exists()) as state:
            closed = not store.exists() or _close_all(store, state)
            return 0 if converge.release(state) and closed else 1
    except VirtForwardError as error:
        log.error(f"uninstall: {error}")
        converge.release(_nothing())
        return 1


def _close_all(store: Store, state: Snapshot) -> bool:
    try:
        work = context(store, state, load_config_or_last(state))
        reconcile(work, [Absent(uuid) for uuid in state.guests()])
    except VirtForwardError as error:
        log.error(f"uninstall: {error}")
        return False
    return True


def _nothing() -> Snapshot:
    """Return an empty state that is in memory alone."""
    return Snapshot(database.in_memory(), ":memory:")
