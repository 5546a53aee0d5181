"""Whether a running guest has what its live metadata declares, and what is told where it has not."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from unit.build import MAC, UUID, domain_xml, forward, guest
from unit.test_findings import GOOD
from virt_forward import ports
from virt_forward.check import findings, live_metadata, steps
from virt_forward.check.facts import Invalid
from virt_forward.check.live_metadata import Difference
from virt_forward.cli import pending, report
from virt_forward.config import Config
from virt_forward.errors import VirtForwardError
from virt_forward.libvirtd import api
from virt_forward.libvirtd.api import DomainState
from virt_forward.metadata.domain import MetadataError, parse_domain
from virt_forward.model import Domain, Forward, Guest, HostAddress, Nic
from virt_forward.reconcile.plan import Plan

BOTH = '<portForward proto="tcp"><range start="8080" to="80"/><range start="5000" end="5009"/></portForward>'
WEB = (forward(8080, to=80), forward(5000, 5009))


def metadata(inside: str, attributes: str = "") -> str:
    return f'<forwards xmlns="urn:virt-forward:1"{attributes}>{inside}</forwards>'


def declared(inside: str = BOTH, attributes: str = "") -> Domain:
    return parse_domain(domain_xml(metadata(inside, attributes)))


def recorded(*forwards: Forward, conflicts: tuple[tuple[Forward, str], ...] = ()) -> Guest:
    return guest("web", *forwards)._replace(uuid=UUID, phase="running", conflicts=conflicts)


def test_guest_with_all_that_it_declares_needs_no_look_at_the_host() -> None:
    assert live_metadata.in_force(declared(), recorded(*WEB))
    assert live_metadata.in_force(declared(), recorded(WEB[0], conflicts=((WEB[1], "taken by db"),)))
    # While it is being started, its hooks have the word.
    assert live_metadata.in_force(declared(), recorded()._replace(phase="prepared"))
    assert live_metadata.in_force(Domain("web", UUID), None)
    assert not live_metadata.in_force(declared(), None)
    assert not live_metadata.in_force(declared(), recorded(WEB[0]))
    assert not live_metadata.in_force(Domain("web", UUID), recorded(*WEB))
    assert not live_metadata.in_force(declared(attributes=' isolate="yes"'), recorded(*WEB))


@pytest.mark.parametrize(
    ("record", "planned", "found"),
    [
        (recorded(*WEB), recorded(*WEB), None),
        (recorded(), recorded(*WEB), {"closed": WEB}),
        (recorded(*WEB, forward(81)), recorded(*WEB), {"undeclared": (forward(81),)}),
        # Another port of the guest, another source: not what is declared.
        (
            recorded(forward(8080, to=81), WEB[1]),
            recorded(*WEB),
            {"closed": WEB[:1], "undeclared": (forward(8080, to=81),)},
        ),
        (
            recorded(WEB[0]._replace(dev="enp1s0"), WEB[1]),
            recorded(*WEB),
            {"closed": WEB[:1], "undeclared": (WEB[0]._replace(dev="enp1s0"),)},
        ),
        # It has grown, and has shrunk.
        (recorded(WEB[0], forward(5000, 5004)), recorded(*WEB), {"closed": (forward(5005, 5009),)}),
        (recorded(WEB[0], forward(5000, 5008)), recorded(*WEB), {"closed": (forward(5009),)}),
        (recorded(WEB[0], forward(5000, 5020)), recorded(*WEB), {"undeclared": (forward(5010, 5020),)}),
        # A client of the host had port 5004 when the guest started, and has it no more; or has it now.
        (recorded(WEB[0], forward(5000, 5003), forward(5005, 5009)), recorded(*WEB), None),
        (recorded(*WEB), recorded(WEB[0], forward(5000, 5003), forward(5005, 5009)), None),
        # Known conflicts are told as such, and so are those that sync would find.
        (recorded(WEB[0], conflicts=((WEB[1], "taken by db"),)), recorded(*WEB), None),
        (
            recorded(WEB[1]),
            recorded(WEB[1], conflicts=((WEB[0], "taken by nginx"),)),
            {"kept_out": ((WEB[0], "taken by nginx"),)},
        ),
        (
            recorded(*WEB)._replace(hosts=(HostAddress(guest("web").endpoints[0].ip),), isolate=True),
            recorded(*WEB),
            {"settings": ("<host>", "isolate")},
        ),
    ],
)
def test_difference_is_what_sync_would_change(
    record: Guest, planned: Guest, found: dict[str, Any] | None
) -> None:
    expected = None if found is None else Difference("web", UUID, **found)
    assert live_metadata.difference(declared(), record, planned) == expected


def test_metadata_that_is_not_in_force_is_a_problem_with_its_forwards() -> None:
    moved = WEB[0]._replace(dev="enp1s0")
    facts = GOOD._replace(differences=(Difference("web", UUID, WEB, (moved,), settings=("isolate",)),))
    (problem,) = findings.problems(facts)
    assert problem == (
        "table-differs",
        "error",
        "web",
        "8080:80/tcp, 5000-5009/tcp declared by the running guest, but not open; "
        "8080:80/tcp on enp1s0 open, but not declared by a running guest; isolate changed, but not in force",
        "virt-forward sync",
    )
    kept_out = Difference("web", UUID, kept_out=((WEB[0], "host port tcp/8080 is taken by guest db"),))
    (problem,) = findings.problems(GOOD._replace(differences=(kept_out,)))
    assert (problem.id, problem.message) == (
        "host-port-taken",
        "8080:80/tcp is kept out: host port tcp/8080 is taken by guest db",
    )


def test_refused_metadata_is_told_once_and_sync_is_no_fix() -> None:
    error = MetadataError(Domain("db", "2"), ('guest "db": address="127.0.0.1" needs localhost = true',))
    running = (*(GOOD.running or ()), Domain("db", "2"))
    (problem,) = findings.problems(GOOD._replace(running=running, invalid=(Invalid(error, "live"),)))
    assert (problem.id, problem.message) == ("metadata-invalid", 'address="127.0.0.1" needs localhost = true')
    assert "sync" not in problem.fix


def test_steps_of_a_guest_tell_what_is_not_in_force() -> None:
    (record,) = GOOD.guests
    domain = declared()._replace(name=record.name, uuid=record.uuid)
    differs = Difference("web", record.uuid, WEB[1:], WEB[:1], ((forward(22), "reserved"),))
    facts = GOOD._replace(differences=(differs,))
    told = [step.text for step in steps.explain_guest(domain, True, facts) if step.step == "claims"]
    assert told == [
        "tcp/8080 held",
        "tcp/22: reserved",
        "tcp/5000-5009 declared, but not open; virt-forward sync",
        "tcp/8080 open, but not declared; virt-forward sync",
    ]
    error = MetadataError(domain, ('guest "web": <host ip="10.99.0.1"> is not on the guest\'s network',))
    refused = GOOD._replace(invalid=(Invalid(error, "live"),))
    told = [step.text for step in steps.explain_guest(domain, True, refused) if not step.ok]
    assert told[0] == (
        'as before, as the metadata is refused: <host ip="10.99.0.1"> is not on the guest\'s network'
    )


REFUSAL = 'address="127.0.0.1" needs localhost = true'


def test_list_tells_the_reason_where_sync_would_fail() -> None:
    record = recorded(forward(81), forward(5000, 5004))
    lines = report.lines(declared(), True, record, report.HostState({}), REFUSAL)
    missing = {line.forward: line.reason for line in lines if line.forward not in record.forwards}
    assert missing == {WEB[0]: REFUSAL}
    assert "sync to open it" in str(report.lines(declared(), True, record, report.HostState({}))[-1].reason)


class Service:
    """The state as a plan for running guests finds it, and libvirt; each look takes the next record."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *records: Guest, error: str = "") -> None:
        self.records, self.error, self.slept = [*records], error, 0.0
        self.domain = DomainState("web", UUID, True, domain_xml(metadata(BOTH)))
        store = SimpleNamespace(open=self.open)
        monkeypatch.setattr(pending, "Store", lambda: store)
        monkeypatch.setattr(pending, "make_plan", self.plan)
        monkeypatch.setattr(pending, "context", lambda *_, **__: None)
        monkeypatch.setattr(api, "connection", lambda _: contextlib.nullcontext())
        monkeypatch.setattr(api, "domains", lambda _opened, only: [self.domain] if UUID in only else [])
        monkeypatch.setattr(time, "sleep", self.sleep)

    @contextlib.contextmanager
    def open(self, *, create: bool) -> Iterator[Any]:
        assert not create
        yield SimpleNamespace(guest=lambda _: self.records[0], networks=list)

    def plan(self, _context: object, wants: list[Any]) -> Plan:
        if self.error:
            return Plan({}, {}, errors={want.uuid: VirtForwardError(self.error) for want in wants})
        after: dict[str, Guest | None] = {
            want.uuid: recorded(*ports.expand(want.domain.declaration)) for want in wants
        }
        return Plan({}, after)

    def sleep(self, seconds: float) -> None:
        self.slept += seconds
        if len(self.records) > 1:
            del self.records[0]

    def found(self) -> pending.Pending:
        return pending.find([self.domain], {UUID: self.records[0]}, Config())


