"""The process that handles events which hooks hand over (hooks.handover).

It is a child process of the service with one thread, and has loaded what an event may need. An event is
handled in a fork of it, a worker, by the same function as in a hook: so events do not wait for each other or
for the service, and state is read from the run directory each time. A worker handles one event after the
other: in a new one, the kernel has to copy each page that the event writes to, which takes longer than the
event. After EVENTS_PER_WORKER, what events may have left in memory is gone.
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

EVENTS_PER_WORKER = 100
"""After so many events a worker is replaced."""

MAX_IDLE = 2
"""The most workers that wait for an event."""

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
    from virt_forward.reconcile import kernel, located  # noqa: F401
    from virt_forward.state import upgrade  # noqa: F401

    collect.bridge_facts("", {}, collect.networkd_files())


class _Worker:
    """The server's view of a worker: it gets connections through ``channel``, and answers when it is done."""

    def __init__(self, pid: int, channel: socket.socket) -> None:
        self.pid = pid
        self.channel = channel
        self.until = math.inf
        """When to kill it, on the monotonic clock."""


class _Server:
    """The listening socket, and the workers."""

    def __init__(self) -> None:
        self._poller = select.poll()
        self._workers: dict[int, _Worker] = {}
        self._idle: list[_Worker] = []
        self._listener = _listen()
        for fd in (0, self._listener.fileno()):
            self._poller.register(fd, select.POLLIN)

    def run(self) -> None:
        """Handle events until standard input is closed. Raises OSError."""
        while True:
            soonest = min((worker.until for worker in self._workers.values()), default=math.inf)
            seconds = min(max(soonest - time.monotonic(), 0), CHECK_SECONDS)
            ready = {fd for fd, _ in self._poller.poll(math.ceil(seconds * 1000))}
            if 0 in ready:
                return
            self._read_workers(ready)
            if self._listener.fileno() in ready:
                self._accept()
            # What is not accepted waits in the queue of the socket.
            busy = len(self._workers) - len(self._idle) >= MAX_EVENTS
            self._poller.modify(self._listener.fileno(), 0 if busy else select.POLLIN)
            if not os.path.exists(os.path.join(Store().path, handover.NAME)):
                self._replace_socket()

    def _accept(self) -> None:
        """Give an event to a worker. Where there is none, the hook finds its connection closed."""
        if not self._idle:
            # Before there is a connection, of which it would have a copy.
            with contextlib.suppress(OSError):
                self._fork()
        with contextlib.suppress(OSError), self._listener.accept()[0] as connection:
            if self._idle:
                worker = self._idle.pop()
                worker.until = time.monotonic() + EVENT_SECONDS
                socket.send_fds(worker.channel, [b"."], [connection.fileno()])

    def _fork(self) -> None:
        """Start a worker. Raises OSError."""
        ours, theirs = socket.socketpair()
        with theirs:
            pid = os.fork()
            if pid == 0:
                # Of no other worker may this one keep a channel open: its end would not be noticed.
                for other in (self._listener, ours, *(worker.channel for worker in self._workers.values())):
                    other.close()
                _work(theirs)
        worker = _Worker(pid, ours)
        self._workers[ours.fileno()] = worker
        self._idle.append(worker)
        self._poller.register(ours.fileno(), select.POLLIN)

    def _read_workers(self, ready: set[int]) -> None:
        """Note which workers are done or have ended, and kill those that take too long."""
        for fd, worker in [*self._workers.items()]:
            if fd in ready:
                self._read(fd, worker)
            elif worker.until <= time.monotonic():
                os.kill(worker.pid, signal.SIGKILL)
                worker.until = math.inf

    def _read(self, fd: int, worker: _Worker) -> None:
        done = b""
        with contextlib.suppress(OSError):
            done = worker.channel.recv(1)
        worker.until = math.inf
        if not done:
            os.waitpid(worker.pid, 0)
            self._poller.unregister(fd)
            worker.channel.close()
            del self._workers[fd]
            self._idle = [other for other in self._idle if other is not worker]
        elif len(self._idle) < MAX_IDLE:
            self._idle.append(worker)
        else:
            worker.channel.shutdown(socket.SHUT_WR)

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
    # Replaced as a whole: a hook finds one that listens.
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


def _work(channel: socket.socket) -> NoReturn:
    """Handle the events of the connections that come through a channel, and end this process."""
    # As in a hook: garbage is collected when nobody waits for it.
    gc.disable()
    events = 0
    try:
        while True:
            _, fds, _, _ = socket.recv_fds(channel, 1, 1, socket.MSG_CMSG_CLOEXEC)
            if not fds:
                break
            with socket.socket(fileno=fds[0]) as connection:
                _handle(connection)
            events += 1
            if events >= EVENTS_PER_WORKER or not process.finish():
                break
            gc.collect()
            channel.send(b".")
    finally:
        os._exit(0)


def _handle(connection: socket.socket) -> None:
    """Handle the event of a connection, and answer."""
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
