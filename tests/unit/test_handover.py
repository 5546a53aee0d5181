"""A hook hands an event over: what is sent and answered, and when the hook does the work itself."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from support.proc import REPO, children, eventually
from unit.build import UUID, domain_xml, forwards_xml
from virt_forward.hooks import handover
from virt_forward.watch import hook_process

EVENT = ("qemu", ["web", "prepare", "begin", "-"], b"<domain/>\0\xff")


@pytest.fixture(autouse=True)
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / ("long" * 30)  # more than the address of a socket can hold
    path.mkdir()
    monkeypatch.setenv("VIRT_FORWARD_RUN_DIR", str(path))
    monkeypatch.setenv("VIRT_FORWARD_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("PATH", os.environ["PATH"])
    monkeypatch.setattr(handover, "SECONDS", 5.0)
    return path


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Is set when the hook has sent all: both sides are in one process here and share what a test changes."""
    found, receive = threading.Event(), handover._receive

    def noted(connection: Any, until: float) -> tuple[int, bytes]:
        found.set()
        return receive(connection, until)

    monkeypatch.setattr(handover, "_receive", noted)
    return found


@contextlib.contextmanager
def serving(handle: Callable[[socket.socket], object]) -> Iterator[None]:
    """Answer one event in a thread."""

    def serve() -> None:
        with contextlib.suppress(OSError), listener.accept()[0] as connection:
            handle(connection)

    with hook_process._listen() as listener:
        listener.setblocking(True)
        thread = threading.Thread(target=serve)
        thread.start()
        yield
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def answering(answer: bytes) -> Callable[[socket.socket], None]:
    def handle(connection: socket.socket) -> None:
        hook_process._receive(connection)
        connection.sendall(answer)

    return handle