def test_change_that_is_being_applied_is_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(monkeypatch, recorded(WEB[0]), recorded(*WEB))
    assert service.found() == pending.Pending()
    assert service.slept


def test_change_that_nobody_applies_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Service(monkeypatch, recorded(WEB[0])).found()
    assert found.differences == (Difference("web", UUID, closed=WEB[1:]),)
    assert not found.refused


def test_all_metadata_taken_from_a_running_guest_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(monkeypatch, recorded(*WEB))
    service.domain = service.domain._replace(xml=domain_xml())
    assert service.found().differences == (Difference("web", UUID, undeclared=WEB),)


def test_forwards_of_a_guest_that_does_not_run_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where libvirt ran no hook when it stopped."""
    service = Service(monkeypatch, recorded(*WEB)._replace(isolate=True))
    service.domain = service.domain._replace(active=False)
    assert service.found().differences == (Difference("web", UUID, undeclared=WEB),)
    starting = Service(monkeypatch, recorded(*WEB)._replace(phase="prepared"))
    starting.domain = service.domain
    assert starting.found() == pending.Pending()


def test_guest_that_is_just_stopping_is_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(monkeypatch, recorded(*WEB), recorded())
    service.domain = service.domain._replace(active=False)
    service.records[1] = None  # type: ignore[call-overload]
    assert service.found() == pending.Pending()


def test_healthy_guests_are_not_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(monkeypatch, recorded(*WEB))
    monkeypatch.setattr(pending, "make_plan", None)
    assert service.found() == pending.Pending()
    assert not service.slept


def test_refusal_of_a_plan_is_the_reason_without_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(monkeypatch, recorded(WEB[0]), error=f'guest "web": {REFUSAL}')
    (error,) = service.found().refused
    assert error.reasons == (REFUSAL,)
    assert pending.refusal(declared(), Config()) == REFUSAL


def test_guest_that_no_forward_can_lead_to_is_told_by_its_nic(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is missing in the table for a reason that no edit of the metadata changes."""
    service = Service(monkeypatch, recorded(), error="its NIC is of type user")
    service.records = [None]  # type: ignore[list-item]
    user = declared()._replace(nics=(Nic(MAC, "user"),))
    assert pending.refusal(user, Config()) == ""
    assert pending.refusal(declared(), Config()) == "its NIC is of type user"
