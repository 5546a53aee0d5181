"""The only caller of nft."""

import json

from virt_forward.errors import NftError
from virt_forward.process import run
from virt_forward.ruleset.names import TABLE

TIMEOUT = 20.0
"""Seconds; the largest tables load in a second or two."""


def apply(commands: str) -> None:
    """Load commands in one transaction: all of them, or none.

    Raises NftError with nft's own words, and the place in the commands.
    """
    result = run(["nft", "-f", "-"], commands, TIMEOUT)
    if result.status:
        raise _failure(result.stderr, result.status)


def chains() -> list[str] | None:
    """Return the names of the chains in our table, or None where there is no table."""
    result = run(["nft", "-j", "list", "chains", "inet"], timeout=TIMEOUT)
    if result.status:
        raise _failure(result.stderr, result.status)
    items = json.loads(result.stdout)["nftables"]
    names = [c["name"] for c in (item.get("chain") for item in items) if c and c["table"] == "virt-forward"]
    return names or (names if _exists() else None)


def _exists() -> bool:
    return run(["nft", "list", "table", *TABLE.split()], timeout=TIMEOUT).status == 0


def delete_table() -> None:
    """Delete our table; no error where there is none."""
    apply(f"add table {TABLE}\ndelete table {TABLE}\n")


def listing() -> list[dict[str, object]] | None:
    """Return the items of our table as nft's JSON lists them, or None where there is no table."""
    result = run(["nft", "-j", "list", "table", *TABLE.split()], timeout=TIMEOUT)
    if result.status == 127 or "not permitted" in result.stderr:
        raise _failure(result.stderr, result.status)
    if result.status:
        return None
    items: list[dict[str, object]] = json.loads(result.stdout)["nftables"]
    return items


def _failure(stderr: str, status: int) -> NftError:
    words = " ".join(stderr.split()) or f"exit status {status}"
    if status == 127:
        return NftError("nft is not there", "install the package nftables")
    return NftError(f"nft refused: {words[:400]}")