def test_event_arrives_as_it_was_sent(sent: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/somewhere")
    received: list[object] = []

    def handle(connection: socket.socket) -> None:
        assert sent.wait(20)
        os.environ["PATH"] = "/elsewhere"  # the service's own
        received.append(hook_process._receive(connection))
        connection.sendall(b"0 0\n")

    with serving(handle):
        assert handover.ask_service(*EVENT) == 0
    assert received == [EVENT]
    assert os.environ["PATH"] == "/somewhere"


def test_exit_status_and_message_are_the_answer(capfd: pytest.CaptureFixture[str]) -> None:
    with serving(answering(b"1 10\nerror: no\n")):
        assert handover.ask_service(*EVENT) == 1
    assert capfd.readouterr() == ("", "error: no\n")


def test_hook_does_not_wait_for_the_end_of_the_connection(capfd: pytest.CaptureFixture[str]) -> None:
    over = threading.Event()

    def answer(connection: socket.socket) -> None:
        answering(b"1 10\nerror: no\n")(connection)
        assert over.wait(20)

    with serving(answer):
        try:
            assert handover.ask_service(*EVENT) == 1
        finally:
            over.set()
    assert capfd.readouterr().err == "error: no\n"


@pytest.mark.parametrize("answer", [b"", b"0", b"0 0", b"1 10\nerror", b"1 3\nerror", b"x 0\n", b"0 0 0\n"])
def test_incomplete_answer_is_none(answer: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    with serving(answering(answer)):
        assert handover.ask_service(*EVENT) is None
    assert capfd.readouterr() == ("", "")


def test_no_socket_and_one_that_nobody_serves(run_dir: Path) -> None:
    assert handover.ask_service(*EVENT) is None
    hook_process._listen().close()
    assert (run_dir / "socket").is_socket()
    assert handover.ask_service(*EVENT) is None
    (run_dir / "socket").unlink()
    run_dir.rmdir()
    assert handover.ask_service(*EVENT) is None


@pytest.mark.parametrize("large", [False, True], ids=["no answer", "nothing read"])
def test_service_that_hangs_is_given_up(large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "SECONDS", 0.1)
    over = threading.Event()
    driver, arguments, data = EVENT
    with serving(lambda _: over.wait(20)):
        assert handover.ask_service(driver, arguments, data * (1_000_000 if large else 1)) is None
        over.set()


def test_answer_in_ever_more_pieces_does_not_extend_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "SECONDS", 0.2)
    over = threading.Event()

    def handle(connection: socket.socket) -> None:
        while not over.wait(0.02):
            connection.sendall(b"1")

    with serving(handle):
        assert handover.ask_service(*EVENT) is None
        over.set()


@pytest.mark.parametrize(
    ("name", "value"),
    [("PROTOCOL", "0"), ("PROGRAM", "another"), ("open_directory", lambda: os.open("/", 0))],
)
def test_event_of_another_version_or_place_is_refused(
    name: str, value: object, sent: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[str] = []

    def handle(connection: socket.socket) -> None:
        assert sent.wait(20)
        monkeypatch.setattr(handover, name, value)
        with pytest.raises(ValueError, match="another program") as error:
            hook_process._receive(connection)
        refused.append(str(error.value))

    with serving(handle):
        assert handover.ask_service(*EVENT) is None
    assert refused


def test_event_with_another_configuration_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = handover.common(directory := handover.open_directory())
    monkeypatch.setenv("VIRT_FORWARD_CONFIG", "/elsewhere")
    assert handover.common(directory) != sent
    os.close(directory)


@pytest.mark.parametrize("side", ["hook", "service"])
def test_peer_of_another_user_is_refused(
    side: str, sent: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    uid, refused = os.geteuid(), []

    def handle(connection: socket.socket) -> None:
        if side == "service":
            assert sent.wait(20)
            monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
            with pytest.raises(ValueError, match="user"):
                hook_process._receive(connection)
            refused.append(side)
        else:
            # Not one byte of a guest's XML is sent.
            refused.extend([side] if not connection.recv(1) else [])

    with serving(handle):
        if side == "hook":
            monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
        assert handover.ask_service(*EVENT) is None
    assert refused == [side]


@pytest.mark.parametrize("data", [b"", b"\n", b"1\n", b"-1 1\n", b"x y\n", b"99999999999 0\n", b"9 9\nshort"])
def test_invalid_event_is_refused(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(ValueError):
            hook_process._receive(ours)


def test_connection_counts_as_closed_when_the_hook_has_closed_it() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        assert hook_process._is_open(ours)
        theirs.close()
        assert not hook_process._is_open(ours)


SERVER = """
import sys
sys.path.insert(0, sys.argv[1])
from virt_forward.watch import hook_process
hook_process.CHECK_SECONDS = 0.1
hook_process.EVENTS_PER_WORKER = int(sys.argv[2])
sys.exit(hook_process.main())
"""


def answers() -> bool:
    """Have the process handle an event in which nothing is to be done."""
    return handover.ask_service("qemu", ["web", "start", "begin", "-"], b"") == 0


@contextlib.contextmanager
def real_process(events_per_worker: int = 100) -> Iterator[subprocess.Popen[bytes]]:
    argv = ["/usr/bin/python3", "-I", "-c", SERVER, str(REPO / "lib"), str(events_per_worker)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE) as process:
        eventually(answers, "it answers")
        yield process
        workers = children(process.pid)
        assert process.stdin
        process.stdin.close()
        assert process.wait(30) == 0
        eventually(lambda: not any(map(is_alive, workers)), "its workers end with it")


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; one that has ended stays until its new parent asks for its status."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except FileNotFoundError:
        return False


def hook(operation: str, data: bytes) -> subprocess.CompletedProcess[bytes]:
    argv = [str(REPO / "hooks/qemu"), "web", operation, "begin", "-"]
    return subprocess.run(argv, input=data, capture_output=True, check=False)


# A mistake ends the event before anything of the host is read or changed.
NO_PORT = forwards_xml('<vf:portForward proto="tcp"><vf:range start="0"/></vf:portForward>')
BROKEN = domain_xml(NO_PORT.decode())


def test_hook_says_the_same_with_and_without_the_service() -> None:
    alone = hook("prepare", BROKEN)
    assert (alone.returncode, alone.stdout) == (1, b"")
    assert b"port" in alone.stderr
    with real_process():
        handed_over = hook("prepare", BROKEN)
    assert (handed_over.returncode, handed_over.stdout) == (1, b"")
    assert handed_over.stderr == alone.stderr


def test_worker_handles_one_event_after_the_other_each_with_its_own_answer() -> None:
    with real_process() as server:
        workers = children(server.pid)
        assert len(workers) == 1
        for word in (b"0", b"70000", b"-1"):
            refused = hook("prepare", BROKEN.replace(b'"0"', b'"' + word + b'"'))
            assert refused.returncode == 1
            assert refused.stderr.count(b"error:") == 1
            assert b'start="' + word + b'"' in refused.stderr
            assert answers()
        assert set(workers) <= set(children(server.pid))
        assert len(children(server.pid)) <= hook_process.MAX_IDLE


def test_worker_is_replaced_after_so_many_events() -> None:
    with real_process(events_per_worker=3) as server:
        seen = set()
        for _ in range(8):
            assert answers()
            seen |= {*children(server.pid)}
        assert len(seen) >= 3
        # An event that comes before a worker has said that it is done has another one.
        eventually(lambda: len(children(server.pid)) <= hook_process.MAX_IDLE, "those replaced end")


def test_worker_that_was_killed_is_replaced() -> None:
    with real_process() as server:
        (worker,) = children(server.pid)
        os.kill(worker, signal.SIGKILL)
        eventually(lambda: worker not in children(server.pid), "it is noticed")
        assert answers()
        assert len(children(server.pid)) == 1


def test_events_do_not_wait_for_each_other_and_few_workers_stay(run_dir: Path) -> None:
    """All of them wait for the lock, each in a worker of its own."""
    (run_dir / "guests").mkdir()
    (run_dir / "guests" / UUID).touch()
    with real_process() as server, ThreadPoolExecutor(6) as pool, (run_dir / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        event = ("qemu", ["web", "stopped", "end", "-"], domain_xml())
        found = [pool.submit(handover.ask_service, *event) for _ in range(6)]
        eventually(lambda: len(children(server.pid)) == 6, "each event has a worker")
        assert answers()
        fcntl.flock(lock, fcntl.LOCK_UN)
        assert [each.result() for each in found] == [0] * 6
        eventually(lambda: len(children(server.pid)) == hook_process.MAX_IDLE, "the others end")
        assert answers()


def test_workers_end_with_a_process_that_is_killed() -> None:
    argv = ["/usr/bin/python3", "-I", "-c", SERVER, str(REPO / "lib"), "100"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE) as server:
        eventually(answers, "it answers")
        workers = children(server.pid)
        server.kill()
    eventually(lambda: not any(map(is_alive, workers)), "its workers end")


def test_socket_that_was_removed_is_put_back(run_dir: Path) -> None:
    with real_process():
        (run_dir / "socket").unlink()
        eventually((run_dir / "socket").is_socket, "the socket is back")
        # A hook waits for its answer for a limited time, in which a busy machine may not get to it.
        eventually(answers, "it answers")
