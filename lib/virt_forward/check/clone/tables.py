"""The host's rulesets as text that loads in the clone, in the order in which the host has its tables."""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from virt_forward.check import rules
from virt_forward.check.clone.host_state import HostState
from virt_forward.check.rules import Table

TRACE_TABLE = "virt-forward-trace"
FIRST = -2147483647
"""The earliest priority but one: a chain there sees a packet before all others do."""
HOOKS = ("prerouting", "input", "forward", "postrouting")

_OWNER = re.compile(r"^(\tflags) ([\w,]+);?$", re.MULTILINE)
_OFFLOAD = re.compile(r"^\t\tflags offload;?\n", re.MULTILINE)
_COUNTS = re.compile(r"\bcounter packets \d+ bytes \d+")


class Segment(NamedTuple):
    """A piece of the ruleset: the program that loads it, its text, and the tables in it."""

    argv: tuple[str, ...]
    text: str
    tables: tuple[tuple[str, str], ...]


NFT = ("nft", "-f", "-")


def segments(host: HostState) -> list[Segment]:
    """Return the pieces in the order of the listing; neighbouring ones of nft are one piece."""
    found: list[Segment] = []
    saved = {(table.family, table.name): table for table in host.xtables}
    for table in rules.parse(host.ruleset):
        if table.family == "arp":
            continue
        # What nft prints completely, it also loads.
        xtable = saved.get(table.key) if table.uses_xtables else None
        if xtable:
            found.append(Segment((xtable.program,), xtable.text, (table.key,)))
        elif found and found[-1].argv == NFT:
            last = found[-1]
            found[-1] = Segment(NFT, last.text + loadable(table), (*last.tables, table.key))
        else:
            found.append(Segment(NFT, loadable(table), (table.key,)))
    return found + list(_legacy(host))


def _legacy(host: HostState) -> Iterator[Segment]:
    for table in host.legacy:
        yield Segment((table.program,), table.text, ((f"legacy {table.family}", table.name),))


def alone(segment: Segment, host: HostState) -> list[Segment]:
    """Return a piece of several tables as one piece for each, for when it does not load as a whole."""
    by_key = {table.key: table for table in rules.parse(host.ruleset)}
    return [Segment(segment.argv, loadable(by_key[key]), (key,)) for key in segment.tables]


def loadable(table: Table) -> str:
    """Return the text of a table without what binds it to its process or to hardware."""
    text = _OWNER.sub(_without_owner, table.text)
    return _COUNTS.sub("counter", _OFFLOAD.sub("", text))


def _without_owner(found: re.Match[str]) -> str:
    """Leave out the flags owner (the table would go with nft's own process) and persist."""
    kept = [flag for flag in found[2].split(",") if flag not in ("owner", "persist")]
    return f"{found[1]} {','.join(kept)}" if kept else ""


def tracer(families: frozenset[str], devices: Iterable[str]) -> str:
    """Return the tables that make the kernel trace probes, and show which hooks they reach.

    ``families`` are those of the host's tables: a hook that has no chain of the host needs none here,
    but for those of IP. ``devices`` are where probes and answers come in.
    """
    rule = f"priority {FIRST}; meta nftrace set 1;"
    hooks = "".join(f"chain {hook} {{ type filter hook {hook} {rule} }}\n" for hook in HOOKS)
    found = f"table inet {TRACE_TABLE} {{\n{hooks}}}\n"
    if "bridge" in families:
        found += (
            f"table bridge {TRACE_TABLE} {{ chain prerouting {{ type filter hook prerouting {rule} }}\n}}\n"
        )
    if "netdev" in families:
        chains = "".join(
            f'chain ingress{number} {{ type filter hook ingress device "{device}" {rule} }}\n'
            for number, device in enumerate(devices)
        )
        found += f"table netdev {TRACE_TABLE} {{\n{chains}}}\n"
    return found
