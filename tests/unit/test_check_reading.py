"""What check reads of the host, and how it explains a guest."""

import errno
import json
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from unit.test_clone_plan import ENDPOINT, ENDPOINT6, HTTP, MAC, WEB
from unit.test_findings import DROPPED, PROBE
from virt_forward.addresses import networkd
from virt_forward.check import bridges, reach, reading, steps
from virt_forward.check.clone import build, namespace
from virt_forward.check.clone.verdict import Obstacle, Report, Result
from virt_forward.check.facts import Answer, Clash, Facts, Response
from virt_forward.cli import check
from virt_forward.config import Config
from virt_forward.errors import VirtForwardError
from virt_forward.host import collect, libvirt_networks, nft, process, systemd
from virt_forward.model import Declaration, Domain, Forward, Guest, PortForward, Range
from virt_forward.state.snapshot import Commit
from virt_forward.state.store import Store

NETWORK = "<network><name>{name}</name><uuid>{uuid}</uuid>{forward}<bridge name='{bridge}'/></network>"
NETDEV = "[NetDev]\nName=virbr0\nKind=bridge\n"


@pytest.mark.parametrize(
    ("columns", "lines"),
    [
        (40, ["  path      tcp from 192.0.2.254 by", " " * 12 + "enp1s0: arrives"]),
        (80, ["  path      tcp from 192.0.2.254 by enp1s0: arrives"]),
        (0, ["  path      tcp from 192.0.2.254 by enp1s0: arrives"]),
    ],
)
def test_step_fits_the_terminal(columns: int, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((columns, 24)))
    monkeypatch.setattr(sys.stdout, "fileno", lambda: 1, raising=False)
    assert check._wrapped("  path      tcp from 192.0.2.254 by enp1s0: arrives") == lines


