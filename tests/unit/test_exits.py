"""All output (terminal, journal, tables, JSON) is harmless whatever characters names have."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from support.proc import REPO, run
from support.state import in_memory
from unit.build import BRIDGE, MAC, UUID, domain_xml, endpoint, forward, guest, uuid_of
from unit.test_text import ANYTHING, NASTY, assert_harmless
from virt_forward import cli, text
from virt_forward.addresses import explain, resolve
from virt_forward.addresses.attachments import HostFacts
from virt_forward.addresses.portchecks import PortChecks
from virt_forward.check import findings, guests
from virt_forward.check.facts import Facts, Forwarding, Veto
from virt_forward.check.problem import Problem
from virt_forward.check.steps import Step
from virt_forward.claims import index as claims
from virt_forward.claims import vetoes
from virt_forward.claims.sockets import Details, Listener, SocketFacts
from virt_forward.cli import check, listing, report, table
from virt_forward.cli import sync as sync_command
from virt_forward.config import Config
from virt_forward.errors import VirtForwardError
from virt_forward.hooks import dispatch
from virt_forward.host import log, process
from virt_forward.libvirtd.api import DomainState
from virt_forward.metadata.domain import MetadataError, parse_domain
from virt_forward.metadata.network import parse_network
from virt_forward.model import Domain, Network, Nic
from virt_forward.ports import by_port
from virt_forward.reconcile import resync
from virt_forward.state.records import load_guest

XML_NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=80)


@contextlib.contextmanager
def printed() -> Iterator[Callable[[], list[str]]]:
    """Yield a function that returns the lines on stdout and stderr, separated by newlines only."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        yield lambda: out.getvalue().split("\n")[:-1]


def said(data: bytes) -> str:
    """Return a message for the journal without its priority, time and identifier."""
    return data.decode().partition("]: ")[2]


@given(ANYTHING)
def test_log_message_is_one_harmless_line(message: str) -> None:
    with mock.patch.object(log, "_send") as logged:
        log.error(message)
    (data,), _ = logged.call_args
    assert_harmless(said(data))


@given(st.lists(ANYTHING, min_size=1, max_size=3), ANYTHING)
def test_print_error_prints_one_line_per_message(messages: list[str], hint: str) -> None:
    with printed() as told:
        cli.print_error(VirtForwardError(messages, hint))
    assert len(told()) == len(messages) + bool(hint)
    for line in told():
        assert_harmless(line)


@given(ANYTHING, ANYTHING, ANYTHING)
def test_refusing_hook_prints_one_line_per_message(name: str, message: str, hint: str) -> None:
    error = VirtForwardError(message, hint)
    with (
        printed() as told,
        mock.patch.object(dispatch, "_handle", side_effect=error),
        mock.patch.object(dispatch, "_on_error", return_value="refuse"),
        mock.patch.object(process, "limit"),  # it holds for the whole process, which here has more to do
        mock.patch.object(log, "_send") as logged,
    ):
        assert dispatch.main("qemu", [name, "prepare", "begin", "-"], b"") == 1
    assert len(told()) == 1 + bool(hint)
    for line in (*told(), *(said(call.args[0]) for call in logged.call_args_list)):
        assert_harmless(line)


@given(st.lists(st.tuples(ANYTHING, ANYTHING), min_size=1, max_size=4))
def test_list_table_is_harmless_and_aligned(rows: list[tuple[str, str]]) -> None:
    lines = [
        report.Line(name, UUID, forward(), ("198.51.100.200",), ("leased",), "active", reason)
        for name, reason in rows
    ]
    with printed() as told:
        listing.print_table(lines)
    assert len(told()) == len(rows) + 1
    for line in told():
        assert_harmless(line, 2 * text.MAX_LINE)
    states = [line.index("active") for line in told()[1:]]
    before = [table.width(line[:at]) for line, at in zip(told()[1:], states, strict=True)]
    assert set(before) == {told()[0].index("STATE")}


def test_width_of_wide_and_combining_characters() -> None:
    assert [table.width(cell) for cell in ("web", "東京", "e\u0301", "")] == [3, 4, 1, 0]


@given(ANYTHING, ANYTHING)
def test_check_prints_two_lines_per_problem_and_one_per_step(name: str, word: str) -> None:
    with printed() as told:
        check._print([Problem("no-address", "warning", name, word, word)])
        check._print_steps({DomainState(name, "1", True, b""): [Step("path", False, word)]})
    assert len(told()) == 4
    for line in told():
        assert_harmless(line)
    shown = json.loads(json.dumps(check._as_json(Problem("no-address", "warning", name, word, word))))
    assert_harmless(shown["message"])
    assert_harmless(shown["fix"])


