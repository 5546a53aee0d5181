"""What a chain of libvirt's needs so that it admits our connections: read, decided, written down."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netns.libvirtnet import DATA
from support.state import in_memory
from unit.build import endpoint, forward, guest
from virt_forward.claims import index as claims
from virt_forward.config import Config
from virt_forward.effects import libvirt_accept
from virt_forward.effects.item import Change, Item, Search
from virt_forward.effects.libvirt_accept import iptables, nftables, plan
from virt_forward.effects.libvirt_accept.plan import Chain, Decision, Rule, Seen, Side
from virt_forward.errors import VirtForwardError
from virt_forward.host import libvirt_networks, log
from virt_forward.host.process import Result
from virt_forward.model import Endpoint, Guest, Network

OURS = '-A LIBVIRT_FWI -o virbr5 -m connlabel --label "100" -m comment --comment virt-forward -j ACCEPT'


def saved(name: str) -> str:
    return (DATA / name).read_text()


def chain(listing: str) -> list[tuple[str, bool, bool]]:
    return [(rule.bridge, rule.ours, rule.rejects) for rule in iptables.parse(listing)]


def test_libvirts_chain_of_iptables() -> None:
    assert chain(saved("9.0/iptables-save")) == [
        ("virbr8", False, True),
        ("virbr6", False, False),
        ("virbr6", False, True),
        ("virbr5", False, False),
        ("virbr5", False, True),
    ]
    assert [bridge for bridge, _, rejects in chain(saved("9.0/ip6tables-save")) if rejects] == [
        "virbr6",
        "virbr5",
    ]


def test_libvirts_chain_of_nft() -> None:
    """Rules of a bridge that is gone have its number, which is the name of none of ours."""
    rules = nftables.parse(saved("11.3/guest_input.json"))
    assert [(rule.bridge, rule.rejects) for rule in rules] == [
        ("virbr5", False),
        ("virbr5", True),
        ("virbr8", True),
        ("virbr6", False),
        ("virbr6", True),
        ("4", False),
        ("4", True),
    ]
    assert len({rule.handle for rule in rules}) == len(rules)
    assert [rule.bridge for rule in nftables.parse(saved("11.3/guest_input6.json")) if rule.rejects] == [
        "virbr6",
        "virbr5",
    ]


@pytest.mark.parametrize(
    ("line", "bridge", "ours", "rejects"),
    [
        (OURS, "virbr5", True, False),
        (
            "-A LIBVIRT_FWI -o a -m conntrack --ctstate DNAT -m comment --comment virt-forward -j ACCEPT",
            "a",
            True,
            False,
        ),
        ("-A LIBVIRT_FWI -o virbr5 -j DROP", "virbr5", False, True),
        ("-A LIBVIRT_FWI -o virbr5 -p tcp -j REJECT --reject-with tcp-reset", "virbr5", False, False),
        ("-A LIBVIRT_FWI -s 192.0.2.9/32 -o virbr5 -j DROP", "virbr5", False, False),
        ("-A LIBVIRT_FWI ! -o virbr5 -j DROP", "", False, False),
        ('-A LIBVIRT_FWI -m comment --comment "not virt-forward" -j ACCEPT', "", False, False),
        ('-A LIBVIRT_FWI -m comment --comment "virt-forward web" -j ACCEPT', "", True, False),
        ("-A LIBVIRT_FWI -o virbr5", "virbr5", False, False),
    ],
)
def test_rule_of_iptables(line: str, bridge: str, ours: bool, rejects: bool) -> None:
    assert chain(f"-N LIBVIRT_FWI\n-A LIBVIRT_FWX -j ACCEPT\n{line}\n") == [(bridge, ours, rejects)]


def test_rule_is_deleted_by_its_own_words() -> None:
    (rule,) = iptables.parse(OURS)
    assert rule.handle[:2] == ("-o", "virbr5")
    assert rule.handle[-2:] == ("-j", "ACCEPT")
    assert "100" in rule.handle


@pytest.mark.parametrize("line", ['-A LIBVIRT_FWI -m comment --comment "half', "-A LIBVIRT_FWI \\"])
def test_damaged_listing_of_iptables_is_an_error(line: str) -> None:
    with pytest.raises(VirtForwardError, match="chain LIBVIRT_FWI: its listing cannot be read"):
        iptables.parse(f"{OURS}\n{line}\n")


def test_rule_of_iptables_without_a_target_rejects_nothing() -> None:
    assert chain("-A LIBVIRT_FWI -o virbr5 -j") == [("virbr5", False, False)]


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "[]",
            "{}",
            '{"nftables": 1}',
            '{"nftables": [1]}',
            '{"nftables": [{"rule": {}}]}',
            "[" * 100000,
        ),
        '{"nftables": [{"rule": {"handle": 7, "expr": [{"match": {}}]}}]}',
        '{"nftables": [{"rule": {"handle": 7, "expr": [1]}}]}',
        '{"nftables": [{"rule": 7}]}',
    ],
    ids=lambda text: text[:70],
)
def test_damaged_listing_of_nft_is_an_error(text: str) -> None:
    with pytest.raises(
        VirtForwardError, match="chain libvirt_network guest_input: its listing cannot be read"
    ):
        nftables.parse(text)


def nft_rule(*expressions: dict[str, object], comment: str = "") -> Rule:
    rule: dict[str, object] = {"handle": 7, "expr": list(expressions)}
    if comment:
        rule["comment"] = comment
    (found,) = nftables.parse(json.dumps({"nftables": [{"metainfo": {}}, {"rule": rule}]}))
    return found


def match(key: str, value: object, op: str = "==") -> dict[str, object]:
    return {"match": {"op": op, "left": {"meta": {"key": key}}, "right": value}}


def test_rule_of_nft() -> None:
    assert nft_rule(match("oifname", "virbr5"), {"drop": None}) == Rule(("7",), "virbr5", rejects=True)
    assert nft_rule(match("oif", "virbr5"), {"accept": None}, comment="virt-forward").ours
    assert not nft_rule(match("oif", "virbr5"), match("iif", "lo"), {"reject": None}).rejects
    assert nft_rule(match("oif", "virbr5", "!="), {"reject": None}) == Rule(("7",), "")
    assert not nft_rule({"reject": None}).rejects
    assert not nft_rule(match("oif", "virbr5"), {"limit": {"rate": 1}}, {"reject": None}).rejects


def theirs(bridge: str) -> Rule:
    return Rule((f"reject {bridge}",), bridge, rejects=True)


def ours(bridge: str, number: int = 1) -> Rule:
    return Rule((f"ours {bridge} {number}",), bridge, ours=True)


OTHER = Rule(("other",), "a")


def seen(rules: Iterable[Rule], bridges: Iterable[str]) -> Seen:
    return Seen(frozenset(Side("ip", bridge) for bridge in bridges), (Chain("nftables", "ip", tuple(rules)),))


def item(bridge: str, chain: str = "nftables ip") -> Item:
    return Item("libvirt_accept", bridge, chain)


def decide(rules: list[Rule], bridges: Iterable[str]) -> tuple[set[str], Decision, Decision]:
    """Return what is desired, and what that removes from the chain and places in it."""
    facts = seen(rules, bridges)
    desired = plan.desired(Change(Config()), facts)
    stale = frozenset(one.dev for one in plan.recognized(facts) - desired)
    missing = frozenset(one.dev for one in desired if plan.present(one, facts) is False)
    return {one.dev for one in desired}, plan.removing(rules, stale), plan.placing(rules, missing)


@pytest.mark.parametrize(
    ("rules", "bridges", "desired", "removed", "placed"),
    [
        ([], "a", "", [], Decision()),
        ([theirs("a")], "", "", [], Decision()),
        ([theirs("a")], "a", "a", [], Decision((), ("a",))),
        ([theirs("b")], "a", "", [], Decision()),
        ([ours("a"), theirs("a")], "a", "a", [], Decision()),
        ([OTHER, ours("a"), OTHER, theirs("a")], "a", "a", [], Decision()),
        ([theirs("a"), ours("a")], "a", "a", [], Decision((("ours a 1",),), ("a",))),
        (
            [ours("a"), ours("a", 2), theirs("a"), ours("a", 3)],
            "a",
            "a",
            [],
            Decision((("ours a 1",), ("ours a 2",), ("ours a 3",)), ("a",)),
        ),
        ([ours("a"), theirs("a")], "", "", [("ours a 1",)], Decision()),
        ([ours("a")], "a", "", [("ours a 1",)], Decision()),
        ([theirs("a"), theirs("b")], "ab", "ab", [], Decision((), ("a", "b"))),
    ],
)
def test_rules_of_the_chain_are_decided(
    rules: list[Rule], bridges: str, desired: str, removed: list[tuple[str, ...]], placed: Decision
) -> None:
    assert decide(rules, bridges) == (set(desired), Decision(tuple(removed)), placed)


def carried_out(rules: list[Rule], decision: Decision) -> list[Rule]:
    """As iptables does it: what is deleted is the first rule with the same words."""
    kept = list(rules)
    for handle in decision.remove:
        kept.remove(next(rule for rule in kept if rule.handle == handle))
    return [ours(bridge) for bridge in reversed(decision.insert)] + kept


RULES = st.lists(
    st.builds(
        lambda bridge, kind, number: {"ours": ours(bridge, number), "theirs": theirs(bridge)}.get(
            kind, Rule(("other", bridge), bridge)
        ),
        st.sampled_from("abc"),
        st.sampled_from(["ours", "theirs", "other"]),
        st.integers(1, 2),
    ),
    max_size=12,
)


@given(RULES, st.frozensets(st.sampled_from("abcd")))
def test_any_chain_admits_what_it_should_and_nothing_else(rules: list[Rule], bridges: frozenset[str]) -> None:
    _, removed, placed = decide(rules, bridges)
    after = carried_out(carried_out(rules, removed), placed)
    for bridge in "abcd":
        mine = [place for place, rule in enumerate(after) if rule.ours and rule.bridge == bridge]
        rejecting = [place for place, rule in enumerate(after) if rule.rejects and rule.bridge == bridge]
        assert len(mine) == (1 if bridge in bridges and rejecting else 0)
        assert not mine or mine[0] < rejecting[0]
    assert [rule for rule in after if not rule.ours] == [rule for rule in rules if not rule.ours]
    assert decide(after, bridges)[1:] == (Decision(), Decision())


def test_rule_goes_to_the_first_chain_that_rejects() -> None:
    chains = (Chain("nftables", "ip", (theirs("a"),)), Chain("iptables", "ip", (theirs("a"), theirs("b"))))
    facts = Seen(frozenset({Side("ip", "a"), Side("ip", "b")}), chains)
    assert plan.desired(Change(Config()), facts) == {item("a"), item("b", "iptables ip")}


def test_chain_that_was_not_read_is_left_as_recorded() -> None:
    recorded = frozenset({item("a"), item("b", "iptables ip6")})
    facts = seen([theirs("a")], "")
    assert plan.desired(Change(Config(), recorded=recorded), facts) == {item("b", "iptables ip6")}
    assert plan.present(item("b", "iptables ip6"), facts) is True
    assert libvirt_accept.unset_items(recorded, facts) == {item("b", "iptables ip6")}


def index_of(*guests: Guest) -> claims.Index:
    return tuple(row for item in guests for row in claims.rows(item))


class Programs:
    """nft and iptables that print chains, and what was asked of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.asked: list[str] = []
        self.failing = ""
        monkeypatch.setattr(libvirt_networks, "DIRECTORY", str(folder))
        monkeypatch.setattr(nftables, "run", self.run)
        monkeypatch.setattr(iptables, "run", self.run)

    def run(self, argv: list[str], **_: object) -> Result:
        program = "nft" if argv[0] == "nft" else argv[0]
        family = argv[4] if program == "nft" else {"iptables": "ip", "ip6tables": "ip6"}[program]
        self.asked.append(f"{'nft' if program == 'nft' else 'iptables'} {family}")
        if self.asked[-1] == self.failing:
            return Result(4, "", "broken")
        if program == "nft":
            return Result(
                0, saved("11.3/guest_input.json" if family == "ip" else "11.3/guest_input6.json"), ""
            )
        return Result(1, "", "iptables: No chain/target/match by that name.")