@pytest.fixture
def etc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directories of networkd, libvirt's networks, its active ones, and the kernel's links."""
    for name in ("network", "libvirt", "active", "links"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(networkd, "DIRECTORIES", (str(tmp_path / "network"),))
    monkeypatch.setattr(libvirt_networks, "DEFINED", str(tmp_path / "libvirt"))
    monkeypatch.setattr(libvirt_networks, "DIRECTORY", str(tmp_path / "active"))
    monkeypatch.setattr(bridges, "SYSFS", str(tmp_path / "links"))
    return tmp_path


def define(etc: Path, name: str, bridge: str, forward: str = "<forward mode='nat'/>") -> None:
    uuid = "1a2b3c4d-0000-4000-8000-000000000001"
    text = NETWORK.format(name=name, uuid=uuid, bridge=bridge, forward=forward)
    (etc / "libvirt" / f"{name}.xml").write_text(text)


def test_network_that_wants_networkd_s_bridge_clashes(etc: Path) -> None:
    (etc / "network/98-virbr0.netdev").write_text(NETDEV)
    define(etc, "default", "virbr0")
    define(etc, "other", "virbr1")
    owner = f"networkd ({etc}/network/98-virbr0.netdev)"
    assert [*bridges.clashes(bridges.of_networkd())] == [Clash("default", "virbr0", owner)]
    # Even if it is the network that has it now.
    (etc / "active/default.xml").write_text("")
    assert [clash.network for clash in bridges.clashes(bridges.of_networkd())] == ["default"]


def test_network_that_only_names_a_bridge_does_not_clash(etc: Path) -> None:
    (etc / "network/98-virbr0.netdev").write_text(NETDEV)
    define(etc, "lan", "virbr0", "<forward mode='bridge'/>")
    assert [*bridges.clashes(bridges.of_networkd())] == []


def test_inactive_network_clashes_with_a_bridge_that_exists(etc: Path) -> None:
    define(etc, "default", "virbr0")
    assert [*bridges.clashes(bridges.of_networkd())] == []
    (etc / "links/virbr0/bridge").mkdir(parents=True)
    assert [clash.bridge for clash in bridges.clashes(bridges.of_networkd())] == ["virbr0"]
    (etc / "active/default.xml").write_text("")
    assert [*bridges.clashes(bridges.of_networkd())] == []


def test_other_kinds_of_netdevs_and_broken_networks_are_left_out(etc: Path) -> None:
    (etc / "network/10.netdev").write_text("[NetDev]\nName=virbr0\nKind=vlan\n")
    (etc / "libvirt/broken.xml").write_text("<network")
    define(etc, "default", "virbr0")
    assert [*bridges.clashes(bridges.of_networkd())] == []


def test_ports_are_read_with_their_bridge(etc: Path) -> None:
    (etc / "links/br0").mkdir()
    (etc / "links/enp1s0/brport").mkdir(parents=True)
    (etc / "links/enp1s0/brport/bridge").symlink_to("../../br0")
    assert bridges.ports() == {"enp1s0": "br0"}


@pytest.mark.parametrize(("version", "told"), [(252, []), (256, ["98.network"]), (257, ["98.network"])])
def test_ipforward_is_ignored_since_systemd_256(
    monkeypatch: pytest.MonkeyPatch, version: int, told: list[str]
) -> None:
    files = {"98.network": "[Network]\n IPForward=yes\n", "99.network": "#IPForward=yes\n"}
    monkeypatch.setattr(systemd, "version", lambda: version)
    monkeypatch.setattr(collect, "networkd_files", lambda: files)
    assert [*reading._ignored_ipforward()] == told


def test_expected_table_is_taken_for_the_actual_one_where_it_cannot_be_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_: str) -> str:
        raise VirtForwardError("no namespaces")

    monkeypatch.setattr(nft, "scratch_listing", fail)
    assert reading._expected("wanted", "actual") == "actual"
    # A table that is missing is missing nevertheless.
    assert reading._expected("wanted", None) == "wanted"


def test_setting_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    assert build.write("ipv4/ip_forward_that_does_not_exist", "1") == []
    (told,) = build.write("../net/ipv4", "1")
    assert told.endswith("cannot be set: Is a directory")
    assert tmp_path.exists()


def test_error_in_the_clone_is_raised_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespace, "_libc", lambda *_: None)

    def fail() -> None:
        raise VirtForwardError("nft: out of order")

    with pytest.raises(namespace.NamespaceError) as caught:
        namespace.run_in_clone(fail, 10)
    assert caught.value.messages == ("nft: out of order",)
    assert namespace.run_in_clone(lambda: ENDPOINT, 10) == ENDPOINT


def test_programming_error_in_the_clone_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespace, "_libc", lambda *_: None)
    with pytest.raises(namespace.NamespaceError) as caught:
        namespace.run_in_clone(lambda: int("none"), 10)
    assert "ValueError" in caught.value.messages[0]


# ---- asking guests ----


def neighbours_are(monkeypatch: pytest.MonkeyPatch, *items: Mapping[str, object]) -> None:
    shown = process.Result(0, json.dumps(items), "")
    monkeypatch.setattr(reach, "run", lambda *_: shown)


@pytest.mark.parametrize(
    ("outcome", "neighbour", "alive", "answer"),
    [
        ("accepted", None, False, "accepted"),
        (reach._Unasked("only TCP and UDP ports are asked"), None, False, "unasked"),
        ("none", None, False, "silent"),
        ("none", None, True, "filtered"),
        ("none", MAC, False, "filtered"),
        ("refused", MAC, True, "refused"),
        ("refused", "52:54:00:00:00:99", True, "foreign"),
    ],
)
def test_answer_of_a_guest_is_judged_by_its_neighbour_entry(
    outcome: reach._Outcome, neighbour: str | None, alive: bool, answer: Answer
) -> None:
    question = reach._Question("1", ENDPOINT, HTTP)
    known = {("virbr0", "10.10.0.200"): neighbour} if neighbour else {}
    assert reach._judge(question, outcome, known, alive) == answer


@pytest.mark.parametrize(
    ("forward", "answer", "excuse"),
    [
        (HTTP, "filtered", ""),
        (HTTP, "refused", ""),
        (Forward("udp", 53, 53, 53), "refused", ""),
        (Forward("udp", 53, 53, 53), "filtered", "an open UDP port need not answer"),
        (Forward("tcp", 5000, 5009, 5000), "refused", "of a range, no port need be in use"),
        (Forward("tcp", 5000, 5009, 5000), "filtered", "of a range, no port need be in use"),
        (Forward("tcp", 5000, 5009, 5000), "silent", ""),
        (Forward("udp", 53, 53, 53), "silent", ""),
    ],
)
def test_silence_of_udp_and_of_a_range_is_no_fault(forward: Forward, answer: Answer, excuse: str) -> None:
    assert reach._excuse(reach._Question("1", ENDPOINT, forward), answer, ()) == excuse


def test_what_cannot_be_asked_is_not_taken_for_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "MAX_ASKED", 2)
    # As where the host's own rules reject it.
    monkeypatch.setattr(socket.socket, "connect_ex", lambda *_: errno.EPERM)
    forwards = (Forward("sctp", 80, 80, 80), HTTP, Forward("tcp", 81, 81, 81))
    found = reach.responses([WEB._replace(forwards=forwards, endpoints=(ENDPOINT,))])
    assert [(item.answer, item.excuse) for item in found] == [
        ("unasked", "only TCP and UDP ports are asked"),
        ("unasked", "this host says: Operation not permitted"),
        ("unasked", "2 ports are asked at most"),
    ]


def test_neighbours_that_did_not_answer_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    neighbours_are(
        monkeypatch,
        {"dst": "10.10.0.200", "lladdr": MAC, "state": ["STALE"]},
        {"dst": "10.10.0.201", "lladdr": MAC, "state": ["FAILED"]},
        {"dst": "10.10.0.202", "state": ["INCOMPLETE"]},
    )
    assert reach._neighbours(["virbr0"]) == {("virbr0", "10.10.0.200"): MAC}


def test_family_that_is_refused_is_no_fault_where_the_other_accepts(monkeypatch: pytest.MonkeyPatch) -> None:
    neighbours_are(
        monkeypatch,
        *({"dst": str(item.ip), "lladdr": MAC, "state": ["REACHABLE"]} for item in (ENDPOINT, ENDPOINT6)),
    )
    answers: dict[int, reach._Outcome] = {4: "accepted", 6: "refused"}
    monkeypatch.setattr(
        reach, "_ask", lambda questions: {item: answers[item.endpoint.ip.version] for item in questions}
    )
    other = "its service listens on another address"
    found = [(item.answer, item.excuse) for item in reach.responses([WEB])]
    assert found == [("accepted", ""), ("refused", other)]
    answers[4] = "refused"
    found = [(item.answer, item.excuse) for item in reach.responses([WEB])]
    assert found == [("refused", ""), ("refused", "")]
    assert reach.responses([WEB._replace(phase="prepared")]) == ()


def test_facts_are_read_again_where_the_table_changes_meanwhile(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store, seen = Store(str(tmp_path)), []

    def read(guests: tuple[Guest, ...], *_: object, **__: object) -> Facts:
        seen.append([guest.forwards for guest in guests])
        if len(seen) == 1:
            # The service applies an edit.
            with store.open() as state:
                state.commit(Commit({WEB.uuid: WEB}, revision=state.revision + 1))
        return Facts(guests)

    monkeypatch.setattr(reading, "_facts_about", read)
    assert reading.read_facts(Config(), store, None).guests == (WEB,)
    assert seen == [[], [WEB.forwards]]


# ---- explaining a guest ----

DOMAIN = Domain("web", WEB.uuid, declaration=Declaration((PortForward("tcp", (Range(8080, 8080, 80),)),)))
TABLE = f"table inet virt-forward {{\n\tchain guest-web-{WEB.uuid[:8]} {{\n\t\taccept\n\t}}\n}}\n"
ONE = WEB._replace(endpoints=(ENDPOINT,))
FACTS = Facts(
    (ONE,),
    table=TABLE,
    expected_table=TABLE,
    report=Report((Result(PROBE._replace(uuid=WEB.uuid)),)),
    responses=(Response(WEB.uuid, ENDPOINT, HTTP, "accepted"),),
)


def explained(
    facts: Facts = FACTS, domain: Domain = DOMAIN, *, active: bool = True
) -> dict[str, tuple[bool, str]]:
    return {step.step: (step.ok, step.text) for step in steps.explain_guest(domain, active, facts)}


def test_guest_is_explained_from_declaration_to_answer() -> None:
    assert explained() == {
        "declared": (True, "8080:80/tcp in its live metadata"),
        "state": (True, "running"),
        "endpoint": (True, f"10.10.0.200 on virbr0, {MAC}, declared"),
        "claims": (True, "tcp/8080 held"),
        "rules": (True, f"chain guest-web-{WEB.uuid[:8]} of table inet virt-forward, as expected"),
        "path": (
            True,
            "tcp from 192.0.2.9 by enp1s0 to 192.0.2.1 port 8080: "
            "arrives at 10.10.0.200 port 80, as does the answer",
        ),
        "guest": (True, "10.10.0.200 answers for tcp/80"),
    }


def facts_with(*obstacles: Obstacle) -> Facts:
    return FACTS._replace(report=Report((Result(PROBE._replace(uuid=WEB.uuid), obstacles, False),)))


@pytest.mark.parametrize(
    ("facts", "step", "words"),
    [
        (facts_with(DROPPED), "path", "dropped by chain forward of table inet filter (its policy)"),
        (facts_with(DROPPED._replace(answer=True)), "path", "the answer is dropped by chain forward"),
        (facts_with(DROPPED._replace(kind="translated")), "path", "taken by chain forward"),
        (facts_with(Obstacle("forwarding", detail="enp1s0")), "path", "forwarding is off on enp1s0"),
        (facts_with(Obstacle("rp_filter", detail="enp1s0")), "path", "dropped by rp_filter on enp1s0"),
        (facts_with(Obstacle("local")), "path", "not translated: it reaches the host itself"),
        (
            facts_with(Obstacle("unrouted", detail="No route to host")),
            "path",
            "not delivered: No route to host",
        ),
        (facts_with(), "path", "it is lost"),
        (FACTS._replace(unverified="no namespaces"), "path", "not tried: no namespaces"),
        (FACTS._replace(table=None), "rules", "is not in table inet virt-forward"),
        (FACTS._replace(table=TABLE.replace("accept", "drop")), "rules", "not as expected"),
        (
            FACTS._replace(responses=(Response(WEB.uuid, ENDPOINT, HTTP, "refused"),)),
            "guest",
            "10.10.0.200 refuses tcp/80",
        ),
        (FACTS._replace(guests=(ONE._replace(conflicts=((HTTP, "taken by db"),)),)), "claims", "taken by db"),
        (FACTS._replace(guests=(ONE._replace(endpoints=()),)), "endpoint", "the guest has no NIC"),
        (FACTS._replace(guests=()), "state", "running, without a record; virt-forward sync"),
    ],
)
def test_step_that_fails_says_why(facts: Facts, step: str, words: str) -> None:
    failed = [item for item in steps.explain_guest(DOMAIN, True, facts) if not item.ok]
    assert [item.step for item in failed] == [step]
    assert words in failed[0].text


@pytest.mark.parametrize(
    ("forward", "answer", "excuse", "said"),
    [
        (Forward("sctp", 80, 80, 80), "unasked", "why", "was not asked for sctp/80: why"),
        (Forward("udp", 53, 53, 53), "filtered", "why", "does not answer on udp/53: why"),
        (Forward("tcp", 50, 52, 60), "accepted", "", "answers for tcp/60 of 60-62"),
        (Forward("tcp", 50, 52, 60), "refused", "why", "refuses tcp/60 of 60-62: why"),
    ],
)
def test_answer_of_a_guest_is_told_as_it_was(
    forward: Forward, answer: Answer, excuse: str, said: str
) -> None:
    facts = FACTS._replace(responses=(Response(WEB.uuid, ENDPOINT, forward, answer, excuse),))
    assert explained(facts)["guest"] == (True, f"10.10.0.200 {said}")
    assert not facts.unanswered


def test_port_that_the_host_itself_blocks_is_no_fault_of_the_guest() -> None:
    silent = Response(WEB.uuid, ENDPOINT, HTTP, "filtered")
    blocked = FACTS.report._replace(blocked=frozenset({(ENDPOINT, 80)}))
    told = "does not answer on tcp/80: this host's own rules drop its packets to that port"
    facts = FACTS._replace(responses=(silent,), report=blocked)
    assert explained(facts)["guest"] == (True, f"10.10.0.200 {told}")


def test_guest_that_does_not_run_or_declares_nothing_is_explained() -> None:
    assert [*explained(active=False)] == ["declared", "state"]
    assert [*explained(domain=Domain("web", WEB.uuid))] == ["declared"]