@given(ANYTHING, ANYTHING)
def test_sync_prints_one_line_per_forward_that_is_not_open(name: str, reason: str) -> None:
    one = guest("web", forward(80), endpoints=())._replace(name=name, conflicts=((forward(81), reason),))
    with (
        printed() as told,
        mock.patch.object(sync_command, "sync", return_value=resync.Outcome((one,), ())),
        mock.patch.object(sync_command, "_networks", return_value=[]),
    ):
        sync_command.run(SimpleNamespace())  # type: ignore[arg-type]
    assert len(told()) == 3
    for line in told():
        assert_harmless(line)


@given(ANYTHING)
def test_wrong_command_line_is_harmless_in_error(word: str) -> None:
    with printed() as told, contextlib.suppress(SystemExit):
        cli._parser().parse_args(["sync", "x" + word])
    for line in told():
        assert_harmless(line, 2 * text.MAX_LINE)


def test_unencodable_character_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="latin-1"))
    cli._escape_unencodable()
    cli.print_line("☃")
    sys.stdout.flush()
    assert raw.getvalue() == b"\\u2603\n"


@pytest.mark.parametrize(("driver", "operation", "status"), [
    ("qemu", "prepare", 1), ("qemu", "reconnect", 0), ("network", "started", 0),
])  # fmt: skip
def test_hook_without_package_prints_harmless_error(
    driver: str, operation: str, status: int, tmp_path: Path
) -> None:
    package = tmp_path / "lib" / "virt_forward"
    package.mkdir(parents=True)
    package.joinpath("__init__.py").write_text("raise ValueError('\\x1b[1m\\n\\ud800')\n")
    hook_copy = tmp_path / "hooks" / driver
    hook_copy.parent.mkdir()
    shutil.copy(REPO / "hooks" / driver, hook_copy)
    xml = domain_xml('<forwards xmlns="urn:virt-forward:1"/>').decode()
    done = run([hook_copy, "web", operation, "begin", "-"], stdin=xml, check=False)
    assert done.status == status
    for line in done.err.split("\n")[:-1]:
        assert_harmless(line)
        assert "cannot be used" in line
    assert bool(done.err) == bool(status)


# The values, quoted where they enter a message: each message is a harmless line before any exit sees it.


@given(ANYTHING)
def test_process_name_is_quoted_in_veto(name: str) -> None:
    listener = Listener("tcp", ip_address("0.0.0.0"), 8080, 1)
    found = HostFacts(sockets=SocketFacts(by_port([listener]), Details(), {1: name}))
    reason = PortChecks(Config(), [], found).veto(forward(8080)) or ""
    assert reason
    assert_harmless(reason)
    assert vetoes.remedy(reason).startswith("stop that program (ss -Hlntp sport = :8080 shows it)")


@given(ANYTHING)
def test_guest_name_is_quoted_in_conflict(name: str) -> None:
    other = guest("db", forward())._replace(name=name)
    state, wanted = in_memory(other), guest("web", forward())
    resolved = claims.resolve_conflicts(state.near(claims.rows(wanted), {wanted.uuid}), wanted)
    ((_, reason),) = resolved.conflicts
    assert_harmless(reason)
    assert vetoes.remedy(reason).startswith("give one of the two guests another")


@given(XML_NAMES)
def test_names_in_xml_are_quoted_in_errors(name: str) -> None:
    def written(tag: str, **attributes: str) -> etree._Element:
        element = etree.Element(tag)
        for key, value in attributes.items():
            element.set(key, value)
        return element

    root = etree.fromstring(domain_xml('<forwards xmlns="urn:virt-forward:1" isolate="maybe"/>'))
    root.find("name").text = name  # type: ignore[union-attr]
    with pytest.raises(MetadataError) as caught:
        parse_domain(etree.tostring(root))
    assert_harmless(caught.value.messages[0])
    assert_harmless(caught.value.hint)
    root = written("network")
    etree.SubElement(root, "uuid").text = name
    with pytest.raises(VirtForwardError) as refused:
        parse_network(etree.tostring(root))
    assert_harmless(refused.value.messages[0])


def test_hint_uses_uuid_if_name_is_unsafe_in_shell() -> None:
    assert MetadataError(Domain("web", UUID), ()).hint == "correct it with: virsh edit web"
    assert MetadataError(Domain("a;reboot", UUID), ()).hint == f"correct it with: virsh edit {UUID}"


@pytest.mark.parametrize("tag", ["x" * 5000, "a\u0301b"])
def test_element_names_are_shortened_in_errors(tag: str) -> None:
    for parse in (parse_domain, parse_network):
        with pytest.raises(VirtForwardError) as caught:
            parse(f"<{tag}/>".encode())
        assert_harmless(caught.value.messages[0])


