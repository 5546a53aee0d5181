"""Asking the real guests from their host: whether they answer at their addresses and ports."""

import contextlib
import errno
import json
import os
import select
import socket
import time
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

from virt_forward.check.facts import Answer, Response
from virt_forward.host.process import run
from virt_forward.model import Endpoint, Forward, Guest

SECONDS = 1.5
"""How long all guests together have for their answers; the kernel repeats ARP and SYN after one second."""
UDP_SECONDS = 0.3
"""How long an answer that a UDP port is closed may take; an open one need not answer."""
RESOLVE_SECONDS = 0.5
MAX_ASKED = 512


class _Unasked(NamedTuple):
    """Why a question was not asked, in words."""

    why: str


_Outcome = Literal["accepted", "refused", "none"] | _Unasked
_KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


class _Question(NamedTuple):
    uuid: str
    endpoint: Endpoint
    forward: Forward


def responses(guests: Iterable[Guest]) -> tuple[Response, ...]:
    """Return how running guests with forwards answer, at each endpoint. Waits SECONDS at most."""
    questions = [*_questions(guests)]
    outcomes = _ask(questions[:MAX_ASKED])
    outcomes |= dict.fromkeys(questions[MAX_ASKED:], _Unasked(f"{MAX_ASKED} ports are asked at most"))
    neighbours = _resolved({question.endpoint for question, outcome in outcomes.items() if outcome == "none"})
    accepted = {(q.uuid, q.forward) for q, outcome in outcomes.items() if outcome == "accepted"}
    alive = {(q.uuid, q.endpoint) for q, outcome in outcomes.items() if outcome in ("accepted", "refused")}
    found = []
    for question, outcome in outcomes.items():
        answer = _judge(question, outcome, neighbours, (question.uuid, question.endpoint) in alive)
        excuse = outcome.why if isinstance(outcome, _Unasked) else _excuse(question, answer, accepted)
        found.append(Response(question.uuid, question.endpoint, question.forward, answer, excuse))
    return tuple(found)


def _resolved(endpoints: Iterable[Endpoint]) -> dict[tuple[str, str], str]:
    """Return the neighbours on the bridges of endpoints; the kernel is made to ask for unknown ones.

    The host's own rules may have stopped the packets that would have made it ask. ``ip neighbour add …
    use`` sends the request and adds what a packet would (NTF_USE, rtnetlink(7)).
    """
    endpoints = tuple(endpoints)
    bridges = {endpoint.bridge for endpoint in endpoints}
    found = _neighbours(bridges)
    missing = [item for item in endpoints if (item.bridge, str(item.ip)) not in found]
    lines = "".join(f"neighbour add {item.ip} dev {item.bridge} use\n" for item in missing)
    if lines:
        run(["ip", "-force", "-batch", "-"], lines)
    until = time.monotonic() + RESOLVE_SECONDS
    while missing and time.monotonic() < until:
        time.sleep(0.02)
        found = _neighbours(bridges)
        missing = [item for item in missing if (item.bridge, str(item.ip)) not in found]
    return found


def _questions(guests: Iterable[Guest]) -> Iterator[_Question]:
    for guest in guests:
        for forward in guest.forwards if guest.phase == "running" else ():
            for endpoint in guest.endpoints_for(forward):
                yield _Question(guest.uuid, endpoint, forward)


def _judge(
    question: _Question, outcome: _Outcome, neighbours: Mapping[tuple[str, str], str], alive: bool
) -> Answer:
    if isinstance(outcome, _Unasked):
        return "unasked"
    if outcome == "accepted":
        return outcome
    endpoint = question.endpoint
    mac = neighbours.get((endpoint.bridge, str(endpoint.ip)))
    if mac is None and not alive:
        return "silent"
    if mac is not None and mac != endpoint.mac:
        return "foreign"
    return "refused" if outcome == "refused" else "filtered"


