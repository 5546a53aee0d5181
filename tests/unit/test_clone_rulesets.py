"""The ruleset of a host as the clone loads it, from listings of nft 1.0.6 and 1.1.3."""

from pathlib import Path

import pytest

from virt_forward.check import rules
from virt_forward.check.clone import host_state, tables
from virt_forward.check.clone.host_state import HostState
from virt_forward.check.rules import Rule

SAVED = Path(__file__).parent / "rulesets"
VERSIONS = ("1.0.6", "1.1.3")
IPTABLES = frozenset({("ip", "filter"), ("ip", "nat")})


def host(version: str) -> HostState:
    saved = (SAVED / f"{version}.save").read_text()
    return HostState(
        ruleset=(SAVED / f"{version}.nft").read_text(),
        managed=IPTABLES,
        xtables=tuple(host_state.split_saved(saved, "ip", "iptables-nft-restore")),
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_listing_is_parsed(version: str) -> None:
    found = {table.key: table for table in rules.parse(host(version).ruleset)}
    assert [*found] == [
        *(("inet", "filter"), ("inet", "nat"), ("ip6", "raw"), ("netdev", "edge")),
        *(("ip", "filter"), ("ip", "nat")),
    ]
    forward = found["inet", "filter"].chains["forward"]
    assert (forward.hook, forward.type, forward.priority, forward.policy) == (
        "forward",
        "filter",
        "filter",
        "drop",
    )
    assert forward.rules[1] == Rule(6, 'ip saddr @blocked counter drop comment "blocked"')
    assert [rule.handle for rule in forward.rules] == [5, 6, 8, 9]
    assert found["inet", "nat"].chains["prerouting"].priority == "dstnat - 1"
    ingress = found["netdev", "edge"].chains["in"]
    assert (ingress.hook, ingress.rules) == ("ingress", (Rule(2, "tcp dport 25 drop"),))
    assert found["inet", "filter"].chains["guests"].hook == ""


@pytest.mark.parametrize("version", VERSIONS)
def test_tables_of_iptables_are_known(version: str) -> None:
    found = rules.parse(host(version).ruleset)
    assert {table.key for table in found if table.uses_xtables} == {("ip", "filter")}
    assert {table.key for table in found if table.is_iptables} == IPTABLES
    assert {table.key for table in found if table.is_limited} == {("inet", "filter")}


@pytest.mark.parametrize("version", VERSIONS)
def test_extensions_of_iptables_are_restored_by_its_own_program_in_the_order_of_tables(version: str) -> None:
    found = tables.segments(host(version))
    assert [segment.argv for segment in found] == [tables.NFT, ("iptables-nft-restore",), tables.NFT]
    assert [len(segment.tables) for segment in found] == [4, 1, 1]
    assert "xt match" not in found[0].text
    assert '-A FORWARD -p tcp -m tcp --dport 80 -m string --string "foo" --algo bm -j DROP\n' in found[1].text
    assert found[1].text.startswith("*filter\n")
    assert found[1].text.endswith("COMMIT\n")
    assert "chain PREROUTING {" in found[2].text


def test_each_table_of_a_segment_can_be_loaded_alone() -> None:
    state = host("1.0.6")
    single = tables.alone(tables.segments(state)[0], state)
    assert [segment.tables for segment in single] == [
        (key,) for key in (("inet", "filter"), ("inet", "nat"), ("ip6", "raw"), ("netdev", "edge"))
    ]
    assert "".join(segment.text for segment in single) == tables.segments(state)[0].text


def test_rules_of_a_saved_chain_are_in_the_order_of_the_listing() -> None:
    """A traced rule is known by its position: nft's handle does not tell the words of iptables."""
    state = host("1.1.3")
    (listed,) = [table for table in rules.parse(state.ruleset) if table.key == ("ip", "filter")]
    for name, chain in listed.chains.items():
        assert len(host_state.saved_rules(state.xtables[0], name)) == len(chain.rules)
    assert host_state.saved_rules(state.xtables[0], "DOCKER-USER")[1] == "-A DOCKER-USER -j RETURN"


OWNED = """\
table inet firewalld { # progname firewalld handle 3
	flags owner,persist

	flowtable fast {
		hook ingress priority filter
		devices = { "enp1s0" }
		flags offload
		counter
	}

	set wan {
		type ipv4_addr
		flags interval
	}

	chain filter_FORWARD {
		type filter hook forward priority filter + 10; policy accept;
		ip protocol tcp counter packets 17 bytes 4223 flow add @fast # handle 9
	}
}
table ip sleeping {
	flags dormant
}
"""


def test_text_is_freed_of_its_process_and_of_hardware() -> None:
    firewalld, sleeping = rules.parse(OWNED)
    text = tables.loadable(firewalld)
    assert "owner" not in text
    assert "persist" not in text
    assert "offload" not in text
    assert "\t\tflags interval\n" in text
    assert "counter flow add @fast" in text
    assert "\tflags dormant\n" in tables.loadable(sleeping)


def test_warnings_of_nft_name_the_tables_of_iptables() -> None:
    warnings = "# Warning: table ip filter is managed by iptables-nft, do not touch!\nother\n"
    assert host_state.managed_tables(warnings) == {("ip", "filter")}


def test_tracer_has_a_table_for_each_family_that_the_host_has() -> None:
    assert "table inet" in tables.tracer(frozenset(), ["enp1s0"])
    assert "bridge" not in tables.tracer(frozenset({"inet"}), ["enp1s0"])
    text = tables.tracer(frozenset({"bridge", "netdev"}), ["enp1s0", "vnet0"])
    assert "table bridge" in text
    assert 'hook ingress device "vnet0"' in text
