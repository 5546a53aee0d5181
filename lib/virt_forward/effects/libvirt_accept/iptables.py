"""The only caller of iptables: libvirt's chain LIBVIRT_FWI in the table filter.

A native nft rule in it would make ``iptables -S`` fail for everybody.
"""

import shlex

from virt_forward.effects.libvirt_accept.plan import COMMENT, Decision, Family, Rule, is_ours
from virt_forward.errors import VirtForwardError
from virt_forward.host.process import Result, run
from virt_forward.names import LABEL
from virt_forward.text import output

NAME = "iptables"
CHAIN = "LIBVIRT_FWI"
LOCK_SECONDS = 5
"""How long to wait for the lock that all callers of iptables take turns with."""

_PROGRAMS = {"ip": "iptables", "ip6": "ip6tables"}
_OURS = ("-m", "connlabel", "--label", str(LABEL))
# Where the kernel or iptables has no connlabel: any DNAT to that bridge, a person's own as well.
_ANY = ("-m", "conntrack", "--ctstate", "DNAT")


def rules(family: Family) -> list[Rule]:
    """Return the rules of libvirt's chain, none where it or iptables does not exist."""
    result = _iptables(family, "-S", CHAIN)
    if result.status == 127 or "No chain" in result.stderr or "does not exist" in result.stderr:
        return []
    if result.status:
        raise _failure(family, result)
    return parse(result.stdout)


def parse(listing: str) -> list[Rule]:
    """Return the rules in what ``iptables -S LIBVIRT_FWI`` prints; raises VirtForwardError for others."""
    lines = (line for line in listing.split("\n") if line.startswith(f"-A {CHAIN} "))
    try:
        return [_rule(tuple(shlex.split(line)[2:])) for line in lines]
    except ValueError as error:
        raise VirtForwardError(f"iptables, chain {CHAIN}: its listing cannot be read: {error}") from None


def _rule(words: tuple[str, ...]) -> Rule:
    bridge = _after("-o", words)
    rejects = words[:3] == ("-o", bridge, "-j") and words[3:4] in (("REJECT",), ("DROP",))
    return Rule(words, bridge, is_ours(_after("--comment", words)), rejects)


def _after(option: str, words: tuple[str, ...]) -> str:
    if option not in words[:-1]:
        return ""
    position = words.index(option)
    return "" if position and words[position - 1] == "!" else words[position + 1]


def change(family: Family, decision: Decision) -> None:
    """Carry out a decision; raises VirtForwardError where the chain does not take it.

    What is removed first was of no effect, or is not wanted: no packet misses it.
    """
    for words in decision.remove:
        result = _iptables(family, "-D", CHAIN, *words)
        if result.status:
            raise _failure(family, result)
    for bridge in decision.insert:
        _insert(family, bridge)


def _insert(family: Family, bridge: str) -> None:
    result = Result(1, "", "")
    for match in (_OURS, _ANY):
        words = ("-o", bridge, *match, "-m", "comment", "--comment", COMMENT, "-j", "ACCEPT")
        result = _iptables(family, "-I", CHAIN, *words)
        if not result.status:
            return
    raise _failure(family, result)


def _iptables(family: Family, *words: str) -> Result:
    return run([_PROGRAMS[family], "-w", str(LOCK_SECONDS), *words], timeout=2 * LOCK_SECONDS)


def _failure(family: Family, result: Result) -> VirtForwardError:
    words = output(result.stderr) or f"exit status {result.status}"
    return VirtForwardError(f"{_PROGRAMS[family]}, chain {CHAIN}: {words}")
