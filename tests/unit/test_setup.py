"""What ``init`` writes and prints: names, addresses and files from facts; whole plans as golden files."""

from __future__ import annotations

from ipaddress import IPv4Interface, IPv6Network, ip_address, ip_interface, ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.host import NFTABLES
from support.proc import REPO
from virt_forward.addresses import networkd
from virt_forward.errors import UsageError, VirtForwardError
from virt_forward.setup import chains, choose, options, rules
from virt_forward.setup.facts import Chain, LibvirtNetwork, Link, SetupFacts
from virt_forward.setup.options import Options, Plan
from virt_forward.setup.plan import plan

GOLDEN = Path(__file__).parent / "golden_init"
RANDOM = bytes(range(0x10, 0x20))
WIRED = "[Match]\nName=enp1s0\n\n[Link]\nMTUBytes=1400\n\n[Network]\nDHCP=yes\n\n[DHCPv4]\nUseDomains=yes\n"
ENP = Link(
    "enp1s0",
    "52:54:00:11:22:33",
    addresses=(ip_interface("192.168.1.5/24"),),
    gateways=(ip_address("192.168.1.1"),),
    dynamic=True,
    manager="systemd-networkd",
    network_file="/etc/systemd/network/20-wired.network",
)
WLAN = Link(
    "wlan0",
    "02:00:00:00:00:01",
    wifi=True,
    addresses=(ip_interface("192.168.7.9/24"),),
    gateways=(ip_address("192.168.7.1"),),
    dynamic=True,
    manager="NetworkManager",
)
CHAINS = (
    Chain("inet", "nat", "postrouting", "nat", "postrouting"),
    Chain(
        "inet", "filter", "input", "filter", "input", "drop", frozenset({"established", "related"}), ends=True
    ),
    Chain("inet", "filter", "forward", "filter", "forward", "drop"),
    Chain("inet", "filter", "output", "filter", "output"),
)
NETWORKD = SetupFacts(
    257,
    links=(ENP,),
    uplinks=("enp1s0",),
    routes=((ip_network("192.168.1.0/24"), "enp1s0"),),
    networks={"20-wired.network": WIRED},
    libvirt=(LibvirtNetwork("default", "virbr0", (ip_network("192.168.122.0/24"),)),),
    chains=CHAINS,
    random=RANDOM,
)
LAPTOP = NETWORKD._replace(
    networkd=False,
    links=(WLAN,),
    uplinks=("wlan0",),
    networks={},
    dns_follows=False,
    chains=(),
    routes=(),
    loaded_at_boot=False,
)
STATIC = ENP._replace(manager="ifupdown", network_file="", dynamic=False, kernel_ra=True)
IFUPDOWN = NETWORKD._replace(
    systemd=252,
    links=(STATIC,),
    networks={},
    networkd=False,
    dns_follows=False,
    nameservers=(ip_address("192.168.1.1"),),
    includes=True,
)
SOME = ip_network("10.10.0.128/25")
CASES = {
    "networkd-252": (Options(), NETWORKD._replace(systemd=252)),
    "networkd-257": (Options(), NETWORKD),
    "networkd-257-ipv4-only": (Options(ipv6=False), NETWORKD),
    "networkmanager-257": (Options(), LAPTOP),
    "networkmanager-252": (Options(), LAPTOP._replace(systemd=252)),
    "ifupdown-252": (Options(), IFUPDOWN),
    "ifupdown-257": (Options(), IFUPDOWN._replace(systemd=257)),
    "all-options": (
        Options(
            "vmbr5",
            "52:54:00:00:00:05",
            ip_interface("10.50.0.1/23"),  # type: ignore[arg-type]
            IPv6Network("fd50::/64"),
            ("enp1s0", "wwan0"),
            (ip_address("9.9.9.9"), ip_address("2620:fe::fe")),
        ),
        NETWORKD,
    ),
    "lan-networkd": (Options(lan="enp1s0", yes=True), NETWORKD),
    "lan-networkmanager": (Options(lan="enp1s0"), LAPTOP._replace(links=(WLAN, ENP._replace(
        manager="NetworkManager", network_file="")))),
    "lan-static": (Options(lan="enp1s0", yes=True), IFUPDOWN),
}  # fmt: skip


def written(planned: Plan) -> str:
    """Return a whole plan as text: what ``--dry-run`` prints, in the same order."""
    files = "".join(f"==> {file.path}\n{file.text}\n" for file in planned.files)
    commands = "".join(f"$ {' '.join(command)}\n" for command in planned.commands)
    return f"{files}{commands}\n{planned.ruleset}\n" + "".join(f"note: {note}\n" for note in planned.notes)


