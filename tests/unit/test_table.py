"""The table as text, and changes of it against the table rendered as a whole."""

from __future__ import annotations

import re
from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.fake_nft import FakeNft
from unit import strategies as make
from unit.build import endpoint, forward, guest, uuid_of
from unit.simulation import Event, Simulation, events, owners, parts, transaction
from virt_forward.claims import index as claims
from virt_forward.config import Config
from virt_forward.model import Guest
from virt_forward.names import TABLE
from virt_forward.ruleset import static, table
from virt_forward.ruleset.block import Block, Chain, Element, add, remove

configs = st.builds(
    Config,
    uplinks=st.sampled_from(((), ("enp1s0", "wlan0"))),
    localhost=st.booleans(),
    hairpin=st.booleans(),
)


@given(events, configs)
def test_include_file_is_header_and_paragraphs(happenings: list[Event], config: Config) -> None:
    simulation = Simulation(config)
    for happening in happenings:
        simulation.change(happening)
    include = simulation.include
    assert not include.paragraphs or parts(table.text(include), include.revision) == include


@settings(max_examples=150)
@given(events)
def test_changes_in_any_order_give_the_table_rendered_as_a_whole(happenings: list[Event]) -> None:
    simulation = Simulation()
    for happening in happenings:
        simulation.change(happening)
        assert simulation.include == simulation.whole()


@given(events)
def test_include_file_defines_chains_before_references(happenings: list[Event]) -> None:
    simulation = Simulation()
    for happening in happenings:
        simulation.change(happening)
        for include in (simulation.include, simulation.whole()):
            assert_in_order("\n\n".join(include.paragraphs))


def assert_in_order(text: str) -> None:
    known = set(static.base_chains(Config()))
    for line in text.splitlines():
        known |= set(re.findall(rf"^add chain {TABLE} (\S+) \{{", line))
        referred = set(re.findall(r"\b(?:jump|goto) ([\w.-]+)", line))
        assert referred <= known, line


@given(events, make.guests(9))
def test_repeated_event_changes_nothing(happenings: list[Event], item: Guest) -> None:
    simulation = Simulation()
    for happening in [*happenings, Event(9, item)]:
        simulation.change(happening)
    before = owners(simulation.include)
    assert simulation.change(Event(9, item)).same()
    assert owners(simulation.include) == before


@given(events, make.guests(9))
def test_start_and_stop_restore_the_table(happenings: list[Event], item: Guest) -> None:
    simulation = Simulation()
    for happening in happenings:
        simulation.change(happening)
    before = owners(simulation.include)
    simulation.change(Event(9, item))
    simulation.change(Event(9, None))
    assert owners(simulation.include) == before


@given(events)
def test_change_of_a_guest_leaves_the_blocks_of_others(happenings: list[Event]) -> None:
    simulation = Simulation()
    for happening in happenings:
        before = owners(simulation.include)
        simulation.change(happening)
        after = owners(simulation.include)
        changed = {key for key in {*before, *after} if before.get(key) != after.get(key)}
        mine = {f"# guest {uuid_of(str(happening.number + 2))}"}
        assert {key for key in changed if key.startswith("# guest ")} <= mine


@given(events)
def test_transaction_deletes_no_chain_that_is_referred_to(happenings: list[Event]) -> None:
    simulation = Simulation()
    for happening in happenings:
        include = simulation.include
        commands = transaction(include, simulation.change(happening))
        deleted = set(re.findall(r"^delete chain inet virt-forward (\S+)$", commands, re.MULTILINE))
        referred = set(re.findall(r"\b(?:jump|goto) ([\w.-]+)", "\n".join(simulation.include.paragraphs)))
        assert not deleted & referred


@given(events)
def test_transaction_replaces_the_revision_first(happenings: list[Event]) -> None:
    simulation = Simulation()
    for happening in happenings:
        include = simulation.include
        first, second, *_ = transaction(include, simulation.change(happening)).splitlines()
        assert first == f"delete element inet virt-forward revision {{ {include.revision} }}"
        assert second == f"add element inet virt-forward revision {{ {simulation.include.revision} }}"
        assert simulation.include.revision == include.revision + 1


WEB = guest("web", forward(80))


def test_include_file_without_guests_deletes_the_table() -> None:
    empty = table.whole([WEB._replace(phase="prepared")], Config(), 7)
    text = table.text(empty)
    assert "delete table inet virt-forward" in text
    assert "chain" not in text


DB = guest("db", forward(81), endpoints=[endpoint("198.51.100.9")])
GOOD = table.text(table.whole([WEB], Config(), 3))
START = table.Change({}, table.blocks_of([DB], (), (), Config()))


