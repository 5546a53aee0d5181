"""Reading the configuration file."""

import contextlib
import os

from virt_forward.config import DEFAULT_PATH, Config, parse_config
from virt_forward.errors import StateError, VirtForwardError
from virt_forward.host import log
from virt_forward.state.snapshot import Snapshot


def path() -> str:
    """Return the path of the configuration file."""
    return os.environ.get("VIRT_FORWARD_CONFIG") or DEFAULT_PATH


def read() -> str:
    """Return the text of the configuration, empty where there is no file."""
    try:
        with open(path(), encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise VirtForwardError(f"{path()}: cannot be read: {error}") from None


def load_config() -> Config:
    """Return the configuration; raises VirtForwardError with every error in it."""
    return _parsed(read())


def _parsed(text: str) -> Config:
    return parse_config(text, path()) if text.strip() else Config()


def load_config_or_last(state: Snapshot | None) -> Config:
    """Return the configuration, or the last valid one where it is broken now.

    A guest that runs or stops must have its rules made or removed, even while somebody is
    half-way through an edit; and the defaults would be looser than what stood there.
    """
    try:
        text = read()
        config = _parsed(text)
    except VirtForwardError as error:
        log.error(f"{error}; the last valid configuration stays in force")
        last = state.value("config") if state else ""
        return parse_config(last, path()) if last else Config()
    if state and state.value("config") != text:
        with contextlib.suppress(StateError):
            state.set_value("config", text)
    return config
