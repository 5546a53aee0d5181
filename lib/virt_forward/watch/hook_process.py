"""The process that handles events which hooks hand over (hooks.handover).

It is a child process of the service with one thread, and has loaded what an event may need. Each event
is handled in a fork of it, by the same function as in a hook: so events do not wait for each other or for
the service, state is read from the run directory each time, and what an event leaves in memory is gone.
"""

import contextlib
import gc
import io
import math
import os
import select
import signal
import socket
import subprocess
import sys
import time
from typing import NoReturn

from virt_forward.hooks import dispatch, handover
from virt_forward.host import log, process
from virt_forward.state.store import Store
from virt_forward.watch import child
from virt_forward.watch.backoff import Backoff

MAX_EVENTS = 64
"""The most events at a time. libvirt calls hooks one by one for each guest; more wait for their turn."""

MAX_BYTES = 16 * 1024 * 1024
"""The most bytes of an event; libvirt's own limit on a domain's XML is less."""

EVENT_SECONDS = dispatch.SECONDS + handover.SECONDS
"""How long an event may take until its process is killed."""

STABLE_SECONDS = 60.0
"""How long the process has to run for the backoff to start again."""

CHECK_SECONDS = 10.0
"""How often to check that the socket is still there: somebody may have removed the run directory."""


class HookProcess:
    """The service's view of it: it is started again when it ends."""

    def __init__(self, poller: select.poll) -> None:
        self._poller = poller
        self._child: subprocess.Popen[bytes] | None = None
        self._backoff = Backoff()
        self._started = self._next_start = -math.inf
        self.fd = -1

    def next_at(self) -> float:
        """Return when the process is to be started, on the monotonic clock; infinity while it runs."""
        return math.inf if self._child else self._next_start

    def start(self) -> None:
        """Start the process; after a failure, ``next_at`` returns when to try again."""
        self._started = time.monotonic()
        try:
            # It ends when its standard input is closed, as the kernel does if the service is killed.
            self._child = subprocess.Popen(
                child.argv(__name__), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
            )
        except OSError as error:
            self._schedule_restart(str(error.strerror))
            return
        self.fd = os.pidfd_open(self._child.pid)
        self._poller.register(self.fd, select.POLLIN)

    def restart_later(self) -> None:
        """Schedule a new start of the process, which has ended."""
        assert self._child is not None
        status = self._child.wait()
        self.stop()
        self._schedule_restart(f"exit status {status}")

    def _schedule_restart(self, reason: str) -> None:
        if time.monotonic() - self._started >= STABLE_SECONDS:
            self._backoff.reset()
        seconds = self._backoff.wait()
        self._next_start = time.monotonic() + seconds
        log.warning(
            f"watch: the process for the events of hooks has ended ({reason}); it is started again in "
            f"{seconds:g} seconds, and hooks work by themselves until then"
        )

    def stop(self) -> None:
        """End the process, if it runs; events that it has begun are finished."""
        if self._child:
            self._child.kill()
            self._child.wait(5)
            assert self._child.stdin is not None
            self._child.stdin.close()
            self._poller.unregister(self.fd)
            os.close(self.fd)
            self._child, self.fd = None, -1


def main() -> int:
    """Handle events until standard input is closed. Returns the exit status."""
    # Who stops the service stops this process by it, and events are finished.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _load()
    # What is loaded stays: a fork that looked for garbage in it would get copies of it all.
    gc.collect()
    gc.freeze()
    try:
        _Server().run()
    except OSError as error:
        log.error(
            f"watch: hooks cannot hand over events: {error.filename or handover.NAME}: {error.strerror}"
        )
        return 1
    return 0


def _load() -> None:
    """Import what events may need beyond what this module needs, and compile patterns of the host's files."""
    import shutil  # noqa: F401
    import tomllib  # noqa: F401

    from virt_forward.addresses import resolve  # noqa: F401
    from virt_forward.effects.libvirt_accept import iptables, networks, nftables  # noqa: F401
    from virt_forward.hooks import network_events  # noqa: F401
    from virt_forward.host import collect, hostports, probe_socket, sockdiag  # noqa: F401
    from virt_forward.metadata import domain  # noqa: F401
    from virt_forward.reconcile import located  # noqa: F401
    from virt_forward.state import upgrade  # noqa: F401

    collect.bridge_facts("", {}, collect.networkd_files())


