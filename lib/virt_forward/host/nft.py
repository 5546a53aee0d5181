"""The only caller of nft."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from virt_forward.errors import NftError, NftUnusableError
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


_KINDS = ("chains", "sets", "maps", "counters", "quotas", "flowtables")


def parts() -> Parts | None:
    """Return the names in our table, or None if there is no table."""
    words = "; ".join(f"list {kind} inet" for kind in _KINDS)
    result = run(["nft", "-j", "-t", words], timeout=TIMEOUT)
    if result.status:
        raise _failure(result.stderr, result.status)
    chains: set[str] = set()
    others: set[str] = set()
    for line in result.stdout.splitlines():
        for kind, item in _objects(json.loads(line)["nftables"]):
            (chains if kind == "chain" else others).add(item["name"])
    found = Parts(frozenset(chains), frozenset(others))
    return found if chains or others or _exists() else None


def _objects(items: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for item in items:
        yield from (pair for pair in item.items() if pair[1].get("table") == "virt-forward")


def _exists() -> bool:
    return run(["nft", "list", "table", *TABLE.split()], timeout=TIMEOUT).status == 0


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
    """Tell whether our table has its rules: ``nft flush table`` deletes rules, not the table."""
    result = run(["nft", "list", "chain", *TABLE.split(), "prerouting"], timeout=TIMEOUT)
    return result.status == 0 and "vmap" in result.stdout


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
        return NftUnusableError("nft not found", "install the package nftables")
    return (NftUnusableError if status == 124 else NftError)(f"nft refused: {words}")
