"""The real nft keeps the contract that the unit tests' fake keeps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from support import netns, nft_contract
from support.nft_contract import CASES, Case
from virt_forward.host import nft, process

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

    monkeypatch.setattr(nft, "run", run)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_contract(case: Case) -> None:
    nft_contract.check(nft, case)


def test_contract_of_views() -> None:
    nft_contract.check_views(nft)
