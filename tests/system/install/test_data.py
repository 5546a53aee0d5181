"""The files that systemd reads."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import netns
from support.netns import Ns
from support.proc import REPO, run

DATA = REPO / "lib/virt_forward/data"
UNIT = "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\nExecReload=/bin/true\n"
TABLE = """table inet virt-forward
delete table inet virt-forward
table inet virt-forward {
  chain x { }
}
"""


def verify(directory: Path, dropin: str) -> tuple[int, str]:
    (directory / "nftables.service.d").mkdir()
    (directory / "nftables.service").write_text(UNIT)
    (directory / "nftables.service.d/virt-forward.conf").write_text(dropin)
    done = run(
        ["systemd-analyze", "verify", "--man=no", directory / "nftables.service"],
        env={"PATH": netns.PATH, "SYSTEMD_UNIT_PATH": f"{directory}:"},
        timeout=30,
        check=False,
    )
    return done.status, done.err


def test_systemd_accepts_the_drop_in(tmp_path: Path) -> None:
    assert verify(tmp_path, (DATA / "nftables-virt-forward.conf").read_text()) == (0, "")


def test_systemd_would_have_said_so(tmp_path: Path) -> None:
    broken = (DATA / "nftables-virt-forward.conf").read_text().replace("/bin/sh -c", "/bin/missing -c 'x")
    assert verify(tmp_path, broken) != (0, "")


@pytest.fixture
def host() -> Iterator[Ns]:
    namespace = Ns(f"{netns.PREFIX}dropin")
    yield namespace
    namespace.remove()


def commands_of_the_drop_in() -> dict[str, list[str]]:
    """Split what systemd runs as systemd does, which for these lines is as a shell does."""
    lines = (DATA / "nftables-virt-forward.conf").read_text().splitlines()
    pairs = [line.split("=", 1) for line in lines if line.startswith("Exec")]
    return {key: shlex.split(command.removeprefix("-")) for key, command in pairs}


def on_private_run(host: Ns, prepare: str, command: list[str]) -> int:
    """Run one of the drop-in's commands where /run is empty but for what ``prepare`` makes."""
    script = f"mount -t tmpfs private /run && {prepare} && {shlex.join(command)}"
    return host.run(["unshare", "--mount", "sh", "-c", script], check=False).status


@pytest.mark.root
@pytest.mark.parametrize("key", ["ExecStartPost", "ExecReload"])
def test_drop_in_brings_the_table_back_after_a_flush(host: Ns, key: str) -> None:
    command = commands_of_the_drop_in()[key]
    prepare = f"mkdir /run/virt-forward && printf %s {shlex.quote(TABLE)} >/run/virt-forward/ruleset.nft"
    host.nft("table inet theirs { }")
    for _ in range(2):
        assert on_private_run(host, prepare, command) == 0
        assert "table inet virt-forward" in host.ruleset()
    host.nft("flush ruleset")
    assert on_private_run(host, prepare, command) == 0
    assert "table inet virt-forward" in host.ruleset()


@pytest.mark.root
@pytest.mark.parametrize("key", ["ExecStartPost", "ExecReload"])
def test_drop_in_without_a_file_does_nothing(host: Ns, key: str) -> None:
    assert on_private_run(host, "true", commands_of_the_drop_in()[key]) == 0
    assert host.ruleset() == ""


def test_drop_in_never_fails_the_service() -> None:
    lines = (DATA / "nftables-virt-forward.conf").read_text().splitlines()
    commands = [line for line in lines if line.startswith("Exec")]
    assert [line.split("=")[0] for line in commands] == ["ExecStartPost", "ExecReload"]
    assert all("=-/bin/sh -c '" in line for line in commands)
