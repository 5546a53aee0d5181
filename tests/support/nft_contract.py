"""What our commands rely on from nft, as cases that the real one and the fake have to pass alike."""

from __future__ import annotations

import re
from typing import NamedTuple, Protocol

from support.fake_table import BUSY, EXIST, NOENT
from virt_forward.config import Config
from virt_forward.errors import NftError
from virt_forward.host.nft import Parts
from virt_forward.names import TABLE
from virt_forward.ruleset import maps, static


class Nft(Protocol):
    """What virt_forward.host.nft offers."""

    def apply(self, commands: str) -> None: ...
    def delete_table(self) -> None: ...
    def parts(self) -> Parts | None: ...
    def revision(self) -> int | None: ...
    def dispatches(self) -> bool: ...
    def listing(self) -> list[dict[str, object]] | None: ...
    def plain_listing(self) -> str | None: ...


class Seen(NamedTuple):
    """What both can show: how many rules each chain has, and how many elements each map and set."""

    rules: dict[str, int]
    elements: dict[str, int]


def seen(nft: Nft) -> Seen | None:
    items = nft.listing()
    if items is None:
        return None
    found = Seen({}, {})
    for kind, item in (pair for entry in items for pair in entry.items()):
        assert isinstance(item, dict)
        if kind == "chain":
            found.rules.setdefault(item["name"], 0)
        elif kind == "rule":
            found.rules[item["chain"]] = found.rules.get(item["chain"], 0) + 1
        elif kind in ("map", "set"):
            found.elements[item["name"]] = len(item.get("elem", ()))
    return found


def refusal(nft: Nft, commands: str) -> str:
    """Apply commands, and return nft's words where it refuses them; nothing where it does not."""
    try:
        nft.apply(commands)
    except NftError as error:
        return str(error)
    return ""


def block(*lines: str) -> str:
    return "\n".join([f"table {TABLE} {{", *(f"\t{line}" for line in lines), "}"]) + "\n"


def chain(name: str, *rules: str) -> str:
    return block(f"chain {name} {{", *(f"\t{rule}" for rule in rules), "}")


def added(name: str, *rules: str) -> str:
    return "\n".join([f"add chain {TABLE} {name} {{", *(f"\t{rule}" for rule in rules), "}"]) + "\n"


def add(name: str, *elements: str) -> str:
    return f"add element {TABLE} {name} {{ {', '.join(elements)} }}\n"


def delete(name: str, *keys: str) -> str:
    return f"delete element {TABLE} {name} {{ {', '.join(keys)} }}\n"


START = (
    f"add table {TABLE}\ndelete table {TABLE}\n"
    + static.render(Config())
    + "\n"
    + static.render_rules(Config())
    + "\n"
    + chain("guest-a", "tcp dport 80 counter dnat ip to 10.10.0.200:80")
    + chain("guest-b", "tcp dport 80 counter dnat ip to 10.10.0.201:80")
    + add("ports", "tcp . 80 : jump guest-a")
    + add("gateway4", "10.10.0.1")
    + chain("prerouting", maps.ANY.ports.lookup())
    + chain("forward", "goto ours")
    + add("range", "1000-2000 . tcp : jump guest-a")
    + add("revision", "7")
)
"""A table like ours, with two guests, of which one is referred to."""


class Case(NamedTuple):
    """Commands that nft refuses in words that match a pattern; without one, it takes them.

    The counts become these then. nft 1.0.6 and 1.1.3 do not always say the same.
    ``rules`` and ``elements`` are what differs from START; None for what is not in the table.
    """

    name: str
    commands: str
    refused: str = ""
    rules: dict[str, int | None] = {}  # noqa: RUF012 - nobody changes it
    elements: dict[str, int | None] = {}  # noqa: RUF012


