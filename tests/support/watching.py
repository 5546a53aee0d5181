"""The service on a host of namespaces: ``virt-forward watch`` beside libvirt's test driver.

The driver (``test:///PATH``, https://libvirt.org/drvtest.html) has the domains of a file, all of them
running; each connection reads it again. So there is a libvirt to ask for guests that are namespaces.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from support.netns import HOOK_ENV, Lab
from support.proc import REPO, Background, eventually
from support.xml import Nic, uuid_of

# The test driver has no keepalive, which the service asks for; what is logged goes to a file of the test's.
PROGRAM = """\
import sys
import libvirt
from virt_forward import cli
from virt_forward.host import log
libvirt.virConnect.setKeepAlive = lambda *_: 0
log._log = lambda _, message: print(message, flush=True)
sys.exit(cli.main(["watch"]))
"""


class TestDriver:
    """libvirt with the guests that :meth:`has` was told of; the lab's configuration names it."""

    __test__ = False

    def __init__(self, lab: Lab, configuration: str = "") -> None:
        self.lab = lab
        self.path = lab.dir / "libvirt.xml"
        self.configure(configuration)
        self._domains: dict[str, str] = {}
        self._write()

    def configure(self, text: str) -> None:
        """Write config.toml: the driver's URI, and what else a test wants in it."""
        self.lab.configure(f'[libvirt]\nuri = "test://{self.path}"\n{text}')

    def has(self, name: str, metadata: str, nics: tuple[Nic, ...]) -> None:
        """Make a guest run, or run with another definition than before."""
        self._domains[name] = domain(name, metadata, nics)
        self._write()

    def forget(self, name: str) -> None:
        """End a guest."""
        self._domains.pop(name, None)
        self._write()

    def _write(self) -> None:
        self.path.write_text(f"<node>\n{''.join(self._domains.values())}</node>\n")


def domain(name: str, metadata: str, nics: tuple[Nic, ...]) -> str:
    """Write a domain of type test, which has what concerns forwards."""
    interfaces = "".join(
        f"<interface type='{nic.type}'><mac address='{nic.mac}'/>"
        f"<source {nic.type}='{nic.source}'/></interface>"
        for nic in nics
    )
    inside = f"<metadata>{metadata}</metadata>" if metadata else ""
    return f"""\
<domain type='test'>
  <name>{name}</name>
  <uuid>{uuid_of(name)}</uuid>
  {inside}
  <memory unit='KiB'>1048576</memory>
  <os><type>hvm</type></os>
  <devices>{interfaces}</devices>
</domain>
"""


class Service:
    """A running ``virt-forward watch``; made and undone by :func:`service`."""

    def __init__(self, running: Background) -> None:
        self.running = running

    def log(self) -> str:
        """Return what it has logged so far."""
        return self.running.text()

    def look(self) -> None:
        """Make it look at everything, as SIGHUP does; the test driver's file is read again."""
        os.kill(self.running.pid, signal.SIGHUP)

    def monitor(self) -> int:
        """Return the process number of its ``nft monitor``, which is started again where it ended."""
        found: list[int] = []

        def look() -> list[int]:
            tasks = Path(f"/proc/{self.running.pid}/task").iterdir()
            children = [pid for task in tasks for pid in (task / "children").read_text().split()]
            found.extend(int(p) for p in children if b"monitor" in Path(f"/proc/{p}/cmdline").read_bytes())
            return found

        eventually(look, "nft monitor runs")
        return found[0]


@contextlib.contextmanager
def service(lab: Lab) -> Iterator[Service]:
    """Run the service on the lab's host until it is told to end, as systemd does."""
    ready = lab.dir / "notify"
    clean = {**HOOK_ENV, **lab.env, "PYTHONPATH": str(REPO / "lib"), "NOTIFY_SOCKET": str(ready)}
    argv = ["ip", "netns", "exec", lab.host.name, "/usr/bin/python3", "-c", PROGRAM]
    with _notified(ready) as heard, Background(argv, lab.dir / "watch.log", env=clean) as running:
        running.wait_for(lambda: b"READY=1" in heard(), "the service is ready")
        yield Service(running)
        assert running.alive(), running.text()
        running.process.terminate()
        eventually(lambda: not running.alive(), "the service ends when it is told to")
        assert running.process.returncode == 0, running.text()


@contextlib.contextmanager
def _notified(path: Path) -> Iterator[Callable[[], bytes]]:
    """Stand in for systemd (sd_notify(3)); what is called returns what came since."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as manager:
        manager.bind(str(path))

        def heard() -> bytes:
            with contextlib.suppress(BlockingIOError):
                return manager.recv(4096)
            return b""

        try:
            yield heard
        finally:
            path.unlink()
