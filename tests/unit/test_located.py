"""What a want makes of a guest by plain facts, and which facts that takes."""

from __future__ import annotations

import collections.abc
from collections.abc import Callable, Mapping, Sequence
from ipaddress import ip_address, ip_interface
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

import pytest

from unit.build import BRIDGE, MAC, UUID, endpoint, forward, guest
from virt_forward.addresses.attachments import BridgeFacts, HostFacts
from virt_forward.addresses.leases import Neighbours
from virt_forward.claims.sockets import Details, Listener, SocketFacts
from virt_forward.config import Config
from virt_forward.errors import Question, UnreadError, VirtForwardError
from virt_forward.model import (
    Declaration,
    Domain,
    Guest,
    HostAddress,
    Nic,
    Phase,
    PortForward,
    Range,
    Reservation,
)
from virt_forward.ports import by_port
from virt_forward.reconcile import located
from virt_forward.reconcile.plan import Located
from virt_forward.reconcile.wants import Lasting, Present, Readdressed, Replugged, Restoring

IP = ip_address("198.51.100.50")
NICS = (Nic(MAC, "bridge", BRIDGE),)
WEB = (PortForward("tcp", (Range(80, 80, 80),)),)
ON_80 = Listener("tcp", ip_address("0.0.0.0"), 80, 1)
UNREAD = HostFacts()


def present(*hosts: str, phase: Phase = "prepared", forwards: tuple[PortForward, ...] = WEB) -> Present:
    declared = Declaration(forwards, tuple(HostAddress(ip_address(ip)) for ip in hosts))
    return Present(Domain("web", UUID, NICS, declared), phase)


def all_read() -> dict[Question, Any]:
    """Return the answers of a host on whose bridge the guest has a lease, and on which nothing listens."""
    host = (ip_interface("198.51.100.1/24"),)
    return {
        Question("bridge", BRIDGE): BridgeFacts(host, leases=None, neighbours=None),
        Question("leases", BRIDGE): (Reservation(IP, MAC),),
        Question("neighbours", BRIDGE): Neighbours(),
        Question("answers", BRIDGE, MAC, (IP,)): True,
        Question("sockets"): by_port([]),
        Question("details"): Details(),
        Question("owners"): {1: "nginx"},
    }


def answered(facts: HostFacts, question: Question, answer: Any) -> HostFacts:
    if question.kind == "bridge":
        return facts._replace(bridges={question.name: answer})
    if question.kind in {"leases", "neighbours"}:
        bridge = facts.bridges[question.name]._replace(**{question.kind: answer})
        return facts._replace(bridges={question.name: bridge})
    if question.kind == "answers":
        return facts._replace(answers={(question.name, question.mac, IP): answer})
    field = {"sockets": "listening"}.get(question.kind, question.kind)
    return facts._replace(sockets=facts.sockets._replace(**{field: answer}))


def asked(
    want: Lasting, before: Guest | None = None, answers: dict[Question, Any] | None = None
) -> tuple[list[str], Located]:
    """Locate a guest on a host of which nothing was read; return what was asked, in order, and the guest."""
    kinds: list[str] = []
    facts = UNREAD
    while True:
        try:
            return kinds, located.locate(want, before, facts, Config())
        except UnreadError as error:
            kinds.append(error.question.kind)
            facts = answered(facts, error.question, (answers or all_read())[error.question])


def test_start_with_a_declared_address_asks_for_no_lease() -> None:
    kinds, found = asked(present(str(IP)))
    assert kinds == ["bridge", "sockets"]
    assert found.guest
    assert [(one.ip, one.origin) for one in found.guest.endpoints] == [(IP, "declared")]


def test_running_guest_without_one_asks_for_leases_and_whether_the_nic_answers() -> None:
    kinds, found = asked(present(phase="running"))
    assert sorted(kinds) == ["answers", "bridge", "leases", "neighbours", "sockets"]
    assert found.guest
    assert [(one.ip, one.origin) for one in found.guest.endpoints] == [(IP, "leased")]
    silent = all_read() | {Question("answers", BRIDGE, MAC, (IP,)): False}
    _, found = asked(present(phase="running"), answers=silent)
    assert found.guest
    assert found.guest.endpoints == ()