@pytest.mark.parametrize("name", CASES)
def test_plan_is_as_in_the_golden_file(name: str, pytestconfig: pytest.Config) -> None:
    path = GOLDEN / f"{name}.txt"
    text = written(plan(*CASES[name]))
    if pytestconfig.getoption("--update-golden"):
        path.write_text(text)
    assert path.exists(), f"{path} is missing: look at what --update-golden writes there"
    assert text == path.read_text()


def test_every_golden_file_has_its_case() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(CASES)


def refused(wanted: Options, facts: SetupFacts) -> str:
    with pytest.raises(VirtForwardError) as caught:
        plan(wanted, facts)
    return str(caught.value)


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        (NETWORKD, "vmbr0"),
        (NETWORKD._replace(links=(ENP, Link("vmbr0"))), "vmbr1"),
        (NETWORKD._replace(netdevs={"vmbr0": "/usr/lib/systemd/network/a.netdev"}), "vmbr1"),
        (NETWORKD._replace(libvirt=(LibvirtNetwork("lab", "vmbr0"),)), "vmbr1"),
    ],
)
def test_bridge_name_is_the_first_free_one(facts: SetupFacts, name: str) -> None:
    assert plan(Options(), facts).bridge == name


def test_bridge_name_of_a_libvirt_network_is_refused() -> None:
    message = 'the name virbr0 is taken: libvirt\'s network "default" makes a bridge of that name'
    assert refused(Options(bridge="virbr0"), NETWORKD) == message
    assert plan(Options(bridge="virbr0"), NETWORKD._replace(libvirt=())).bridge == "virbr0"


def test_second_run_names_the_bridge_that_is_set_up() -> None:
    path = "/etc/systemd/network/98-vmbr0.netdev"
    facts = NETWORKD._replace(netdevs={"vmbr0": path}, marked=("vmbr0",))
    assert refused(Options(), facts) == f"vmbr0 is set up already, by {path}"
    assert plan(Options(bridge="vmbr1"), facts).bridge == "vmbr1"


@pytest.mark.parametrize(
    ("facts", "chosen"),
    [
        (NETWORKD, "10.10.0.1/24"),
        (NETWORKD._replace(routes=((ip_network("10.10.0.0/24"), "tun0"),)), "10.10.1.1/24"),
        (NETWORKD._replace(routes=((ip_network("10.0.0.0/8"), "tun0"),)), "172.30.0.1/24"),
        (NETWORKD._replace(libvirt=(LibvirtNetwork("a", "b", (SOME,)),)), "10.10.1.1/24"),
        (NETWORKD._replace(networks={"a.network": "[Network]\nAddress=10.10.0.9/30\n"}), "10.10.1.1/24"),
        (NETWORKD._replace(links=(Link("a", addresses=(ip_interface("10.10.7.1/16"),)),)), "172.30.0.1/24"),
    ],
)  # fmt: skip
def test_subnet_is_the_first_that_nothing_uses(facts: SetupFacts, chosen: str) -> None:
    assert str(choose.subnet(Options(), facts)) == chosen


def test_given_network_that_overlaps_is_refused() -> None:
    subnet = Options(subnet=IPv4Interface("192.168.1.129/25"))
    assert refused(subnet, NETWORKD) == "--subnet 192.168.1.128/25: overlaps with 192.168.1.5/24 on enp1s0"
    facts = NETWORKD._replace(routes=((ip_network("fd00::/8"), "wg0"),))
    prefix = Options(ipv6=IPv6Network("fd10::/64"))
    assert refused(prefix, facts) == "--ipv6 fd10::/64: overlaps with the route to fd00::/8 by wg0"


@given(st.binary(min_size=16, max_size=16))
def test_random_addresses_are_local_ones(random: bytes) -> None:
    facts = NETWORKD._replace(random=random)
    prefix = choose.prefix(Options(), facts)
    assert prefix
    assert prefix.subnet_of(IPv6Network("fd00::/8"))
    assert prefix.prefixlen == 64
    first = int(choose.mac(Options(), facts)[:2], 16)
    assert first & 3 == 2, "a unicast address, locally administered"