CASES = (
    Case("same_element_twice", add("ports", "tcp . 80 : jump guest-a")),
    Case("map_key_taken", add("ports", "tcp . 80 : jump guest-b"), EXIST),
    Case("element_added", add("ports", "tcp . 81 : jump guest-b"), elements={"ports": 2}),
    Case("element_to_missing_chain", add("ports", "tcp . 81 : jump guest-c"), NOENT),
    Case("element_of_missing_map", add("nix", "tcp . 81 : jump guest-a"), NOENT),
    Case("missing_element_deleted", delete("ports", "tcp . 81"), NOENT),
    Case("element_deleted", delete("ports", "tcp . 80"), elements={"ports": 0}),
    Case("same_interval_twice", add("range", "1000-2000 . tcp : jump guest-a")),
    Case("interval_inside_another", add("range", "1000-1500 . tcp : jump guest-a"), EXIST),
    Case("range_overlaps", add("range", "1500-2500 . tcp : jump guest-b"), EXIST),
    Case("range_of_another_protocol", add("range", "1500-2500 . udp : jump guest-b"), elements={"range": 2}),
    Case("chain_of_element_deleted", f"delete chain {TABLE} guest-a\n", BUSY),
    Case("chain_of_rule_deleted", f"delete chain {TABLE} ours\n", BUSY),
    Case("map_of_rule_deleted", f"delete map {TABLE} ports\n", BUSY),
    Case("unused_chain_deleted_with_its_rules", f"delete chain {TABLE} guest-b\n", rules={"guest-b": None}),
    Case(
        "chain_deleted_after_its_elements",
        delete("ports", "tcp . 80") + delete("range", "1000-2000 . tcp") + f"delete chain {TABLE} guest-a\n",
        rules={"guest-a": None},
        elements={"ports": 0, "range": 0},
    ),
    Case(
        "chain_deleted_before_its_elements",
        f"delete chain {TABLE} guest-a\n" + delete("ports", "tcp . 80") + delete("range", "1000-2000 . tcp"),
        BUSY,
    ),
    Case(
        "chain_deleted_after_flushed_maps",
        f"flush map {TABLE} ports\nflush map {TABLE} range\ndelete chain {TABLE} guest-a\n",
        rules={"guest-a": None},
        elements={"ports": 0, "range": 0},
    ),
    Case("missing_chain_deleted", f"delete chain {TABLE} guest-c\n", NOENT),
    Case("missing_chain_flushed", f"flush chain {TABLE} guest-c\n", NOENT),
    Case("chain_flushed", f"flush chain {TABLE} guest-a\n", rules={"guest-a": 0}),
    Case("set_flushed", f"flush set {TABLE} gateway4\n", elements={"gateway4": 0}),
    Case("chain_block_again_adds_rules", chain("guest-b", "tcp dport 81 drop"), rules={"guest-b": 2}),
    Case("chain_added_with_rules", added("guest-c", "jump guest-a", "accept"), rules={"guest-c": 2}),
    Case("chain_added_again_adds_rules", added("guest-b", "tcp dport 81 drop"), rules={"guest-b": 2}),
    Case("chain_added_with_rule_to_missing_chain", added("guest-c", "jump guest-d"), NOENT),
    Case("rule_to_missing_chain", chain("guest-c", "jump guest-d"), NOENT),
    Case("rule_with_missing_map", chain("guest-c", "tcp dport vmap @nix"), NOENT),
    Case(
        "rule_to_chain_declared_later_in_the_block",
        block("chain guest-c {", "\tjump guest-d", "}", "chain guest-d {", "\taccept", "}"),
        rules={"guest-c": 1, "guest-d": 1},
    ),
    Case("rule_to_chain_of_a_later_block", chain("guest-c", "jump guest-d") + chain("guest-d"), NOENT),
    Case("map_declared_again", block("map ports { type inet_proto . inet_service : verdict; }")),
    Case(
        "set_declared_with_other_flags",
        block("set revision { type mark; flags interval; }"),
        f"{EXIST}|existing set lacks",
    ),
    Case(
        "base_chain_declared_with_another_priority",
        block("chain forward { type filter hook forward priority filter - 6; policy accept; }"),
        "Operation not supported|already exists .* with different declaration",
    ),
    Case("last_command_refused", add("revision", "8") + delete("revision", "9"), NOENT),
    Case("revision_replaced", delete("revision", "7") + add("revision", "8")),
    Case("other_revision_expected", delete("revision", "6") + add("revision", "8"), NOENT),
)


def check(nft: Nft, case: Case) -> None:
    """Apply a case to a fresh table, and compare what nft says and what the table is then."""
    nft.apply(START)
    before = seen(nft)
    assert before is not None
    said = refusal(nft, case.commands)
    if case.refused:
        assert re.search(case.refused, said)
        assert seen(nft) == before
        assert nft.revision() == 7
    else:
        assert said == ""
        assert seen(nft) == Seen(_updated(before.rules, case.rules), _updated(before.elements, case.elements))


def _updated(counts: dict[str, int], changes: dict[str, int | None]) -> dict[str, int]:
    return {name: count for name, count in {**counts, **changes}.items() if count is not None}


def check_views(nft: Nft) -> None:
    """Compare what the functions say of no table, of one that is whole, and of one without its rules."""
    nft.delete_table()
    nft.delete_table()
    assert (nft.parts(), nft.revision(), nft.listing(), nft.plain_listing()) == (None,) * 4
    assert not nft.dispatches()
    assert NOENT in refusal(nft, add("revision", "8"))
    assert NOENT in refusal(nft, f"delete table {TABLE}\n")
    nft.apply(f"add table {TABLE}\n")
    assert nft.parts() == Parts(frozenset(), frozenset())
    nft.apply(START)
    assert nft.parts() == Parts(
        frozenset(static.base_chains(Config())) | {"guest-a", "guest-b"}, frozenset(static.containers())
    )
    assert nft.revision() == 7
    assert nft.dispatches()
    nft.apply(f"flush table {TABLE}\n")
    assert not nft.dispatches()
    assert nft.revision() == 7
    found = seen(nft)
    assert found is not None
    assert set(found.rules.values()) == {0}
    assert found.elements["ports"] == 1
