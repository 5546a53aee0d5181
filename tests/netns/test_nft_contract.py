"""The real nft keeps the contract that the unit tests' fake keeps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from support import netns, nft_contract, payload
from support.nft_contract import CASES, Case
from virt_forward.host import netlink, nft, process
from virt_forward.host.nft import Parts
from virt_forward.names import TABLE

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def ns() -> Iterator[netns.Ns]:
    """A network namespace without anything in it."""
    made = netns.Ns(f"{netns.PREFIX}contract")
    try:
        yield made
    finally:
        made.remove()


@pytest.fixture(autouse=True)
def _nft_runs_there(ns: netns.Ns, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(argv: Sequence[str], *more: Any, **named: Any) -> process.Result:
        return process.run(["ip", "netns", "exec", ns.name, *argv], *more, **named)

    def connect(protocol: int) -> Any:
        return payload.inside(ns.path, lambda: really(protocol))

    really = netlink._open
    monkeypatch.setattr(nft, "run", run)
    monkeypatch.setattr(netlink, "_open", connect)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_contract(case: Case) -> None:
    nft_contract.check(nft, case)


def test_contract_of_views() -> None:
    nft_contract.check_views(nft)


def test_parts_are_those_of_our_table_alone() -> None:
    nft.delete_table()
    nft.apply(
        "table inet other { chain theirs { }\n set listed { type mark; }\n }\n"
        "table ip virt-forward { chain theirs { }\n }\n"
        f"table {TABLE} {{ chain a {{ tcp dport {{ 80, 81 }} accept\n }}\n counter c {{ }}\n"
        " map m { type mark : mark; }\n }\n"
    )
    assert nft.parts() == Parts(frozenset("a"), frozenset("cm"))
    nft.apply("delete table inet other\ndelete table ip virt-forward\n")