@given(st.integers(8, 29), st.integers(0, 2**24))
def test_pool_is_inside_the_subnet(length: int, place: int) -> None:
    network = ip_network((0x0A000000 + place, length), strict=False)
    planned = plan(Options(subnet=IPv4Interface((network[1], length))), NETWORKD._replace(routes=()))
    sections = dict(networkd.parse_ini(planned.files[1].text))
    server = dict(sections["DHCPServer"])
    offset, size = int(server["PoolOffset"]), int(server["PoolSize"])
    assert offset > 1
    assert size >= 1
    assert network[offset + size - 1] != network.broadcast_address
    assert network[offset + size - 1] in network


def test_no_uplink_is_an_error_with_the_option() -> None:
    assert "no interface has a default route" in refused(Options(), NETWORKD._replace(uplinks=()))
    planned = plan(Options(uplinks=("wwan0",)), NETWORKD._replace(uplinks=()))
    assert 'oifname "wwan0" masquerade' in planned.ruleset


@pytest.mark.parametrize(
    ("others", "name"),
    [
        ({"50-lan.network": "[Match]\nName=*\n"}, "/etc/systemd/network/10-vmbr0.network"),
        ({"50-lan.network": "[Match]\nName=en*\n"}, "/etc/systemd/network/98-vmbr0.network"),
        ({"99-all.network": "[Match]\nType=bridge\n"}, "/etc/systemd/network/98-vmbr0.network"),
        ({"05-all.network": "[Match]\nType=bridge\n"}, "/etc/systemd/network/00-vmbr0.network"),
    ],
)
def test_network_file_comes_before_others_that_match_the_bridge(others: dict[str, str], name: str) -> None:
    assert plan(Options(), NETWORKD._replace(networks=others)).files[1].path == name


def test_network_file_that_no_name_can_precede_is_an_error() -> None:
    facts = NETWORKD._replace(networks={"00-a.network": "[Match]\nName=*\n"})
    assert "00-a.network matches vmbr0 as well" in refused(Options(), facts)


def test_drop_in_keeps_what_the_person_says_of_router_advertisements() -> None:
    facts = NETWORKD._replace(networks={"20-wired.network": f"{WIRED}[Network]\nIPv6AcceptRA=no\n"})
    drop_in = next(file for file in plan(Options(), facts).files if ".network.d/" in file.path)
    assert "IPv6AcceptRA" not in drop_in.text


@pytest.mark.parametrize(
    ("link", "says"),
    [
        (WLAN, "--lan wlan0: is a Wi-Fi interface, which cannot be in a bridge with guests"),
        (ENP._replace(master="br9"), "--lan enp1s0: is part of br9 already"),
        (ENP._replace(kind="bridge"), "--lan enp1s0: is no wired NIC"),
        (ENP._replace(ethernet=False), "--lan enp1s0: is no wired NIC"),
        (ENP, "--lan enp1s0: is this host's only way to the network"),
        (Link("eth9"), "--lan eth8: this host has no such interface"),
    ],
)
def test_lan_refuses_with_the_reason(link: Link, says: str) -> None:
    name = "eth8" if link.name == "eth9" else link.name
    assert refused(Options(lan=name), NETWORKD._replace(links=(link,))).startswith(says)


@pytest.mark.parametrize(
    "given", [Options(ipv6=False), Options(uplinks=("a",)), Options(dns=(ip_address("9.9.9.9"),))]
)
def test_lan_takes_no_options_of_the_other_layout(given: Options) -> None:
    with pytest.raises(UsageError, match="and --lan do not go together"):
        plan(given._replace(lan="enp1s0"), NETWORKD)


@pytest.mark.parametrize(
    ("read", "word"),
    [
        (options.bridge_name, "a/b"),
        (options.bridge_name, "0abc"),
        (options.bridge_name, "a-name-too-long-for-it"),
        (options.mac, "52:54:00"),
        (options.mac, "53:54:00:00:00:01"),
        (options.mac, "00:00:00:00:00:00"),
        (options.subnet, "10.10.0.1"),
        (options.subnet, "10.10.0.0/30"),
        (options.subnet, "10.10.0.255/24"),
        (options.subnet, "127.0.0.0/8"),
        (options.subnet, "fd10::/64"),
        (options.subnet, "0.0.0.0/0"),
        (options.subnet, "0.0.0.0/8"),
        (options.subnet, "169.0.0.0/8"),
        (options.subnet, "224.0.0.0/24"),
        (options.subnet, "240.0.0.0/24"),
        (options.subnet, "255.255.255.0/24"),
        (options.ipv6, "yes"),
        (options.ipv6, "fd10::/48"),
        (options.ipv6, "fe80::/64"),
        (options.ipv6, "ff02::/64"),
        (options.ipv6, "::1/64"),
        (options.ipv6, "::/64"),
        (options.ipv6, "10.10.0.0/24"),
        (options.nameserver, "dns.example"),
        (options.nameserver, "127.0.0.53"),
    ],
)
def test_wrong_values_are_usage_errors_that_name_the_value(read: object, word: str) -> None:
    with pytest.raises(UsageError, match="--") as caught:
        read(word)  # type: ignore[operator]
    assert word in str(caught.value)