HOUSE = Network("house", "b050cff1-fa60-5f65-9917-9b6840246df0", "virbr5", "nat")
ALONE = HOUSE._replace(uuid="b050cff1-fa60-5f65-9917-9b6840246df1", mode="")
V4, V6 = endpoint("198.51.100.5", "virbr5"), endpoint("2001:db8::5", "virbr5")
ELSEWHERE = endpoint("198.51.100.5", "virbr0")
NOWHERE = endpoint("198.51.100.5", "virbr7")


@pytest.mark.parametrize(
    ("networks", "endpoints", "recorded", "search", "asked"),
    [
        ([], [V4], [], "recorded", []),
        ([HOUSE], [ELSEWHERE], [], "recorded", []),
        ([HOUSE], [], [], "recorded", []),
        ([ALONE], [V4], [], "known", []),
        ([HOUSE], [V4], [], "recorded", ["nft ip"]),
        ([HOUSE], [V4, V6], [], "recorded", ["nft ip", "nft ip6"]),
        ([HOUSE._replace(bridge="virbr7")], [NOWHERE], [], "recorded", ["nft ip", "iptables ip"]),
        ([HOUSE], [], ["nftables ip6"], "recorded", ["nft ip6"]),
        ([], [], ["iptables ip"], "recorded", ["iptables ip"]),
        ([HOUSE], [], [], "known", ["nft ip", "iptables ip", "nft ip6", "iptables ip6"]),
        ([], [], [], "all", ["nft ip", "iptables ip", "nft ip6", "iptables ip6"]),
    ],
)
def test_chains_are_looked_into_only_where_there_is_a_reason(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    networks: list[Network],
    endpoints: list[Endpoint],
    recorded: list[str],
    search: Search,
    asked: list[str],
) -> None:
    programs = Programs(monkeypatch, tmp_path)
    state = in_memory(guest("web", forward(8080), endpoints=endpoints))
    (tmp_path / "networks").mkdir()
    for network in networks:
        state.put_networks({network.uuid: network})
    ours = frozenset(item("virbr5", chain) for chain in recorded)
    libvirt_accept.observe(state, Change.of(state, Config(), search=search, recorded=ours))
    assert programs.asked == asked


