"""libvirt's chain guest_input in the tables ip and ip6 libvirt_network (libvirt 10.4 and newer)."""

from __future__ import annotations

import json
from collections.abc import Mapping

from virt_forward import names
from virt_forward.effects.libvirt_accept.plan import COMMENT, Decision, Family, Rule, is_ours
from virt_forward.errors import VirtForwardError
from virt_forward.host import nft
from virt_forward.host.process import run
from virt_forward.namedtuple import TYPE_CHECKING
from virt_forward.text import output

if TYPE_CHECKING:
    from typing import Any

NAME = "nftables"
TABLE, CHAIN = "libvirt_network", "guest_input"


def rules(family: Family) -> list[Rule]:
    """Return the rules of libvirt's chain, none where it does not exist."""
    result = run(["nft", "-j", "list", "chain", family, TABLE, CHAIN], timeout=nft.TIMEOUT)
    if "No such file or directory" in result.stderr:
        return []
    if result.status:
        words = output(result.stderr) or f"exit status {result.status}"
        raise VirtForwardError(f"nft, chain {family} {TABLE} {CHAIN}: {words}")
    return parse(result.stdout)


def parse(listing: str) -> list[Rule]:
    """Return the rules in nft's JSON listing of the chain; raises VirtForwardError for anything else."""
    try:
        return [_rule(item["rule"]) for item in json.loads(listing)["nftables"] if "rule" in item]
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise VirtForwardError(
            f"nft, chain {TABLE} {CHAIN}: its listing cannot be read: {type(error).__name__}"
        ) from None


def _rule(rule: Mapping[str, Any]) -> Rule:
    expressions = rule.get("expr", ())
    matches = [item["match"] for item in expressions if "match" in item]
    bridge = next((str(match["right"]) for match in matches if _is_output(match)), "")
    rejects = bool(bridge) and len(matches) == 1 and _turns_away(expressions)
    return Rule((str(rule["handle"]),), bridge, is_ours(rule.get("comment")), rejects)


def _is_output(match: Mapping[str, Any]) -> bool:
    return match["op"] == "==" and match["left"] in ({"meta": {"key": "oif"}}, {"meta": {"key": "oifname"}})


def _turns_away(expressions: list[Mapping[str, Any]]) -> bool:
    kinds = {kind for item in expressions for kind in item}
    return bool(kinds & {"reject", "drop"}) and kinds <= {"match", "counter", "reject", "drop"}


def change(family: Family, decision: Decision) -> None:
    """Carry out a decision in one transaction; raises VirtForwardError where nft refuses it."""
    where = f"{family} {TABLE} {CHAIN}"
    commands = [f"delete rule {where} handle {handle}" for (handle,) in decision.remove]
    commands += [f"insert rule {where} {_words(bridge)}" for bridge in decision.insert]
    nft.apply("".join(f"{command}\n" for command in commands))


def _words(bridge: str) -> str:
    return (
        f"ct label {names.LABEL} oifname {names.interface(bridge)} counter accept "
        f"comment {names.quoted(COMMENT)}"
    )
