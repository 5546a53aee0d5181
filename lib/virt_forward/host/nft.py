"""The only caller of nft."""

from __future__ import annotations

import errno
import json
import os
import re
import struct

from virt_forward.errors import NftError, NftMissingError, NftTimeout, NftUnusableError
from virt_forward.host import netlink
from virt_forward.host.nft_commit import CommitWatch
from virt_forward.host.process import run
from virt_forward.namedtuple import TYPE_CHECKING, NamedTuple
from virt_forward.names import TABLE
from virt_forward.text import output

if TYPE_CHECKING:
    from typing import Any

TIMEOUT = 20.0
"""Seconds, for what does not depend on the size of the table."""

TIMEOUT_PER_CHARACTER = 1e-5
"""Seconds for each character of commands: 100,000 forwards are 25 million, and take a minute or two."""

MAX_WATCHED = 1 << 16
"""Up to how many characters of commands the kernel's word of the commit is waited for, and not nft's end."""


class Parts(NamedTuple):
    """The names in our table: of its chains, and of its sets, maps and other objects."""

    chains: frozenset[str]
    others: frozenset[str]


def apply(commands: str) -> None:
    """Run commands in one transaction: all of them, or none. Raises NftError with the output of nft."""
    watch = _commit_watch(commands)
    result = run(["nft", "-f", "-"], commands, TIMEOUT + len(commands) * TIMEOUT_PER_CHARACTER, watch)
    if watch:
        watch.close()
    if result.status:
        raise _failure(result.stderr, result.status)


def _commit_watch(commands: str) -> CommitWatch | None:
    # The kernel tells of all that a transaction changes, which is a lot for a large one.
    try:
        return CommitWatch() if len(commands) < MAX_WATCHED else None
    except OSError:
        return None


class _Kind(NamedTuple):
    """A kind of object of nf_tables: the request for all of them, and the attribute that is their name."""

    request: int
    name: int


_TABLES = _Kind(10 << 8 | 1, 1)
_CHAINS = _Kind(10 << 8 | 4, 3)
_SETS = _Kind(10 << 8 | 10, 2)
_OBJECTS = _Kind(10 << 8 | 19, 2)
_FLOWTABLES = _Kind(10 << 8 | 23, 2)
"""NFT_MSG_GETTABLE and NFTA_TABLE_NAME and so on, of NFNL_SUBSYS_NFTABLES (linux/netfilter/nf_tables.h)."""

_OWNER = 1
"""NFTA_CHAIN_TABLE, NFTA_SET_TABLE and so on, and the name of a table itself."""

_GETRULE, _RULE_CHAIN = 10 << 8 | 7, 2
"""NFT_MSG_GETRULE and NFTA_RULE_CHAIN: a dump can be of one chain (nf_tables_dump_rules)."""

_SET_FLAGS, _ANONYMOUS = 3, 1
"""NFTA_SET_FLAGS and NFT_SET_ANONYMOUS: such a set is part of a rule."""

_INET = bytes((1, 0, 0, 0))
"""struct nfgenmsg with NFPROTO_INET."""


def parts() -> Parts | None:
    """Return the names in our table, or None if there is no table. Raises NftUnusableError.

    The kernel is asked, and not nft, which reads all rules first: a fifth of a second for 1,000 guests.
    """
    try:
        if not _names(_TABLES):
            return None
        others = (name for kind in (_SETS, _OBJECTS, _FLOWTABLES) for name in _names(kind))
        return Parts(frozenset(_names(_CHAINS)), frozenset(others))
    except OSError as error:
        raise _unlisted(error) from None


def _unlisted(error: OSError) -> NftUnusableError:
    # What a socket raises after its time limit has no number.
    reason = os.strerror(error.errno or errno.ETIMEDOUT)
    return NftUnusableError(f"the kernel does not list what is in its tables: {reason}")