@pytest.mark.parametrize(
    "data", [b"<a>\xe2\x80\xae</b\xe2\x80\xae>", "<\u202e/>".encode(), b"<" + b"x" * 9000 + b">"]
)
def test_xml_parser_error_is_one_harmless_line(data: bytes) -> None:
    with pytest.raises(VirtForwardError) as caught:
        parse_domain(data)
    assert_harmless(caught.value.messages[0])


@given(ANYTHING)
def test_waiting_reason_is_harmless(name: str) -> None:
    for nic in (Nic(MAC, "bridge", name), Nic(MAC, "network", name), Nic(name, "bridge", BRIDGE)):
        for bridge in (BRIDGE, name):
            one = guest("web", forward(), endpoints=())._replace(nics=(nic,))
            reason = explain.reason(one, forward(), (Network(name, UUID, bridge),))
            assert_harmless(reason)


@pytest.mark.parametrize("name", NASTY)
def test_damaged_record_error_is_harmless(name: str) -> None:
    with pytest.raises(VirtForwardError) as caught:
        load_guest(json.dumps({"version": name}), "/run/virt-forward/guests/x.json")
    assert_harmless(caught.value.messages[0])


@given(ANYTHING)
def test_problems_are_harmless(name: str) -> None:
    one = guest("web", forward())._replace(name=name)
    facts = Facts(
        guests=(one, guest("db", forward(81), endpoints=())._replace(nics=(Nic(MAC, "bridge", name),))),
        running=(Domain(name, uuid_of("x"), (Nic(MAC, "bridge", name),)),),
        forwarding=(Forwarding(name, 4, False),),
        networkd_ipforward=(name,),
        vetoes=(Veto(one.uuid, forward(), vetoes.listening("tcp", 80, ip_address("::"), name)),),
    )
    found = findings.problems(facts)
    assert {"ip-forwarding-off", "networkd-ipforward", "host-port-taken", "no-address", "table-missing"} == {
        problem.id for problem in found
    }
    for problem in found:
        assert_harmless(problem.message)
        assert_harmless(problem.fix)


@pytest.mark.parametrize("bridge", ["br 0", "br\x1b[1m", "ü", "x" * 16, "br,0", ".."])
def test_unusable_bridge_name_is_reported(bridge: str) -> None:
    networks = (Network("odd", UUID, bridge),)
    for nic in (Nic(MAC, "bridge", bridge), Nic(MAC, "network", "odd")):
        (said,) = resolve.unserved(Domain("web", UUID, (nic,)), networks)
        assert said.startswith(f"the name of its bridge, {text.quote(bridge)}, is not supported; rename it")
        waits = guest("web", forward(), endpoints=())._replace(nics=(nic,))
        assert explain.reason(waits, forward(), networks) == said
    assert resolve.unserved(Domain("web", UUID, (Nic(MAC, "bridge", BRIDGE),)), ()) == []


def test_guest_line_has_endpoint_with_origin() -> None:
    one = guest(
        "web", forward(), endpoints=(endpoint()._replace(origin="reserved"), endpoint("2001:db8:10::2"))
    )
    assert guests.as_json(one)["addresses"][0] == {
        "ip": "198.51.100.200", "bridge": BRIDGE, "mac": MAC, "origin": "reserved",
    }  # fmt: skip
    other = one._replace(name="db", phase="prepared")
    assert guests.running((one, other), None) == [one]
    assert guests.running((one, other), {"db"}) == []


def test_check_without_libvirt_claims_no_success(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    unreachable = mock.Mock(side_effect=VirtForwardError("libvirt is not reachable"))
    monkeypatch.setattr("virt_forward.check.reading.defined", unreachable)
    monkeypatch.setattr("virt_forward.check.reading.read_facts", lambda *_: Facts())
    monkeypatch.setattr("virt_forward.check.findings.problems", lambda _: [])
    assert check.run(SimpleNamespace(domains=[], json=False)) == 1  # type: ignore[arg-type]
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", "virt-forward: error: libvirt is not reachable\n")


MAIN = f"""import sys
sys.path.insert(0, {str(REPO / "lib")!r})
from virt_forward.cli import main
sys.exit(main())"""


@pytest.mark.parametrize(
    ("output", "status", "said"),
    [
        ("| true", 0, ""),
        (">&-", 0, ""),
        (">&- 2>&-", 0, ""),
        (">/dev/full", 1, "virt-forward: error: the output: No space left on device\n"),
    ],
)
def test_output_that_nobody_takes_causes_no_traceback(output: str, status: int, said: str) -> None:
    """With the interpreter's option -I, as the installed command has it: its output is buffered."""
    command = f'set -o pipefail; /usr/bin/python3 -I -c "$0" add --help {output}'
    done = run(["bash", "-c", command, MAIN], check=False)
    assert (done.status, done.err) == (status, said)
