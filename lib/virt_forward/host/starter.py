"""Which process has asked for the start of a guest: libvirt's daemon, which runs a hook as its child.

A start that was under way when the daemon ended is not finished by the next one, and no event says so: the
guest's claims to host ports would stay. A guest that was started far enough has a status file, and gets
``reconnect``.
"""

import os

from virt_forward.host.files import read_text

DAEMONS = ("libvirtd", "virtqemud")
STATUS = "/run/libvirt/qemu"
"""Where libvirt keeps the status of its running guests, as NAME.xml."""


def current() -> str:
    """Return the daemon that runs this hook, as process number and start time; empty for another parent."""
    parent = os.getppid()
    if read_text(f"/proc/{parent}/comm").strip() not in DAEMONS:
        return ""
    return f"{parent} {_started(parent)}"


def is_gone(starter: str) -> bool:
    """Tell whether the process that ``current`` has returned has ended."""
    pid, _, started = starter.partition(" ")
    return not pid.isdigit() or _started(int(pid)) != started


def has_status(name: str) -> bool:
    """Tell whether libvirt has the status of a guest of that name, which it then starts or ends by itself."""
    return "/" in name or os.path.exists(f"{STATUS}/{name}.xml")


def _started(pid: int) -> str:
    return start_ticks(read_text(f"/proc/{pid}/stat"))


def start_ticks(stat: str) -> str:
    """Return when a process was started, in ticks after boot, from proc_pid_stat(5); empty without one."""
    fields = stat.rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 else ""
