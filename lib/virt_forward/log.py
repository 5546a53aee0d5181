"""Messages to the journal, identifier virt-forward. Hooks have no other place to speak."""

import syslog

from virt_forward import text


def error(message: str) -> None:
    """Log something that a person should look at."""
    _log(syslog.LOG_ERR, message)


def warning(message: str) -> None:
    """Log something that was not as it should be and did no harm."""
    _log(syslog.LOG_WARNING, message)


def info(message: str) -> None:
    """Log what was done."""
    _log(syslog.LOG_INFO, message)


def _log(priority: int, message: str) -> None:
    syslog.openlog("virt-forward", syslog.LOG_PID, syslog.LOG_DAEMON)
    syslog.syslog(priority, text.line(message))