def spliced(text: str, change: table.Change = START, config: Config | None = None) -> str | None:
    pieces = table.splice(text.encode(), 3, 4, change, config or Config())
    return None if pieces is None else b"".join(pieces).decode()


def test_splice_copies_the_paragraphs_of_others() -> None:
    found = spliced(GOOD)
    assert found is not None
    assert owners(parts(found, 4)) == {
        **owners(parts(GOOD, 3)),
        f"# guest {DB.uuid}": add(START.after[f"guest {DB.uuid}"]),
    }


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "garbage",
        GOOD.replace("revision { 3 }", "revision { x }"),
        GOOD.replace("revision { 3 }", "revision { 4 }"),
        table.text(table.whole([], Config(), 3)),
        GOOD.replace("srcnat - 5", "srcnat - 6"),
        GOOD.partition("\n")[2],
        GOOD[: len(GOOD) // 3],
    ],
)
def test_splice_rejects_another_file(text: str) -> None:
    assert spliced(text) is None


def test_splice_rejects_a_file_whose_paragraphs_are_in_another_order() -> None:
    include = table.whole([WEB, DB], Config(), 3)
    backwards = table.text(include._replace(paragraphs=include.paragraphs[::-1]))
    blocks = table.blocks_of([WEB, DB], (), (), Config())
    assert spliced(table.text(include), table.Change(blocks, {}))
    assert spliced(backwards, table.Change(blocks, {})) is None


class Watched(bytes):
    """Text that counts how often a paragraph is searched for in it."""

    searches = 0

    def rfind(self, *args: Any) -> int:
        self.searches += 1
        return super().rfind(*args)


@pytest.mark.parametrize("ports", [1, 64])
def test_splice_of_a_block_looks_at_few_of_many_paragraphs(ports: int) -> None:
    guests = [guest(f"g{n}", forward(1000 + n), endpoints=[endpoint(f"10.10.1.{n}")]) for n in range(200)]
    data = Watched(table.text(table.whole(guests, Config(), 3)).encode())
    new = guest("new", *(forward(port) for port in range(5000, 5000 + ports)))
    blocks = table.blocks_of([new], claims.rows(new), claims.rows(new), Config())
    change = table.Change({key: blocks[key] for key in ("lan virbr0", "lookups")}, blocks)
    assert len(change.added()) == 1 + ports
    assert table.splice(data, 3, 4, change, Config())
    assert 8 <= data.searches <= 10 * (ports + 1)  # of 400 paragraphs


def test_splice_rejects_a_file_with_a_block_that_is_unknown_or_without_one_that_is_known() -> None:
    blocks = table.blocks_of([WEB], (), (), Config())
    assert spliced(GOOD, table.Change({}, blocks)) is None
    assert spliced(GOOD, table.Change(START.after, {})) is None


@pytest.mark.parametrize("config", [Config(localhost=True), Config(uplinks=("enp1s0",))])
def test_splice_rejects_a_file_of_another_configuration(config: Config) -> None:
    assert spliced(GOOD, config=config) is None
    assert spliced(table.text(table.whole([WEB], config, 3))) is None


def test_splice_rejects_a_file_without_one_of_the_maps() -> None:
    """An older version's table has other maps: it is rebuilt."""
    include = table.whole([guest("web", forward(80))], Config(), 1)
    data, change = table.text(include).encode(), table.Change({}, {})
    assert table.splice(data, 1, 2, change, Config())
    for declaration in static.containers().values():
        older = data.replace(f"\t{declaration}\n".encode(), b"")
        assert older != data
        assert table.splice(older, 1, 2, change, Config()) is None


def test_ports_that_differ_at_the_guest_are_elements_of_shared_maps() -> None:
    guests = [guest(f"g{n}", forward(5000 + 10 * n, 5003 + 10 * n, to=80)) for n in range(50)]
    text = table.text(table.whole(guests, Config(), 1))
    assert " map { " not in text
    assert " dport { " not in text
    assert text.count("@to4\n") == 1


def test_slot_chain_has_the_most_specific_claim_first() -> None:
    shared = table.whole(
        [
            guest("a", forward(80, source="192.0.2.0/24"), endpoints=[endpoint("198.51.100.1")]),
            guest("b", forward(80, source="192.0.2.0/25"), endpoints=[endpoint("198.51.100.2")]),
            guest("c", forward(80, dev="enp1s0"), endpoints=[endpoint("198.51.100.3")]),
            guest("d", forward(80), endpoints=[endpoint("198.51.100.4")]),
        ],
        Config(),
        1,
    )
    (chain,) = [text for text in shared.paragraphs if text.startswith("# port tcp-80\n")]
    rules = re.findall(r"^\t(.*) jump guest-(.)-", chain, re.MULTILINE)
    assert rules == [
        ('iifname "enp1s0"', "c"),
        ("ip saddr 192.0.2.0/25", "b"),
        ("ip saddr 192.0.2.0/24", "a"),
    ]
    assert f"\tjump guest-d-{uuid_of('d')[:8]}\n}}" in chain