def _names(kind: _Kind) -> list[str]:
    """Return the names of what our table has of a kind, or of the table itself. Raises OSError."""
    table = TABLE.partition(" ")[2].encode() + b"\0"
    found = (
        dict(netlink.attributes(payload[len(_INET) :]))
        for payload in netlink.dump(netlink.NETLINK_NETFILTER, kind.request, _INET)
    )
    return [
        fields[kind.name].rstrip(b"\0").decode()
        for fields in found
        if fields.get(_OWNER) == table
        and not (kind is _SETS and int.from_bytes(fields.get(_SET_FLAGS, b"")) & _ANONYMOUS)
    ]


def check() -> None:
    """Raise NftError if our table could not be changed now, as nft is not installed or is refused."""
    result = run(["nft", "-c", "-f", "-"], f"add table {TABLE}\n", TIMEOUT)
    if result.status:
        raise _failure(result.stderr, result.status)


def delete_table() -> None:
    """Delete our table, if there is one. Raises NftError."""
    apply(f"add table {TABLE}\ndelete table {TABLE}\n")


def listing() -> list[dict[str, object]] | None:
    """Return our table as the items of nft's JSON (libnftables-json(5)), or None if there is no table."""
    result = run(["nft", "-j", "list", "table", *TABLE.split()], timeout=TIMEOUT)
    if result.status == 127 or "not permitted" in result.stderr:
        raise _failure(result.stderr, result.status)
    if result.status:
        return None
    items: list[dict[str, object]] = json.loads(result.stdout)["nftables"]
    return items


def ruleset() -> list[dict[str, Any]]:
    """Return the host's whole ruleset as the items of nft's JSON, without the elements of named sets.

    Raises NftError.
    """
    result = run(["nft", "-j", "-t", "list", "ruleset"], timeout=TIMEOUT)
    if result.status:
        raise _failure(result.stderr, result.status)
    items: list[dict[str, Any]] = json.loads(result.stdout)["nftables"]
    return items


def plain_listing() -> str | None:
    """Return our table as ``nft -s`` lists it, without counters; None if there is no table."""
    result = run(["nft", "-s", "list", "table", *TABLE.split()], timeout=TIMEOUT)
    if result.status == 127:
        raise _failure(result.stderr, result.status)
    return None if result.status else result.stdout


def dispatches() -> bool:
    """Tell whether our table has its rules: ``nft flush table`` deletes rules, not the table.

    Raises NftUnusableError. As in :func:`parts`, the kernel is asked; nft would read all rules.
    """
    table, chain = (
        _text(kind, name) for kind, name in ((_OWNER, TABLE.split()[1]), (_RULE_CHAIN, "prerouting"))
    )
    try:
        return bool(netlink.dump(netlink.NETLINK_NETFILTER, _GETRULE, _INET + table + chain))
    except OSError as error:
        raise _unlisted(error) from None


def _text(kind: int, text: str) -> bytes:
    """Return an attribute with a string (netlink(7))."""
    data = text.encode() + b"\0"
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def revision() -> int | None:
    """Return the revision of our table, or None if there is no table."""
    result = run(["nft", "list", "set", *TABLE.split(), "revision"], timeout=TIMEOUT)
    found = re.search(r"elements = \{ (0x[0-9a-f]+) \}", result.stdout)
    return int(found[1], 16) if result.status == 0 and found else None


def scratch_listing(text: str) -> str:
    """Return how nft lists the table in ``text``, loaded into a new network namespace. Raises NftError."""
    words = f"nft -f - && nft -s list table {TABLE}"
    result = run(["unshare", "--net", "sh", "-c", words], text, TIMEOUT)
    if result.status:
        raise _failure(result.stderr, result.status)
    return result.stdout


def _failure(stderr: str, status: int) -> NftError:
    words = output(stderr) or f"exit status {status}"
    if status == 127:
        return NftMissingError("nft not found", "install the package nftables")
    return NftTimeout(words) if status == 124 else NftError(f"nft refused: {words}")