def test_chain_that_cannot_be_read_does_not_hide_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = Programs(monkeypatch, tmp_path)
    programs.failing = "iptables ip"
    messages: list[str] = []
    monkeypatch.setattr(log, "error", messages.append)
    seen = libvirt_accept.observe(in_memory(), Change(Config(), search="all"))
    assert [chain.name for chain in seen.chains] == ["nftables ip", "nftables ip6", "iptables ip6"]
    assert messages == [f"iptables, chain LIBVIRT_FWI: broken; {libvirt_accept.OTHERWISE}"]


def test_sides_are_those_of_guests_that_can_be_reached() -> None:
    web = guest(
        "web",
        forward(8080),
        endpoints=(endpoint("198.51.100.5", "virbr5"), endpoint("2001:db8::5", "virbr5")),
    )

    def sides(of: Guest) -> frozenset[Side]:
        return plan.sides(Change.of(in_memory(of), Config()))

    assert sides(web) == {Side("ip", "virbr5"), Side("ip6", "virbr5")}
    for other in (
        web._replace(phase="prepared"),
        web._replace(forwards=()),
        web._replace(endpoints=()),
        web._replace(forwards=(), conflicts=((forward(8080), "taken"),)),
    ):
        assert sides(other) == frozenset()


@pytest.mark.parametrize(
    ("mode", "rejects"), [("nat", True), ("route", True), ("open", False), ("", False), ("bridge", False)]
)
def test_networks_that_reject_are_asked_to_admit(mode: str, rejects: bool) -> None:
    here, elsewhere = Side("ip", "virbr5"), Side("ip", "virbr0")
    network = Network("house", "b050cff1-fa60-5f65-9917-9b6840246df0", "virbr5", mode)
    assert plan.wanted([here, elsewhere], [network]) == ({here} if rejects else set())


@pytest.mark.parametrize(
    ("line", "changed"),
    [
        ("delete rule ip filter LIBVIRT_FWI handle 2", True),
        ('add rule ip filter LIBVIRT_FWI oifname "virbr5" counter packets 0 bytes 0 reject', True),
        ('insert rule ip6 libvirt_network guest_input oif "virbr5" counter packets 0 bytes 0 reject', True),
        ("add rule ip filter LIBVIRT_FWO iifname virbr5 counter packets 0 bytes 0 reject", False),
        ("add element inet virt-forward revision { 0x2a }", False),
        ("add rule inet mine forward tcp dport 22 accept", False),
    ],
)
def test_rebuild_of_libvirts_chain_is_recognized(line: str, changed: bool) -> None:
    assert plan.chain_changed(f"# new generation 7 by process 9 (nft)\n{line}\n".encode()) == changed
