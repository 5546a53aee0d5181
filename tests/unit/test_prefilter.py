"""The look that spares a guest which is not ours everything else."""

from __future__ import annotations

from pathlib import Path

import pytest

from unit.build import UUID, domain_xml, forwards_xml
from virt_forward.hooks.prefilter import OPERATIONS, concerns_us

OURS = domain_xml(forwards_xml("").decode())
OTHERS = domain_xml()


@pytest.fixture(autouse=True)
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VIRT_FORWARD_RUN_DIR", str(tmp_path))
    return tmp_path


def test_metadata_of_ours_concerns_us_while_it_can_matter() -> None:
    concerned = {operation for operation in OPERATIONS if concerns_us(["web", operation, "begin"], OURS)}
    assert concerned == {"prepare", "started", "reconnect", "restore"}


@pytest.mark.parametrize("operation", ["start", "attach", "migrate", "frobnicate", ""])
def test_other_operations_never_do(operation: str, run_dir: Path) -> None:
    (run_dir / "guests").mkdir()
    (run_dir / "guests" / f"{UUID}.json").touch()
    assert not concerns_us(["web", operation, "begin"], OURS)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("kind", ["guests", "todo"])
def test_a_guest_with_a_record_always_does(operation: str, kind: str, run_dir: Path) -> None:
    assert not concerns_us(["web", operation, "end"], OTHERS)
    (run_dir / kind).mkdir()
    (run_dir / kind / f"{UUID}{'.1.2' * (kind == 'todo')}.json").touch()
    assert concerns_us(["web", operation, "end"], OTHERS)
    assert concerns_us(["web", operation, "end"], domain_xml(uuid=UUID.upper()))


@pytest.mark.parametrize("more", [["todo"], []], ids=["whole", "half gone"])
def test_a_guest_whose_change_was_cut_off_does(run_dir: Path, more: list[str]) -> None:
    for name in more:
        (run_dir / name).mkdir()
    (run_dir / "unfinished").write_text(f"{UUID}\n")
    assert concerns_us(["web", "stopped", "end"], OTHERS)
    assert not concerns_us(["web", "stopped", "end"], domain_xml(uuid=UUID.replace("9", "8")))


@pytest.mark.parametrize("arguments", [[], ["web"]])
def test_too_few_arguments(arguments: list[str]) -> None:
    assert not concerns_us(arguments, OURS)


@pytest.mark.parametrize("uuid", ["", "../x", "/etc/passwd", "\u00e9", "x" * 5000])
def test_an_odd_uuid_is_nobody(uuid: str, run_dir: Path) -> None:
    (run_dir / "guests").mkdir()
    (run_dir / "x.json").touch()
    assert not concerns_us(["web", "stopped", "end"], domain_xml(uuid=uuid))


def test_no_xml_at_all() -> None:
    assert not concerns_us(["web", "stopped", "end"], b"")