def test_network_stands_for_its_first_address() -> None:
    assert str(options.subnet("10.20.0.0/16")) == "10.20.0.1/16"
    assert str(options.subnet("10.20.0.9/16")) == "10.20.0.9/16"


@pytest.mark.parametrize("word", ["fd10:10::/64", "2001:db8::/64", "3fff::1/64"])
def test_ipv6_network_is_global_or_local(word: str) -> None:
    assert options.ipv6(word) == IPv6Network(word, strict=False)


# As nft 1.0.6 lists support.host.NFTABLES and what Docker, ufw and iptables make.
def item(kind: str, family: str, table: str, **more: object) -> dict[str, object]:
    return {kind: {"family": family, "table": table, **more}}


def base(family: str, table: str, name: str, policy: str = "accept") -> dict[str, object]:
    return item("chain", family, table, name=name, type="filter", hook="forward", policy=policy)


def rule(family: str, table: str, chain: str, *statements: dict[str, object]) -> dict[str, object]:
    return item("rule", family, table, chain=chain, expr=[*statements])


STATES = {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["established", "related"]}}
ACCEPT: dict[str, object] = {"accept": None}
COUNTER: dict[str, object] = {"counter": {"packets": 0, "bytes": 0}}
TCP: dict[str, object] = {"match": {"op": "==", "left": {"meta": {"key": "l4proto"}}, "right": "tcp"}}
FORWARD = base("inet", "filter", "forward", policy="drop")
IPTABLES = base("ip", "filter", "FORWARD")


@pytest.mark.parametrize(
    ("statements", "accepted"),
    [
        ((STATES, ACCEPT), {"established", "related"}),
        ((STATES, COUNTER, ACCEPT), {"established", "related"}),
        ((TCP, STATES, ACCEPT), set()),
        ((STATES, {"drop": None}), set()),
        (({"match": {**STATES["match"], "right": "established"}}, ACCEPT), {"established"}),
        (({"match": {**STATES["match"], "op": "!="}}, ACCEPT), set()),
        (
            (
                {
                    "vmap": {
                        "key": {"ct": {"key": "state"}},
                        "data": {"set": [["established", ACCEPT], ["invalid", {"drop": None}]]},
                    }
                },
            ),
            {"established"},
        ),
    ],
)  # fmt: skip
def test_states_that_a_chain_accepts(statements: tuple[dict[str, object], ...], accepted: set[str]) -> None:
    found = chains.base_chains([FORWARD, rule("inet", "filter", "forward", *statements)])
    assert [chain.accepts for chain in found] == [accepted]


def ct_match(key: str, right: object) -> dict[str, object]:
    return {"match": {"op": "in", "left": {"ct": {"key": key}}, "right": right}}


@pytest.mark.parametrize(
    ("statements", "admits"),
    [
        ((ct_match("label", 100), ACCEPT), True),
        ((ct_match("label", 100), COUNTER, ACCEPT), True),
        ((ct_match("label", 10), ACCEPT), False),
        ((ct_match("label", 100), {"drop": None}), False),
        ((TCP, ct_match("label", 100), ACCEPT), False),
        ((ct_match("status", "dnat"), ACCEPT), True),
        ((ct_match("status", ["snat", "dnat"]), ACCEPT), True),
        ((ct_match("status", "snat"), ACCEPT), False),
    ],
)  # fmt: skip
def test_accept_of_forwarded_connections_is_not_printed_again(
    statements: tuple[dict[str, object], ...], admits: bool
) -> None:
    found = chains.base_chains([FORWARD, rule("inet", "filter", "forward", *statements)])
    assert [chain.admits for chain in found] == [admits]
    text = plan(Options(), NETWORKD._replace(chains=found)).ruleset
    assert ("ct label 100 accept" not in text) == admits
    assert 'iifname "vmbr0" ip saddr 10.10.0.0/24 oifname "enp1s0" accept' in text


def test_note_about_networkd_is_true_before_and_after_its_start() -> None:
    notes = " ".join(plan(Options(), LAPTOP).notes)
    assert "systemctl enable --now systemd-networkd" in notes
    assert "above" not in notes, "with --apply there is no command above"