def _excuse(question: _Question, answer: Answer, accepted: Container[tuple[str, Forward]]) -> str:
    """Return why a port that does not accept is no fault, or nothing."""
    forward = question.forward
    if answer not in ("refused", "filtered"):
        return ""
    if forward.start != forward.end:
        return "of a range, no port need be in use"
    if answer == "filtered" and forward.proto == "udp":
        return "an open UDP port need not answer"
    # A service may listen on addresses of one family alone.
    listens = answer == "refused" and (question.uuid, forward) in accepted
    return "its service listens on another address" if listens else ""


def _ask(questions: Iterable[_Question]) -> dict[_Question, _Outcome]:
    outcomes: dict[_Question, _Outcome] = {}
    waiting: dict[int, tuple[_Question, socket.socket]] = {}
    poller = select.poll()
    with contextlib.ExitStack() as closing:
        for question in questions:
            outcomes[question] = "none"
            opened = _open(question)
            if isinstance(opened, socket.socket):
                closing.enter_context(opened)
                waiting[opened.fileno()] = question, opened
                poller.register(opened, select.POLLOUT if question.forward.proto == "tcp" else select.POLLIN)
            else:
                outcomes[question] = opened
        _wait(poller, waiting, outcomes)
    return outcomes


def _open(question: _Question) -> socket.socket | _Outcome:
    """Return a socket that connects, or has sent an empty datagram; or what is known at once."""
    endpoint, forward = question.endpoint, question.forward
    if forward.proto not in _KINDS:
        return _Unasked("only TCP and UDP ports are asked")
    family = socket.AF_INET if endpoint.ip.version == 4 else socket.AF_INET6
    opened = socket.socket(family, _KINDS[forward.proto])
    opened.setblocking(False)
    try:
        error = opened.connect_ex((str(endpoint.ip), forward.to))
        if forward.proto == "udp" and not error:
            opened.send(b"")
    except OSError as failed:
        error = failed.errno or errno.EIO
    if error in (0, errno.EINPROGRESS):
        return opened
    opened.close()
    return _outcome(error)


def _outcome(error: int) -> _Outcome:
    if error == errno.ECONNREFUSED:
        return "refused"
    # Whatever else the host's own rules or routes do says nothing of the guest.
    unreachable = error in (errno.EHOSTUNREACH, errno.ETIMEDOUT)
    return "none" if unreachable else _Unasked(f"this host says: {os.strerror(error)}")


def _wait(
    poller: select.poll,
    waiting: dict[int, tuple[_Question, socket.socket]],
    outcomes: dict[_Question, _Outcome],
) -> None:
    start = time.monotonic()
    while waiting and (left := start + _limit(waiting) - time.monotonic()) > 0:
        for descriptor, _ in poller.poll(min(left, 0.1) * 1000):
            poller.unregister(descriptor)
            question, opened = waiting.pop(descriptor)
            error = opened.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            outcomes[question] = _outcome(error) if error else "accepted"


def _limit(waiting: Mapping[int, tuple[_Question, socket.socket]]) -> float:
    """Return how long to wait: shorter where only UDP ports are left, and their guests are neighbours."""
    questions = [question for question, _ in waiting.values()]
    if any(question.forward.proto == "tcp" for question in questions):
        return SECONDS
    known = _neighbours({question.endpoint.bridge for question in questions})
    resolved = all((q.endpoint.bridge, str(q.endpoint.ip)) in known for q in questions)
    return UDP_SECONDS if resolved else SECONDS


def _neighbours(bridges: Iterable[str]) -> dict[tuple[str, str], str]:
    """Return the MAC address of each neighbour that has answered, by bridge and address."""
    found: dict[tuple[str, str], str] = {}
    for bridge in bridges:
        shown = run(["ip", "-j", "neighbour", "show", "dev", bridge]).stdout
        try:
            items = json.loads(shown or "[]", strict=False)
        except ValueError:
            continue
        for item in items:
            if "lladdr" in item and not {"FAILED", "INCOMPLETE"} & {*item.get("state", ())}:
                found[bridge, item["dst"]] = item["lladdr"]
    return found
