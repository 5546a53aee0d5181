"""Taking everything back: what the uninstaller runs before it removes the files.

python3 -I -c 'import sys; sys.path.insert(0, "lib"); from virt_forward.teardown import main; main()'
"""

from virt_forward import hostfacts, log
from virt_forward.engine import Engine
from virt_forward.errors import VirtForwardError
from virt_forward.settings import load_config_or_last
from virt_forward.store import Store


def main() -> int:
    """Close every forward, end its connections, undo what was done beyond our table."""
    store = Store()
    if not store.exists():
        return 0
    try:
        with store.lock():
            engine = Engine(store, load_config_or_last(store), hostfacts.own_addresses())
            engine.change(dict.fromkeys(engine.guests()))
    except VirtForwardError as error:
        log.error(f"uninstall: {error}")
        return 1
    return 0