def test_drop_in_a_chain_that_is_jumped_to_counts() -> None:
    open_chain = base("inet", "filter", "forward")
    jump = rule("inet", "filter", "forward", TCP, {"jump": {"target": "strangers"}})
    inner = item("chain", "inet", "filter", name="strangers")
    end = rule("inet", "filter", "strangers", COUNTER, {"reject": None})
    (found,) = chains.base_chains([open_chain, inner, jump, end])
    assert (found.drops, found.ends) == (True, False)


def test_last_rule_that_drops_all_is_seen() -> None:
    (found,) = chains.base_chains([FORWARD, rule("inet", "filter", "forward", COUNTER, {"drop": None})])
    assert (found.drops, found.ends) == (True, True)
    (found,) = chains.base_chains([FORWARD, rule("inet", "filter", "forward", TCP, {"drop": None})])
    assert (found.drops, found.ends) == (True, False)


@pytest.mark.parametrize(
    ("items", "owner"),
    [
        ([FORWARD], ""),
        ([base("inet", "firewalld", "filter_FORWARD")], "firewalld"),
        ([IPTABLES], "iptables"),
        ([IPTABLES, item("chain", "ip", "filter", name="DOCKER-USER")], "Docker"),
        ([IPTABLES, item("chain", "ip", "filter", name="ufw-before-forward")], "ufw"),
        ([base("ip", "libvirt_network", "forward")], "libvirt"),
        ([base("inet", "virt-forward", "forward")], "virt-forward"),
        ([base("ip", "mine", "f"), rule("ip", "mine", "f", {"xt": None})], "iptables"),
    ],
)  # fmt: skip
def test_tables_of_other_programs_are_known(items: list[dict[str, object]], owner: str) -> None:
    assert [chain.owner for chain in chains.base_chains(items)] == [owner]


def test_lines_never_go_into_tables_of_other_programs() -> None:
    theirs = tuple(chain._replace(owner="firewalld") for chain in CHAINS)
    text = plan(Options(), NETWORKD._replace(chains=theirs)).ruleset
    assert "chain forward" not in text
    assert "type nat hook postrouting priority srcnat" in text, (
        "a table of the person's own for the masquerade"
    )


def test_open_chain_needs_no_lines() -> None:
    opened = tuple(chain._replace(policy="accept") for chain in CHAINS)
    assert "chain forward" not in plan(Options(), NETWORKD._replace(chains=opened)).ruleset


def test_separate_tables_a_family_get_the_lines_of_their_family() -> None:
    separate = tuple(chain._replace(family=family) for chain in CHAINS for family in ("ip", "ip6"))
    text = plan(Options(), NETWORKD._replace(chains=separate)).ruleset
    for block in text.split("}\n}"):
        assert not ("table ip " in block and "ip6 saddr" in block)
        assert not ("table ip6 " in block and "ip saddr" in block)
    assert text.count("masquerade") == 2


def test_dns_on_the_bridge_itself_is_let_in() -> None:
    asked = Options(dns=(ip_address("10.10.0.1"),))
    assert "th dport 53 accept" in plan(asked, NETWORKD).ruleset
    assert "dport 53" not in plan(Options(), NETWORKD).ruleset


@pytest.mark.parametrize(
    ("owner", "line"),
    [
        ("Docker", "iptables -I DOCKER-USER -i vmbr0 -j ACCEPT"),
        ("ufw", "ufw route allow in on vmbr0"),
        ("firewalld", "firewall-cmd --permanent --zone=libvirt --add-interface=vmbr0"),
    ],
)
def test_other_firewalls_are_named_with_lines_of_the_page(owner: str, line: str) -> None:
    chain = Chain("ip", "filter", "FORWARD", "filter", "forward", "drop", owner=owner)
    assert line in " ".join(plan(Options(), NETWORKD._replace(chains=(chain,))).notes)
    assert line in (REPO / "docs/firewalls.md").read_text()


def test_ruleset_that_cannot_be_read_is_told() -> None:
    notes = " ".join(plan(Options(), NETWORKD._replace(chains=None)).notes)
    assert "the ruleset cannot be read" in notes


def test_include_is_printed_once_only() -> None:
    assert plan(Options(), NETWORKD).ruleset.endswith(f"{rules.INCLUDE}\n")
    assert rules.INCLUDE not in plan(Options(), NETWORKD._replace(includes=True)).ruleset
    assert rules.INCLUDE in NFTABLES