def test_start_without_one_asks_for_nothing_that_only_a_running_guest_has() -> None:
    """Its NIC does not exist yet."""
    kinds, found = asked(present())
    assert kinds == ["bridge", "sockets"]
    assert found.guest
    assert found.guest.endpoints == ()


def test_owner_of_a_socket_is_asked_for_where_its_port_is_taken() -> None:
    kinds, found = asked(present(str(IP)), answers=all_read() | {Question("sockets"): by_port([ON_80])})
    assert kinds == ["bridge", "sockets", "owners"]
    assert [*found.vetoed.values()] == [
        "host port tcp/80 is taken by nginx on the host, which listens on 0.0.0.0"
    ]


def test_guest_that_has_its_forwards_asks_for_no_socket() -> None:
    before = guest("web", forward(80))._replace(uuid=UUID, nics=NICS, phase="prepared")
    assert asked(present(str(IP), phase="running"), before)[0] == ["bridge"]
    assert asked(Readdressed(UUID), before._replace(phase="running"))[0].count("sockets") == 0
    # A start is vetoed in full.
    assert asked(present(str(IP)), before)[0] == ["bridge", "sockets"]


@pytest.mark.parametrize(("listens", "vetoed"), [(8005, False), (8012, True)])
def test_ports_that_a_guest_has_are_not_vetoed_in_a_range_that_was_made_longer(
    listens: int, vetoed: bool
) -> None:
    longer = PortForward("tcp", (Range(8000, 8012, 8000),))
    want = present(str(IP), phase="running", forwards=(longer,))
    before = guest("web", forward(8000, 8010))._replace(uuid=UUID, nics=NICS)
    answers = all_read() | {Question("sockets"): by_port([ON_80._replace(port=listens)])}
    for known, expected in ((before, vetoed), (None, True)):
        _, found = asked(want, known, answers)
        assert [*found.vetoed] == [forward(8000, 8012)] * expected


def test_guest_that_cannot_be_served_keeps_what_it_has_while_it_runs() -> None:
    before = guest("web", forward(80), endpoints=[endpoint("198.51.100.9")])._replace(uuid=UUID, nics=NICS)
    wrong = present("198.51.100.1", phase="running")
    _, found = asked(wrong, before)
    assert isinstance(found.error, VirtForwardError)
    assert found.guest
    assert found.guest.forwards == before.forwards
    for kept_out in (asked(wrong)[1], asked(present("198.51.100.1"), before)[1]):
        assert (kept_out.guest, kept_out.changes()) == (None, False)


def test_host_is_read_for_nics_of_the_want_or_the_record() -> None:
    before = guest("web")._replace(nics=NICS)
    assert located.nics(present(), None) == NICS
    assert located.nics(Readdressed(UUID), before) == NICS
    assert located.nics(Replugged(UUID, ()), before) == ()
    assert located.nics(Readdressed(UUID), None) is None
    assert located.nics(Readdressed(UUID), before._replace(phase="restoring")) is None
    assert located.nics(Restoring(UUID, "web"), before) is None


CHECKER_ONLY = {"ByPort": Mapping[str, tuple[Sequence[int], Sequence[Listener]]]}
"""Types that the program has for type checkers alone."""


def parts(of: Any, seen: set[Any]) -> set[Any]:
    """Return the types that a value of a type may contain."""
    if of in seen:
        return seen
    seen.add(of)
    origin = get_origin(of)
    if origin:
        seen.add(origin)
    inner = get_args(of)
    if isinstance(of, type) and hasattr(of, "_fields"):
        inner = tuple(get_type_hints(of, localns=CHECKER_ONLY)[name] for name in of._fields)
    for one in inner:
        if not isinstance(one, list | str | int):
            parts(one, seen)
    return seen


def test_facts_are_plain_data() -> None:
    found = parts(HostFacts, set())
    assert {BridgeFacts, SocketFacts, Neighbours, Details, Listener, Reservation} <= found
    assert collections.abc.Callable not in found
    assert Any not in found


def test_search_of_types_finds_a_function() -> None:
    class Lazy(NamedTuple):
        read: Mapping[str, Callable[[], int]]

    assert collections.abc.Callable in parts(tuple[Lazy, ...], set())


@pytest.mark.parametrize("question", [Question("bridge", BRIDGE), Question("answers", BRIDGE, MAC, (IP,))])
def test_question_says_what_was_not_read(question: Question) -> None:
    assert str(question) in str(UnreadError(question))
