"""The first check of a hook, which ends it early for guests without our metadata."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.xml import Network, network_hook, uuid_of
from unit.build import UUID, domain_xml, forwards_xml
from virt_forward.hooks.prefilter import (
    NETWORK_OPERATIONS,
    OPERATIONS,
    PORT_OPERATIONS,
    concerns_us,
    network_concerns_us,
    owner_of,
)

OURS = domain_xml(forwards_xml("").decode())
OTHERS = domain_xml()


@pytest.fixture(autouse=True)
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VIRT_FORWARD_RUN_DIR", str(tmp_path))
    return tmp_path


def make_state(run_dir: Path) -> None:
    (run_dir / "state.db").touch()
    (run_dir / "guests").mkdir()


def test_own_metadata_matters_for_starting_operations(run_dir: Path) -> None:
    make_state(run_dir)
    concerned = {operation for operation in OPERATIONS if concerns_us(["web", operation, "begin"], OURS)}
    assert concerned == {"prepare", "started", "reconnect", "restore"}


@pytest.mark.parametrize("operation", ["stopped", "release"])
@pytest.mark.parametrize("lost", ["state.db", "guests", "all"])
def test_own_metadata_matters_for_a_stop_where_the_state_is_lost(
    operation: str, lost: str, run_dir: Path
) -> None:
    if lost != "all":
        make_state(run_dir)
        (run_dir / lost).rename(run_dir / "elsewhere")
    assert concerns_us(["web", operation, "end"], OURS)
    assert not concerns_us(["web", operation, "end"], OTHERS)


@pytest.mark.parametrize("operation", ["start", "attach", "migrate", "frobnicate", ""])
def test_other_operations_never_matter(operation: str, run_dir: Path) -> None:
    (run_dir / "guests").mkdir()
    (run_dir / "guests" / UUID).touch()
    assert not concerns_us(["web", operation, "begin"], OURS)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_guest_with_marker_always_matters(operation: str, run_dir: Path) -> None:
    assert not concerns_us(["web", operation, "end"], OTHERS)
    (run_dir / "guests").mkdir()
    assert not concerns_us(["web", operation, "end"], OTHERS)
    (run_dir / "guests" / UUID).touch()
    assert concerns_us(["web", operation, "end"], OTHERS)
    assert concerns_us(["web", operation, "end"], domain_xml(uuid=UUID.upper()))


def test_every_guest_matters_until_the_state_of_an_older_version_is_taken_over(run_dir: Path) -> None:
    (run_dir / "networks").mkdir()
    assert concerns_us(["web", "stopped", "end"], OTHERS)


@pytest.mark.parametrize("arguments", [[], ["web"]])
def test_too_few_arguments_do_not_matter(arguments: list[str]) -> None:
    assert not concerns_us(arguments, OURS)


@pytest.mark.parametrize("uuid", ["", ".", "..", "../x", "/etc/passwd", "\u00e9", "x" * 5000])
def test_invalid_uuid_does_not_matter(uuid: str, run_dir: Path) -> None:
    (run_dir / "guests").mkdir()
    (run_dir / "x").touch()
    assert not concerns_us(["web", "stopped", "end"], domain_xml(uuid=uuid))


def test_empty_xml_does_not_matter() -> None:
    assert not concerns_us(["web", "stopped", "end"], b"")


PORT = network_hook(Network(), port_of="web").encode()
WEB = uuid_of("web")


@pytest.mark.parametrize("operation", PORT_OPERATIONS)
def test_port_matters_if_its_owner_has_a_marker(operation: str, run_dir: Path) -> None:
    assert not network_concerns_us(["default", operation, "begin"], PORT)
    (run_dir / "guests").mkdir()
    (run_dir / "guests" / uuid_of("db")).touch()
    assert not network_concerns_us(["default", operation, "begin"], PORT)
    (run_dir / "guests" / WEB).touch()
    assert network_concerns_us(["default", operation, "begin"], PORT)


@pytest.mark.parametrize("text", ["<title>{}</title>", "<metadata><!-- {} --></metadata>"])
def test_text_of_a_network_is_not_taken_for_its_port(text: str, run_dir: Path) -> None:
    """Whoever edits a network's metadata does not choose whose port an event is about."""
    foreign = text.format(PORT.decode().replace(WEB, uuid_of("db")))
    data = PORT.replace(b"<network>", f"<network>{foreign}".encode())
    (run_dir / "guests").mkdir()
    (run_dir / "guests" / WEB).touch()
    assert owner_of(data) == WEB
    assert network_concerns_us(["default", "port-created", "begin"], data)


def test_port_without_an_owner_is_left_to_the_parser() -> None:
    data = network_hook(Network()).encode()
    assert network_concerns_us(["default", "port-created", "begin"], data)


@pytest.mark.parametrize("operation", NETWORK_OPERATIONS)
def test_whole_network_always_matters(operation: str) -> None:
    assert network_concerns_us(["default", operation, "begin"], network_hook(Network()).encode())


@pytest.mark.parametrize("arguments", [[], ["default"], ["default", "start"], ["default", "plugged"]])
def test_other_network_operations_never_matter(arguments: list[str]) -> None:
    assert not network_concerns_us(arguments, PORT)
