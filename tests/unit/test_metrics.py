"""``metrics``: what it says of forwards and of the table, as Prometheus' own parser reads it."""

from __future__ import annotations

import stat
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.metrics_core import Metric

from support.metrics import openmetrics, prometheus
from unit.build import UUID
from virt_forward.cli.metrics import Reading, families
from virt_forward.cli.openmetrics import Family, render
from virt_forward.cli.report import Line
from virt_forward.errors import VirtForwardError
from virt_forward.host.new_files import replace
from virt_forward.model import Forward

OTHER = "7a5c1a9e-0000-4000-8000-000000000002"
WEB = Forward("tcp", 8080, 8080, 80)
RANGE = Forward(
    "udp",
    5000,
    5020,
    6000,
    address=ip_address("2001:db8::1"),
    dev="enp1s0",
    source=ip_network("2001:db8:2::/64"),
)
LINES = [
    Line("web", UUID, WEB, ("10.10.0.200",), ("declared",), "active", None, 12, 5130),
    Line("web", UUID, RANGE, (), (), "waiting"),
    Line("db", OTHER, Forward("tcp", 5432, 5432, 5432), (), (), "inactive"),
]
READING = Reading(LINES, 1, True, True, 7, 1700000000.25)


def read(reading: Reading) -> dict[str, Metric]:
    return {family.name: family for family in openmetrics(render(families(reading)))}


def samples(family: Metric) -> list[tuple[str, dict[str, str], float]]:
    return [(sample.name, dict(sample.labels), sample.value) for sample in family.samples]


def test_counters_are_of_one_forward_each() -> None:
    found = read(READING)
    web = {"domain": "web", "uuid": UUID, "proto": "tcp", "port": "8080", "to": "80"}
    limits = {"address": "2001:db8::1", "dev": "enp1s0", "source": "2001:db8:2::/64"}
    ranged = {"domain": "web", "uuid": UUID, "proto": "udp", "port": "5000-5020", "to": "6000-6020", **limits}
    assert samples(found["virt_forward_forward_packets"]) == [
        ("virt_forward_forward_packets_total", web, 12),
        ("virt_forward_forward_packets_total", ranged, 0),
    ]
    assert samples(found["virt_forward_forward_bytes"])[0][2] == 5130
    assert found["virt_forward_forward_bytes"].type == "counter"
    assert found["virt_forward_forward_bytes"].unit == "bytes"
    assert [value for _, _, value in samples(found["virt_forward_forward_active"])] == [1, 0, 0]


def test_forwards_are_counted_by_state_and_none_is_left_out() -> None:
    found = read(READING)
    states = {labels["state"]: value for _, labels, value in samples(found["virt_forward_forwards"])}
    assert states == {"active": 1, "waiting": 1, "conflict": 0, "inactive": 1, "missing": 0}
    guests = {labels["state"]: value for _, labels, value in samples(found["virt_forward_guests"])}
    assert guests == {"running": 1, "inactive": 1}
    assert samples(found["virt_forward_guests_invalid"]) == [("virt_forward_guests_invalid", {}, 1)]


def value(reading: Reading, name: str) -> float | None:
    family = read(reading).get(f"virt_forward_{name}")
    return family.samples[0].value if family else None


def test_table_is_told_whatever_libvirt_says() -> None:
    gone = READING._replace(lines=None, matches=False)
    assert value(gone, "libvirt_reachable") == 0
    assert value(gone, "table_matches") == 0
    assert value(gone, "table_revision") == 7
    assert value(gone, "table_changed_timestamp_seconds") == 1700000000.25
    assert value(gone, "forwards") is None
    absent = Reading([], matches=True)
    assert (value(absent, "table_present"), value(absent, "table_matches")) == (0, 1)
    assert value(absent, "table_revision") is None


def test_node_exporters_format_reads_the_same_values() -> None:
    """Its textfile collector refuses a file with a type that it does not know."""
    text = render(families(READING))
    older = {sample.name: sample.value for family in prometheus(text) for sample in family.samples}
    newer = {sample.name: sample.value for family in openmetrics(text) for sample in family.samples}
    assert older == newer
    types = {line.split()[3] for line in text.splitlines() if line.startswith("# TYPE")}
    assert types <= {"counter", "gauge", "histogram", "summary", "untyped"}


@given(st.text(max_size=40), st.text(max_size=40))
def test_any_label_value_is_read_back_printable(name: str, said: str) -> None:
    text = render([Family("a", "gauge", said, {(("name", name),): 1})])
    (family,) = openmetrics(text)
    (sample,) = family.samples
    assert all(character.isprintable() for character in sample.labels["name"])
    if name.isprintable():
        assert sample.labels["name"] == name


def test_same_labels_are_one_sample() -> None:
    twice = READING._replace(lines=[LINES[0], LINES[0]])
    assert value(twice, "forward_packets") == 24


def test_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "virt-forward.prom"
    path.write_text("old")
    with path.open() as reader:
        replace(str(path), "new")
        assert reader.read() == "old", "whoever had it open reads the old text"
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert [entry.name for entry in tmp_path.iterdir()] == ["virt-forward.prom"]


def test_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(VirtForwardError, match=r"none/a.prom: cannot be written: No such"):
        replace(str(tmp_path / "none/a.prom"), "")
    (tmp_path / "folder").mkdir()
    with pytest.raises(VirtForwardError, match="folder: cannot be written: Is a directory"):
        replace(str(tmp_path / "folder"), "")
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]