def test_port_of_one_guest_leads_straight_to_its_chain() -> None:
    """However narrowed the claims of that guest are; another guest's at another address changes that."""
    mine = guest("a", forward(80, dev="enp1s0"), forward(80, address="203.0.113.7"), forward(80))
    other = guest("b", forward(80, address="203.0.113.8"), endpoints=[endpoint("198.51.100.2")])
    alone, both = (table.whole(guests, Config(), 1).paragraphs for guests in ((mine,), (mine, other)))
    straight = f"add element inet virt-forward ports {{ tcp . 80 : jump guest-a-{uuid_of('a')[:8]} }}"
    assert f"# port tcp-80\n{straight}" in alone
    assert "add element inet virt-forward ports { tcp . 80 : jump port-tcp-80 }" in "\n".join(both)


def test_lookups_are_those_that_guests_need() -> None:
    """A map that has no element is not asked, and the rules change in the transaction that changes that."""
    simulation = Simulation()
    simulation.change(Event(0, WEB))
    assert lookups(simulation) == {"@ports"}
    both = (endpoint("198.51.100.9"), endpoint("2001:db8:10::9"))
    wide = guest("b", forward(1, 65535, address="203.0.113.7"), endpoints=both)
    commands = simulation.commands(Event(1, wide))
    assert "flush chain inet virt-forward prerouting\n" in commands
    assert lookups(simulation) == {"@ports", "@range4"}
    simulation.change(Event(1, wide._replace(forwards=(forward(1, 65535, address="2001:db8::7"),))))
    assert lookups(simulation) == {"@ports", "@range6"}
    simulation.change(Event(1, None))
    assert lookups(simulation) == {"@ports"}
    quiet = simulation.commands(Event(2, guest("c", forward(81), endpoints=[endpoint("198.51.100.8")])))
    assert "prerouting" not in quiet


def lookups(simulation: Simulation) -> set[str]:
    return set(re.findall(r"@\S+", owners(simulation.include)["# lookups"]))


def test_rebuild_keeps_base_chains_and_deletes_the_others() -> None:
    include = table.whole([WEB], Config(), 5)
    chains = [*static.base_chains(Config()), "guest-old-12345678"]
    commands = table.rebuild(include, Config(), chains)
    assert "delete table" not in commands
    assert "delete chain inet virt-forward guest-old-12345678" in commands
    assert commands.count("delete chain") == 1
    chains = [line for text in include.paragraphs for line in text.split("\n") if line.startswith("\t")]
    assert all(line in commands for line in chains)


def test_replacement_has_one_command_for_each_map() -> None:
    include = table.whole([WEB, DB], Config(), 5)
    commands = table.replacement(include)
    assert table.regrouped(table.text(include)) == commands
    assert table.text(include).count(f"add element {TABLE} ports ") > 1
    assert commands.count(f"add element {TABLE} ports ") == 1
    one, two = FakeNft(), FakeNft()
    one.apply(commands)
    two.apply(table.text(include))
    assert one.plain_listing() == two.plain_listing()


def test_remove_flushes_but_keeps_a_chain_that_is_added_again() -> None:
    block = Block(
        "x", (Chain("c", '"c"', ("accept",)), Chain("d", '"d"', ())), (Element("m", "1", "jump c"),)
    )
    after = [block._replace(chains=block.chains[:1])]
    assert remove([block], after) == [
        "delete element inet virt-forward m { 1 }",
        "flush chain inet virt-forward c",
        "flush chain inet virt-forward d",
        "delete chain inet virt-forward d",
    ]
    assert "add element inet virt-forward m { 1 : jump c }" in add(block)


def test_bridge_has_the_subnets_of_all_its_guests() -> None:
    inner, outer = ((ip_network(text), "virbr0") for text in ("198.51.100.0/25", "198.51.100.0/24"))
    simulation = Simulation()
    simulation.change(Event(0, WEB._replace(lans=(inner,))))
    other = guest("b", forward(81), endpoints=[endpoint("198.51.100.9")])._replace(lans=(outer,))
    simulation.change(Event(1, other))
    assert subnets(simulation) == ["198.51.100.0/24", "198.51.100.0/25"]
    simulation.change(Event(1, None))
    assert subnets(simulation) == ["198.51.100.0/25"]


def subnets(simulation: Simulation) -> list[str]:
    return re.findall(r"saddr (\S+) masquerade", owners(simulation.include)["# lan virbr0"])
