"""``add`` and ``remove`` without libvirt: which definition is changed, and that a change is whole or none."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from unit.build import UUID, domain_xml, forward
from virt_forward import cli
from virt_forward.cli import change, listing, precheck, report
from virt_forward.errors import LockTimeout, NftError, VirtForwardError
from virt_forward.host import nft
from virt_forward.libvirtd import api, metadata
from virt_forward.libvirtd.metadata import Part, Target
from virt_forward.metadata import forwards
from virt_forward.metadata.tree import Submission
from virt_forward.reconcile.resync import Outcome
from virt_forward.state.edit_lock import edit_lock
from virt_forward.state.store import Store

AFTER: dict[Part, Submission] = {"live": Submission("<new/>"), "config": Submission("<new/>")}
BEFORE: dict[Part, Submission] = {"live": Submission("<old/>"), "config": Submission(None)}
CONFIG, LIVE = 2, 1


class FakeError(Exception):
    """Stands for libvirt.libvirtError."""


class FakeDomain:
    """Stands for libvirt.virDomain: its metadata by definition; ``fails`` are calls that are refused."""

    def __init__(self, **xml: str) -> None:
        self.xml = {{"config": CONFIG, "live": LIVE}[part]: text for part, text in xml.items()}
        self.calls: list[tuple[int, str | None]] = []
        self.fails: set[int] = set()

    def setMetadata(self, kind: int, element: str | None, key: str | None, uri: str, flags: int) -> None:  # noqa: N802
        assert (kind, uri, key is None) == (2, "urn:virt-forward:1", element is None)
        self.calls.append((flags, element))
        if len(self.calls) - 1 in self.fails:
            raise FakeError("no space left")

    def XMLDesc(self, flags: int) -> str:  # noqa: N802
        return self.xml[flags or LIVE]


@pytest.fixture(autouse=True)
def libvirt(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = SimpleNamespace(
        libvirtError=FakeError,
        VIR_DOMAIN_AFFECT_LIVE=LIVE,
        VIR_DOMAIN_AFFECT_CONFIG=CONFIG,
        VIR_DOMAIN_XML_INACTIVE=CONFIG,
        VIR_DOMAIN_METADATA_ELEMENT=2,
    )
    monkeypatch.setattr(api, "module", lambda: fake)


def target(handle: Any = None, *, active: bool = True, persistent: bool = True) -> Target:
    return Target(handle, "web", UUID, active, persistent)


@pytest.mark.parametrize(
    ("active", "persistent", "asked", "parts"),
    [
        (True, True, {}, ("config", "live")),
        (True, False, {}, ("live",)),
        (False, True, {}, ("config",)),
        (True, True, {"live": True}, ("live",)),
        (True, True, {"config": True}, ("config",)),
        (True, True, {"live": True, "config": True}, ("config", "live")),
    ],
)
def test_definitions_that_are_changed(
    active: bool, persistent: bool, asked: dict[str, bool], parts: tuple[Part, ...]
) -> None:
    found = target(active=active, persistent=persistent)
    assert metadata.parts(found, **{"live": False, "config": False, **asked}) == parts


@pytest.mark.parametrize(
    ("active", "persistent", "asked", "wrong"),
    [
        (False, True, {"live": True}, "web is not running"),
        (False, True, {"live": True, "config": True}, "web is not running"),
        (True, False, {"config": True}, "web is transient"),
    ],
)
def test_definition_that_does_not_exist(
    active: bool, persistent: bool, asked: dict[str, bool], wrong: str
) -> None:
    with pytest.raises(VirtForwardError, match=wrong):
        metadata.parts(
            target(active=active, persistent=persistent), **{"live": False, "config": False, **asked}
        )


def test_metadata_is_set_in_both_definitions() -> None:
    domain = FakeDomain()
    metadata.write(target(domain), AFTER, BEFORE)
    assert domain.calls == [(CONFIG, "<new/>"), (LIVE, "<new/>")]


def test_failed_set_is_taken_back() -> None:
    domain = FakeDomain()
    domain.fails = {1}
    with pytest.raises(VirtForwardError, match=r"metadata of web \(live\): no space left") as caught:
        metadata.write(target(domain), AFTER, BEFORE)
    assert domain.calls == [(CONFIG, "<new/>"), (LIVE, "<new/>"), (CONFIG, None)]
    assert len(caught.value.messages) == 1


def test_set_that_cannot_be_taken_back_is_told() -> None:
    domain = FakeDomain()
    domain.fails = {1, 2}
    with pytest.raises(VirtForwardError) as caught:
        metadata.write(target(domain), AFTER, BEFORE)
    assert "nor back to what it was (config)" in caught.value.messages[1]


OURS = """<forwards xmlns="urn:virt-forward:1"><portForward proto="tcp">
<range start="{}"/></portForward></forwards>"""


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeDomain:
    """A running guest: port 80 in both definitions, 81 in the live one, 82 in the configuration."""
    live, config = (OURS.format(f'80"/><range start="{port}') for port in (81, 82))
    domain = FakeDomain(live=domain_xml(live).decode(), config=domain_xml(config).decode())
    states = [api.DomainState("web", UUID, True, domain_xml(live), 1)]

    @contextlib.contextmanager
    def connection(_uri: str) -> Iterator[None]:
        yield

    monkeypatch.setattr(api, "connection", connection)
    monkeypatch.setattr(api, "domains", lambda *_: states)
    monkeypatch.setattr(metadata, "target", lambda *_: target(domain))
    monkeypatch.setattr(precheck, "check", lambda *_: None)
    monkeypatch.setattr(nft, "check", lambda: None)
    monkeypatch.setattr(change, "sync", lambda **_: Outcome((), ()))
    monkeypatch.setattr(listing, "lines", lambda *_: [
        report.Line("web", UUID, forward(port), (), (), "active") for port in (80, 81, 443)
    ])  # fmt: skip
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setenv("VIRT_FORWARD_RUN_DIR", str(tmp_path / "run"))
    return domain


def test_metadata_is_parsed_as_often_for_many_forwards_as_for_one(
    web: FakeDomain, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parsed(*words: str) -> int:
        shown = [report.Line("web", UUID, forward(int(port)), (), (), "active") for port in words]
        monkeypatch.setattr(listing, "lines", lambda *_: shown)
        with mock.patch.object(forwards, "parse_forwards", side_effect=forwards.parse_forwards) as read:
            assert cli.main(["add", "web", *words]) == 0
        return read.call_count

    assert parsed("1000") == parsed(*map(str, range(2000, 2050)))


def test_change_is_made_where_it_is_one(web: FakeDomain, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["add", "web", "81", "--json"]) == 0
    ((flags, element),) = web.calls
    assert flags == CONFIG
    assert element
    assert 'start="81"' in element
    shown = json.loads(capsys.readouterr().out)
    assert (shown["changed"], shown["added"], shown["unchanged"]) == (["config"], ["81/tcp"], ["81/tcp"])
    assert [row["start"] for row in shown["forwards"]] == [81]


def test_declared_forward_is_reported_and_no_error(
    web: FakeDomain, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["add", "web", "80"]) == 0
    assert web.calls == []
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "web: 80/tcp is declared already"
    assert len(said) == 3


@pytest.mark.parametrize(("port", "calls"), [("81", [LIVE]), ("82", [CONFIG]), ("80", [CONFIG, LIVE])])
def test_forward_is_removed_where_it_is_declared(web: FakeDomain, port: str, calls: list[int]) -> None:
    assert cli.main(["remove", "web", port]) == 0
    assert [flags for flags, _ in web.calls] == calls


def test_one_wrong_word_changes_nothing(web: FakeDomain, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["remove", "web", "80", "83"]) == 1
    assert cli.main(["add", "web", "443", "80:81"]) == 1
    assert cli.main(["add", "web", "443", "0"]) == 2
    assert cli.main(["remove", "web"]) == 2
    assert cli.main(["remove", "web", "80", "--all"]) == 2
    assert cli.main(["remove", "web", "--all", "--dev", "enp1s0"]) == 2
    assert cli.main(["add", "web", "203.0.113.7:80", "--source", "2001:db8::/32"]) == 2
    assert web.calls == []
    assert "virt-forward: error: tcp/83 is not declared" in capsys.readouterr().err


def test_dry_run_prints_the_metadata_of_each_definition(
    web: FakeDomain, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["add", "web", "443", "--dry-run"]) == 0
    assert web.calls == []
    shown = capsys.readouterr().out
    assert shown.count('<range start="443"/>') == 2
    assert shown.index("<!-- config -->") < shown.index("<!-- live -->")
    assert cli.main(["add", "web", "443", "--dry-run", "--live"]) == 0
    assert "<!--" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "word"), [("--dev", "a/b"), ("--source", "192.0.2.1/24"), ("--mac", "52:54")]
)
def test_wrong_value_of_an_option_is_wrong_usage(
    option: str, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["add", "web", "80", option, word]) == 2
    assert f'"{word}" is wrong: ' in capsys.readouterr().err


def test_change_that_another_process_came_before_is_made_again(
    web: FakeDomain, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tries: list[list[str]] = []

    def lines(*_: object) -> list[report.Line]:
        return [report.Line("web", UUID, forward(443), (), (), "active" if len(tries) > 1 else "missing")]

    def sync(only: list[str]) -> Outcome:
        tries.append(only)
        return Outcome((), ())

    monkeypatch.setattr(change, "sync", sync)
    monkeypatch.setattr(listing, "lines", lines)
    assert cli.main(["add", "web", "443"]) == 0
    assert tries == [[UUID], [UUID]]
    assert "active" in capsys.readouterr().out


def test_kernel_that_does_not_follow_is_a_failure(web: FakeDomain, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = [report.Line("web", UUID, forward(443), (), (), "missing")]
    monkeypatch.setattr(listing, "lines", lambda *_: missing)
    assert cli.main(["add", "web", "443"]) == 1


def test_change_that_nft_could_not_follow_is_not_begun(
    web: FakeDomain, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(nft, "check", mock.Mock(side_effect=NftError("nft not found")))
    assert cli.main(["add", "web", "443"]) == 1
    assert web.calls == []
    assert capsys.readouterr().err == "virt-forward: error: nft not found\n"


def test_error_after_the_metadata_is_set_says_that_it_is_set(
    web: FakeDomain, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(change, "sync", mock.Mock(side_effect=LockTimeout("the lock is held")))
    assert cli.main(["add", "web", "443", "--json"]) == 1
    assert [flags for flags, _ in web.calls] == [CONFIG, LIVE]
    said = capsys.readouterr()
    assert json.loads(said.out)["changed"] == ["config", "live"]
    assert said.err.splitlines() == [
        "virt-forward: error: the metadata is set, but the kernel does not follow",
        "virt-forward: error: the lock is held",
        "hint: virt-forward sync makes it follow",
    ]


def test_change_of_the_configuration_of_a_running_guest_has_no_line(
    web: FakeDomain, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["add", "web", "443", "--config"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "web: added 443/tcp",
        "web is running: the change is in force from its next start",
    ]
    assert cli.main(["add", "web", "444", "--config", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["forwards"] == []


def test_second_edit_waits_for_the_first(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "run"))
    with edit_lock(store), pytest.raises(LockTimeout, match="another virt-forward add"), edit_lock(store, 0):
        pass
    with edit_lock(store, 0):
        pass


def test_removal_of_nothing_is_told(web: FakeDomain, capsys: pytest.CaptureFixture[str]) -> None:
    web.xml = dict.fromkeys(web.xml, domain_xml().decode())
    assert cli.main(["remove", "web", "--all"]) == 0
    assert capsys.readouterr().out == "web: no forwards are declared\n"


@pytest.mark.parametrize(("option", "warned"), [("--config", True), ("--live", False)])
def test_managed_save_image_is_told_to_have_metadata_of_its_own(
    web: FakeDomain,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    option: str,
    warned: bool,
) -> None:
    monkeypatch.setattr(metadata, "target", lambda *_: target(web)._replace(saved=True))
    assert cli.main(["add", "web", "443", option]) == 0
    assert ("web has a managed save image" in capsys.readouterr().err) == warned


def test_without_root_the_reason_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert cli.main(["add", "web", "80"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("virt-forward: error: virt-forward add needs root\nhint: run it with sudo")
    assert "a member of the group libvirt can set the metadata without root, by virsh metadata" in said
