"""One guest explained, from its declaration to its packets (pure)."""

from collections.abc import Iterator
from typing import Literal, NamedTuple

from virt_forward import names, ports, portspec, text
from virt_forward.addresses import explain
from virt_forward.check import listing, remedies
from virt_forward.check.clone.verdict import Obstacle, Result
from virt_forward.check.facts import Answer, Facts
from virt_forward.check.packet_findings import few
from virt_forward.model import Domain, Guest
from virt_forward.ruleset.guest import nat_chain

Name = Literal["declared", "state", "endpoint", "claims", "rules", "path", "guest"]


class Step(NamedTuple):
    """A step of the explanation; ``ok`` is False where it goes no further."""

    step: Name
    ok: bool
    text: str


def explain_guest(domain: Domain, active: bool, facts: Facts) -> list[Step]:
    """Return the steps from what a domain declares to the answer of its guest."""
    return [*_steps(domain, active, facts)]


def _steps(domain: Domain, active: bool, facts: Facts) -> Iterator[Step]:
    declared = ports.expand(domain.declaration) if domain.declaration else ()
    if not declared:
        yield Step("declared", False, "its metadata (urn:virt-forward:1) declares no forwards")
        return
    where = "live metadata" if active else "metadata"
    yield Step("declared", True, f"{few([*map(portspec.render, declared)])} in its {where}")
    if not active:
        yield Step("state", False, "shut off: its forwards are opened when it starts")
        return
    guest = next((item for item in facts.guests if item.uuid == domain.uuid), None)
    yield Step(
        "state", guest is not None, "running" if guest else f"running, without a record; {remedies.SYNC}"
    )
    if guest:
        yield from _endpoints(guest, facts)
        yield from _claims(guest)
        yield from _not_in_force(guest, facts)
        yield _rules(guest, facts)
        yield from _paths(guest, facts)
        yield from _answers(guest, facts)


def _endpoints(guest: Guest, facts: Facts) -> Iterator[Step]:
    for endpoint in guest.endpoints:
        shown = f"{endpoint.ip} on {endpoint.bridge}, {endpoint.mac}, {endpoint.origin}"
        yield Step("endpoint", True, shown)
    waiting = [forward for forward in guest.forwards if not guest.endpoints_for(forward)]
    if waiting:
        yield Step("endpoint", False, explain.reason(guest, waiting[0], facts.networks))


def _claims(guest: Guest) -> Iterator[Step]:
    if guest.forwards:
        yield Step("claims", True, f"{few([*map(portspec.host_part, guest.forwards)])} held")
    yield from (
        Step("claims", False, f"{portspec.host_part(forward)}: {reason}")
        for forward, reason in guest.conflicts
    )


def _not_in_force(guest: Guest, facts: Facts) -> Iterator[Step]:
    for found in (found for found in facts.differences if found.uuid == guest.uuid):
        yield from (
            Step("claims", False, f"{portspec.host_part(item)}: {why}") for item, why in found.kept_out
        )
        for forwards, why in (
            (found.closed, "declared, but not open"),
            (found.undeclared, "open, but not declared"),
        ):
            if forwards:
                yield Step(
                    "claims", False, f"{few([*map(portspec.host_part, forwards)])} {why}; {remedies.SYNC}"
                )
    for item in facts.invalid:
        if item.definition == "live" and item.error.domain.uuid == guest.uuid:
            yield Step(
                "claims", False, f"as before, as the metadata is refused: {'; '.join(item.error.reasons)}"
            )


def _rules(guest: Guest, facts: Facts) -> Step:
    chain = nat_chain(names.suffix(guest.name, guest.uuid))
    actual = listing.parse(facts.table or "").get(f"chain {chain}")
    expected = listing.parse(facts.expected_table or "").get(f"chain {chain}")
    if actual is None:
        return Step("rules", expected is None, f"chain {chain} is not in table {names.TABLE}")
    same = "as expected" if actual == expected else "not as expected"
    return Step("rules", actual == expected, f"chain {chain} of table {names.TABLE}, {same}")


def _paths(guest: Guest, facts: Facts) -> Iterator[Step]:
    if facts.unverified:
        yield Step("path", False, f"not tried: {facts.unverified}")
    shown: set[str] = set()
    for result in facts.report.results:
        step = _path(result)
        if result.probe.uuid == guest.uuid and step.text not in shown:
            shown.add(step.text)
            yield step


def _path(result: Result) -> Step:
    probe = result.probe
    way = (
        f"{probe.forward.proto} from {probe.client} by {text.word(probe.device)} to {probe.address} "
        f"port {probe.port}"
    )
    if not result.obstacles and result.complete:
        decisions = "".join(f"; {text.plain(decision, 200)}" for decision in result.path)
        return Step(
            "path",
            True,
            f"{way}: arrives at {probe.endpoint.ip} port {probe.to}, as does the answer{decisions}",
        )
    reasons = [_reason(obstacle) for obstacle in result.obstacles] or ["it is lost"]
    return Step("path", False, f"{way}: {'; then '.join(reasons)}")


def _reason(obstacle: Obstacle) -> str:
    subject = "the answer is " if obstacle.answer else ""
    if obstacle.chain:
        verb = "taken" if obstacle.kind == "translated" else "dropped"
        return f"{subject}{verb} by {remedies.where(obstacle)}"
    kinds = {
        "forwarding": f"not forwarded: forwarding is off on {obstacle.detail}",
        "rp_filter": f"dropped by rp_filter on {obstacle.detail}",
        "local": "not translated: it reaches the host itself",
        "misled": f"sent to another address or port, at {obstacle.detail}",
    }
    return subject + kinds.get(obstacle.kind, f"not delivered: {text.plain(obstacle.detail, 200)}")


_ANSWERS: dict[Answer, str] = {
    "accepted": "answers for {}",
    "refused": "refuses {}",
    "filtered": "does not answer on {}",
    "silent": "does not answer",
    "foreign": "is another machine's",
    "unasked": "was not asked for {}",
}


def _answers(guest: Guest, facts: Facts) -> Iterator[Step]:
    shown: set[str] = set()
    for item in (item for item in facts.responses if item.uuid == guest.uuid):
        forward, excuse = item.forward, item.excuse
        if item.answer == "filtered" and (item.endpoint, forward.to) in facts.report.blocked:
            excuse = "this host's own rules drop its packets to that port"
        port = f"{forward.proto}/{forward.to}"
        port += f" of {forward.guest_span}" if forward.start != forward.end else ""
        line = f"{item.endpoint.ip} {_ANSWERS[item.answer].format(port)}" + (f": {excuse}" if excuse else "")
        if line not in shown:
            shown.add(line)
            yield Step("guest", item.answer == "accepted" or bool(excuse), line)
