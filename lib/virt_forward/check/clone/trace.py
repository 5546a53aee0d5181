"""Trace messages of nf_tables (linux/netfilter/nf_tables.h, enum nft_trace_attributes).

The kernel's messages are read and not what ``nft monitor trace`` makes of them: they name a rule by its
handle, whatever the version of nft, and also rules of iptables that nft cannot print.
"""

from collections.abc import Iterator
from contextlib import suppress
from typing import Literal, NamedTuple

from virt_forward.host import netlink

GROUP = 9
"""NFNLGRP_NFTRACE (linux/netfilter/nfnetlink.h)."""
MESSAGE = (10 << 8) | 17
"""NFNL_SUBSYS_NFTABLES and NFT_MSG_TRACE."""

_TABLE, _CHAIN, _HANDLE, _TYPE, _VERDICT, _ID, _POLICY = 1, 2, 3, 4, 5, 6, 16
_CODE, _TARGET = 1, 2

Step = Literal["rule", "return", "policy"]
_STEPS: dict[int, Step] = {1: "policy", 2: "return", 3: "rule"}
FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
VERDICTS = {0: "drop", 1: "accept", 2: "stolen", 3: "queue", -1: "continue", -2: "break"} | {
    -3: "jump",
    -4: "goto",
    -5: "return",
}


class Event(NamedTuple):
    """A packet met a rule, the end of a chain or a policy; ``handle`` is 0 where it is not a rule."""

    family: str
    table: str
    chain: str
    step: Step
    handle: int
    verdict: str
    target: str = ""


def parse(datagram: bytes) -> Iterator[Event]:
    """Yield the events in a datagram of the trace group; other messages are left out (netlink(7))."""
    with suppress(OSError):
        for message in netlink.messages(datagram):
            if message.kind == MESSAGE:
                yield from _event(message.payload)


def _event(body: bytes) -> Iterator[Event]:
    found = dict(netlink.attributes(body[4:]))
    step = _STEPS.get(_number(found.get(_TYPE, b"")))
    if step is None:
        return
    verdict = dict(netlink.attributes(found.get(_VERDICT, b"")))
    code = found.get(_POLICY, b"") if step == "policy" else verdict.get(_CODE, b"")
    yield Event(
        FAMILIES.get(body[0], "?"),
        _string(found.get(_TABLE, b"")),
        _string(found.get(_CHAIN, b"")),
        step,
        _number(found.get(_HANDLE, b"")),
        # The upper half of a queue's verdict is the number of the queue.
        VERDICTS.get(_signed(code) if _signed(code) < 0 else _signed(code) & 0xFFFF, "?"),
        _string(verdict.get(_TARGET, b"")),
    )


def _number(data: bytes) -> int:
    return int.from_bytes(data)


def _signed(data: bytes) -> int:
    return int.from_bytes(data, signed=True)


def _string(data: bytes) -> str:
    return data.rstrip(b"\0").decode(errors="replace")