class _Server:
    """The listening socket, and the processes of the events that are being handled."""

    def __init__(self) -> None:
        self._poller = select.poll()
        self._events: dict[int, tuple[int, float]] = {}
        self._listener = _listen()
        for fd in (0, self._listener.fileno()):
            self._poller.register(fd, select.POLLIN)

    def run(self) -> None:
        """Handle events until standard input is closed. Raises OSError."""
        while True:
            soonest = min((until for _, until in self._events.values()), default=math.inf)
            seconds = min(max(soonest - time.monotonic(), 0), CHECK_SECONDS)
            ready = {fd for fd, _ in self._poller.poll(math.ceil(seconds * 1000))}
            if 0 in ready:
                return
            if self._listener.fileno() in ready:
                self._accept()
            self._end_events(ready)
            # What is not accepted waits in the queue of the socket.
            busy = len(self._events) >= MAX_EVENTS
            self._poller.modify(self._listener.fileno(), 0 if busy else select.POLLIN)
            if not os.path.exists(os.path.join(Store().path, handover.NAME)):
                self._replace_socket()

    def _accept(self) -> None:
        with contextlib.suppress(OSError), self._listener.accept()[0] as connection:
            pid = os.fork()
            if pid == 0:
                self._listener.close()
                _handle(connection)
            pidfd = os.pidfd_open(pid)
            self._events[pidfd] = (pid, time.monotonic() + EVENT_SECONDS)
            self._poller.register(pidfd, select.POLLIN)

    def _end_events(self, ready: set[int]) -> None:
        """Forget the events that are done, and kill the processes of those that take too long."""
        for pidfd, (pid, until) in [*self._events.items()]:
            if pidfd in ready:
                os.waitpid(pid, 0)
                self._poller.unregister(pidfd)
                os.close(pidfd)
                del self._events[pidfd]
            elif until <= time.monotonic():
                os.kill(pid, signal.SIGKILL)
                self._events[pidfd] = (pid, math.inf)

    def _replace_socket(self) -> None:
        """Listen again: somebody has removed the run directory."""
        self._poller.unregister(self._listener.fileno())
        self._listener.close()
        self._listener = _listen()
        self._poller.register(self._listener.fileno(), select.POLLIN)


def _listen() -> socket.socket:
    """Return a socket that listens in the run directory, in place of any former one. Raises OSError."""
    os.makedirs(Store().path, 0o700, exist_ok=True)
    directory = handover.open_directory()
    # Replaced as a whole: a hook finds one that listens. Store.sweep() removes what a killed process left.
    temporary = handover.socket_path(directory, f".{handover.NAME}.{os.getpid()}.new")
    listener, before = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), os.umask(0o177)
    try:
        listener.bind(temporary)
        listener.listen(MAX_EVENTS)
        listener.setblocking(False)
        os.rename(temporary, handover.socket_path(directory))
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(before)
        os.close(directory)
    return listener


def _handle(connection: socket.socket) -> NoReturn:
    """Handle the event of a connection, answer, and end this process."""
    try:
        connection.settimeout(handover.SECONDS)
        driver, arguments, data = _receive(connection)
        process.work_for(lambda: _is_open(connection))
        sys.stderr = io.StringIO()
        status = dispatch.main(driver, arguments, data)
        text = sys.stderr.getvalue().encode("utf-8", "replace")
        connection.sendall(b"%d %d\n%b" % (status, len(text), text))
    except (OSError, ValueError):
        # The hook does it, and does not wait for its time limit, as the connection is closed.
        pass
    finally:
        os._exit(0)


def _receive(connection: socket.socket) -> tuple[str, list[str], bytes]:
    """Return driver, arguments and XML of an event. Raises OSError, or ValueError if it is not for us."""
    if not handover.is_own_peer(connection):
        raise ValueError("another user's")
    with connection.makefile("rb") as file:
        sizes = [int(word) for word in file.readline(64).split()]
        if len(sizes) != 2 or not 0 <= sum(sizes) <= MAX_BYTES:
            raise ValueError("no event")
        head, data = map(file.read, sizes)
    if [len(head), len(data)] != sizes:
        raise ValueError("half an event")
    directory = handover.open_directory()
    ours = handover.common(directory)
    os.close(directory)
    words = os.fsdecode(head).split("\0")
    if words[: len(ours)] != ours:
        raise ValueError("of another program, network namespace, run directory or configuration")
    os.environ["PATH"], driver, *arguments = words[len(ours) :]
    return driver, arguments, data


def _is_open(connection: socket.socket) -> bool:
    """Tell whether the hook waits for its answer."""
    poller = select.poll()
    poller.register(connection, 0)
    return not poller.poll(0)
