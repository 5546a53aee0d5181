"""The fake nft keeps the contract, and any history of guests leaves in it what a fresh load makes."""

from __future__ import annotations

import pytest
from hypothesis import given

from support import nft_contract
from support.fake_nft import FakeNft, UnknownTextError
from support.nft_contract import CASES, Case
from unit.simulation import Event, Simulation, events
from virt_forward.config import Config
from virt_forward.ruleset import static, table


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_contract(case: Case) -> None:
    nft_contract.check(FakeNft(), case)


def test_contract_of_views() -> None:
    nft_contract.check_views(FakeNft())


@pytest.mark.parametrize("text", ["add rule inet filter x accept", "add element inet virt-forward any", "{"])
def test_unknown_text_fails_the_test(text: str) -> None:
    with pytest.raises(UnknownTextError):
        FakeNft().apply(text)


@given(events)
def test_changes_lead_to_what_a_fresh_load_makes(happenings: list[Event]) -> None:
    simulation, nft = Simulation(Config(uplinks=("enp1s0",))), FakeNft()
    for happening in happenings:
        nft.apply(simulation.commands(happening))
    whole = simulation.whole()
    if not whole.paragraphs:
        assert nft.table is None
        return
    assert nft.plain_listing() == nft.scratch_listing(table.text(whole))
    assert nft.revision() == whole.revision


@given(events)
def test_rebuild_leads_to_what_a_fresh_load_makes(happenings: list[Event]) -> None:
    simulation, nft = Simulation(), FakeNft()
    for happening in happenings:
        nft.apply(simulation.commands(happening))
    whole = simulation.whole()
    nft.flush_table()
    parts = nft.parts()
    if parts is None or not whole.paragraphs:
        return
    assert parts.others == set(static.containers())
    nft.apply(table.rebuild(whole, simulation.config, parts.chains))
    assert nft.plain_listing() == nft.scratch_listing(table.text(whole))
