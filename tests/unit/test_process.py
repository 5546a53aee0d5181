"""Running programs: their output and exit status, and what ends them."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.proc import REPO, eventually, is_tied
from virt_forward.host import process
from virt_forward.host.process import Result, run


@pytest.fixture(autouse=True)
def _no_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_until", None)


def test_input_and_output_are_complete() -> None:
    text = "é\n" * 200_000
    assert run(["cat"], text) == Result(0, text, "")
    assert run(["cat"]) == Result(0, "", "")


def test_exit_status_and_error_text_are_returned() -> None:
    assert run(["sh", "-c", "echo out; echo err >&2; exit 3"]) == Result(3, "out\n", "err\n")
    assert run(["sh", "-c", "kill -TERM $$"]).status == -15


def test_output_that_is_not_utf_8_is_replaced() -> None:
    assert run(["printf", r"a\377b"]).stdout == "a\N{REPLACEMENT CHARACTER}b"


def test_program_that_does_not_exist_has_status_127() -> None:
    assert run(["virt-forward-no-such-program"]) == Result(
        127, "", "virt-forward-no-such-program: No such file or directory"
    )
    assert run(["/dev/null"]).status == 127


def test_path_of_the_environment_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "cat"
    program.write_text("#!/bin/sh\necho replaced\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run(["cat"]).stdout == "replaced\n"
    assert run(["true"]).status == 0
    monkeypatch.delenv("PATH")
    assert run(["cat"]).stdout == ""


def test_program_gets_only_path_and_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    names = {line.partition("=")[0] for line in run(["env"]).stdout.splitlines()}
    assert names == {"PATH", "LC_ALL"}


def ended(pidfd: int) -> bool:
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(20_000))


@contextlib.contextmanager
def watched(pid: int) -> Iterator[int]:
    """Give a descriptor of a process."""
    pidfd = os.pidfd_open(pid)
    try:
        yield pidfd
    finally:
        os.close(pidfd)


SLEEPS = "sh -c 'echo $$ > {}; exec sleep 600' & wait"
"""A program that does not end, and has started another one that does not, either."""


def test_timeout_ends_a_program_with_all_that_it_has_started(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    assert run(["sh", "-c", SLEEPS.format(pid)], timeout=1) == Result(
        124, "", "sh did not finish within 1 seconds"
    )
    with contextlib.suppress(ProcessLookupError), watched(int(pid.read_text())) as pidfd:
        assert ended(pidfd)


def test_deadline_of_the_process_limits_a_program() -> None:
    process.limit(0.1)
    assert run(["sleep", "600"]).status == 124
    assert run(["sleep", "600"]).status == 124


def test_program_that_was_not_waited_for_is_waited_for_later() -> None:
    pid = os.posix_spawn("/bin/sleep", ["sleep", "600"], {})
    process._done.append(pid)
    assert not process.finish(0.01)
    os.kill(pid, process.SIGKILL)
    assert process.finish(30)
    assert not process._done
    assert not os.path.exists(f"/proc/{pid}")
    assert process.finish(0)


PARENT = """
import os, sys
sys.path.insert(0, sys.argv[1])
from virt_forward.host import process
process.inherited.add(int(sys.argv[2]))
process.run(["sh", "-c", sys.argv[3]], timeout=600)
"""


def test_killed_process_takes_its_program_along(tmp_path: Path) -> None:
    """The program holds the lock until it has ended as well."""
    fifo, (reader, writer) = tmp_path / "fifo", os.pipe()
    os.mkfifo(fifo)
    argv = [sys.executable, "-c", PARENT, str(REPO / "lib"), str(writer), SLEEPS.format(fifo)]
    kept = [(os.POSIX_SPAWN_DUP2, writer, writer)]
    parent = os.posix_spawn(sys.executable, argv, dict(os.environ), file_actions=kept)
    os.close(writer)
    pid = int(fifo.read_text())
    eventually(lambda: is_tied(pid), "the program is tied to its parent")
    with watched(pid) as pidfd:
        os.kill(parent, process.SIGKILL)
        os.waitpid(parent, 0)
        assert ended(pidfd)
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_half_of_the_time_left_is_kept_for_what_follows() -> None:
    with process.half_of_time_left():
        assert process.left(100.0) == 100.0, "without a deadline there is nothing to share"
    process.limit(60.0)
    with process.half_of_time_left():
        assert 20.0 < process.left(100.0) <= 30.0
    assert 50.0 < process.left(100.0) <= 60.0


def test_no_descriptor_is_inherited_or_left() -> None:
    before = set(os.listdir("/proc/self/fd"))
    with open(os.memfd_create("private"), "wb") as private:
        targets = run(["sh", "-c", "for fd in /proc/self/fd/*; do readlink $fd; done"]).stdout
        assert private.fileno() not in (0, 1, 2)
    assert "memfd:private" not in targets
    assert set(os.listdir("/proc/self/fd")) == before
