"""What stopped a probe, told from events of the kernel's trace; and the line that mends it."""

from ipaddress import ip_address

import pytest

from unit.test_clone_plan import ENDPOINT, ENDPOINT6, HTTP, WEB
from unit.test_clone_rulesets import host
from unit.test_probe_packets import saved_events
from virt_forward.check import remedies, rules
from virt_forward.check.clone import verdict
from virt_forward.check.clone.packets import Packet
from virt_forward.check.clone.plan import Wire
from virt_forward.check.clone.probes import Probe
from virt_forward.check.clone.tables import TRACE_TABLE
from virt_forward.check.clone.trace import Event
from virt_forward.check.clone.verdict import Book, Obstacle, Seen
from virt_forward.check.remedies import Place
from virt_forward.model import Forward

CLIENT, ADDRESS = ip_address("192.0.2.253"), ip_address("192.0.2.1")
PROBE = Probe(WEB.uuid, "web", HTTP, ENDPOINT, "enp1s0", CLIENT, ADDRESS, 8080, 80)
WIRE = Wire("vnet0", "out1")
DROP = Obstacle("dropped", False, "inet", "filter", "forward", "forward", "forward", priority="filter")


def book(version: str = "1.0.6") -> Book:
    state = host(version)
    found = {table.key: table for table in rules.parse(state.ruleset)}
    return Book(found, found, state)


def event(words: str, verdict_: str = "continue", handle: int = 0, step: str = "rule") -> Event:
    family, table, chain = words.split()
    return Event(family, table, chain, step, handle, verdict_)  # type: ignore[arg-type]


def vetoed(*events: Event, seen: tuple[Seen, ...] = (), answer: bool = False) -> Obstacle | None:
    return verdict.obstacle(PROBE, events, seen, book(), answer=answer)


def test_policy_of_a_saved_trace_is_the_obstacle() -> None:
    found = vetoed(*saved_events())
    assert found == Obstacle(
        "dropped", False, "ip", "filter", "FORWARD", "FORWARD", "forward", priority="filter"
    )


@pytest.mark.parametrize("version", ["1.0.6", "1.1.3"])
def test_rule_is_told_with_its_handle_and_the_base_chain_it_was_reached_from(version: str) -> None:
    events = (event("inet filter forward", "jump", 9), event("inet filter guests", "drop", 10))
    found = verdict.obstacle(PROBE, events, (), book(version), answer=False)
    assert found == DROP._replace(
        chain="guests", rule="counter reject with icmpx admin-prohibited", handle=10
    )


def test_rule_of_iptables_is_told_in_its_words() -> None:
    found = vetoed(event("ip filter FORWARD", "drop", 6))
    assert found
    assert found.rule == '-A FORWARD -p tcp -m tcp --dport 80 -m string --string "foo" --algo bm -j DROP'
    assert found.handle == 0


def test_handle_is_that_of_the_host_where_the_clone_has_another() -> None:
    here = book()
    clone = {
        table.key: table
        for table in rules.parse(host("1.0.6").ruleset.replace("# handle 6\n", "# handle 77\n"))
    }
    found = verdict.obstacle(
        PROBE,
        [event("inet filter forward", "drop", 77)],
        (),
        Book(clone, here.host, here.state),
        answer=False,
    )
    assert found
    assert (found.rule, found.handle) == ('ip saddr @blocked counter drop comment "blocked"', 6)


def test_earlier_translation_is_the_obstacle_even_if_the_packet_is_dropped_after_it() -> None:
    found = vetoed(
        event("inet nat prerouting", "accept", 2), event("inet filter forward", "drop", step="policy")
    )
    assert found
    assert (found.kind, found.table, found.handle) == ("translated", "nat", 2)
    assert found.rule == 'iifname "enp1s0" tcp dport 8080 dnat ip to 10.10.0.9:80'


def test_packet_in_the_input_hook_reaches_the_host_itself() -> None:
    found = vetoed(event(f"inet {TRACE_TABLE} input"), event("inet filter forward", "drop", step="policy"))
    assert found
    assert found.kind == "local"


def test_packet_in_a_queue_is_unknown() -> None:
    found = vetoed(event("inet filter guests", "queue", 10))
    assert found
    assert found.kind == "unknown"


def test_packet_that_leaves_elsewhere_is_not_routed_as_it_should_be() -> None:
    packet = Packet("first", 1, "tcp", CLIENT, ENDPOINT.ip, 40000, 80)
    found = vetoed(seen=(Seen("out7", packet),))
    assert found
    assert (found.kind, found.detail) == ("unrouted", "it does not leave by virbr0")
    assert verdict.arrived(PROBE, WIRE, [Seen("out1", packet)])
    assert not verdict.arrived(PROBE, WIRE, [Seen("out7", packet)])
    assert not verdict.arrived(PROBE, WIRE, [Seen("out1", packet._replace(dport=8080))])


@pytest.mark.parametrize(("ip", "port"), [("10.10.0.9", 80), (str(ENDPOINT.ip), 81)])
def test_packet_to_another_address_or_port_is_misled(ip: str, port: int) -> None:
    packet = Packet("first", 1, "tcp", CLIENT, ip_address(ip), 40000, port)
    found = vetoed(seen=(Seen("out1", packet),))
    assert found
    assert (found.kind, found.detail) == ("misled", ip)


def test_answer_must_come_from_the_address_that_was_asked() -> None:
    packet = Packet("answer", 1, "tcp", ADDRESS, CLIENT, 8080, 40000)
    assert verdict.answered(PROBE, [Seen("out0", packet)])
    assert not verdict.answered(PROBE, [Seen("out0", packet._replace(src=ENDPOINT.ip))])


def test_nothing_heard_is_left_to_the_kernel() -> None:
    assert vetoed(event(f"inet {TRACE_TABLE} prerouting")) is None
    assert verdict.hooks_reached([event(f"inet {TRACE_TABLE} prerouting")]) == {"prerouting"}


LEGACY = """\
*filter
:INPUT ACCEPT [0:0]
:FORWARD {policy} [{dropped}:0]
:ufw-user - [0:0]
[4:240] -A FORWARD -i lo -j ACCEPT
[{counted}:60] -A FORWARD -p tcp -m tcp --dport 80 -j {target}
COMMIT
"""


def legacy(policy: str, target: str, dropped: int = 0, counted: int = 0) -> str:
    return LEGACY.format(policy=policy, target=target, dropped=dropped, counted=counted)


def test_rule_of_legacy_iptables_is_the_one_that_counts_the_packet() -> None:
    found = verdict.legacy_drop("ip", legacy("ACCEPT", "DROP"), legacy("ACCEPT", "DROP", counted=1))
    assert found
    assert (found.family, found.table, found.chain) == ("legacy ip", "filter", "FORWARD")
    assert found.rule == "-A FORWARD -p tcp -m tcp --dport 80 -j DROP"
    by_policy = verdict.legacy_drop("ip", legacy("DROP", "LOG"), legacy("DROP", "LOG", dropped=1, counted=1))
    assert by_policy
    assert by_policy.rule == ""
    assert verdict.legacy_drop("ip", legacy("DROP", "LOG"), legacy("DROP", "LOG", counted=1)) is None


def at(words: str, **fields: object) -> Obstacle:
    family, table, chain, base, hook = words.split()
    made = Obstacle("dropped", False, family.replace("_", " "), table, chain, base, hook, priority="filter")
    return made._replace(**fields)  # type: ignore[arg-type]


DOCKER = Place(frozenset({"FORWARD", "DOCKER-USER", "DOCKER-FORWARD"}))
NAT = Place(mode="nat")
UFW = Place(frozenset({"FORWARD", "ufw-user-forward", "ufw-before-forward"}))


@pytest.mark.parametrize(
    ("obstacle", "place", "owner", "fix"),
    [
        (DROP, Place(), "nftables", "nft insert rule inet filter forward ct label 100 accept;"),
        (
            DROP._replace(rule="tcp dport 80 drop", handle=12),
            Place(),
            "nftables",
            "nft insert rule inet filter forward handle 12 ct label 100 accept;",
        ),
        (
            at("inet raw early early prerouting", priority="raw"),
            Place(),
            "nftables",
            "nft insert rule inet raw early iifname enp1s0 tcp dport 8080 accept;",
        ),
        (
            at("inet raw early early prerouting", priority="mangle", answer=True),
            Place(),
            "nftables",
            "nft insert rule inet raw early ct label 100 accept;",
        ),
        (
            at("netdev edge in in ingress", answer=True),
            Place(),
            "nftables",
            "nft insert rule netdev edge in ip saddr 10.10.0.200 tcp sport 80 accept;",
        ),
        (
            at("bridge theirs forward forward forward"),
            Place(),
            "nftables",
            "nft insert rule bridge theirs forward ip daddr 10.10.0.200 tcp dport 80 accept;",
        ),
        (
            at("ip filter FORWARD FORWARD forward"),
            DOCKER,
            "docker",
            "iptables -I DOCKER-USER -m conntrack --ctstate DNAT -j ACCEPT",
        ),
        (
            at("ip6 filter DOCKER-FORWARD FORWARD forward"),
            DOCKER,
            "docker",
            "ip6tables -I DOCKER-USER -m conntrack --ctstate DNAT -j ACCEPT",
        ),
        (
            at("ip filter FORWARD FORWARD forward"),
            UFW,
            "ufw",
            "ufw route allow proto tcp to 10.10.0.200 port 80",
        ),
        (
            at("ip filter ufw-reject-forward FORWARD forward"),
            Place(),
            "ufw",
            "ufw route allow proto tcp to 10.10.0.200 port 80",
        ),
        (
            at("ip filter FORWARD FORWARD forward"),
            Place(),
            "iptables",
            "iptables -I FORWARD -m conntrack --ctstate DNAT -j ACCEPT;",
        ),
        (
            at("legacy_ip6 filter FORWARD FORWARD forward"),
            Place(),
            "iptables",
            "ip6tables-legacy -I FORWARD -m conntrack --ctstate DNAT -j ACCEPT;",
        ),
        (
            at("ip raw PREROUTING PREROUTING prerouting", priority="raw"),
            Place(),
            "iptables",
            "iptables -t raw -I PREROUTING -i enp1s0 -p tcp --dport 8080 -j ACCEPT;",
        ),
        (at("ip libvirt_network guest_input forward forward"), NAT, "libvirt", "virt-forward sync"),
        (at("ip filter LIBVIRT_FWI FORWARD forward"), Place(mode="nat"), "libvirt", "virt-forward sync"),
        (
            at("ip filter LIBVIRT_FWI FORWARD forward"),
            Place(mode="nat", admit=False),
            "libvirt",
            "set admit = true in section [libvirt] of /etc/virt-forward/config.toml, "
            "and run virt-forward sync",
        ),
        (at("ip filter LIBVIRT_FWI FORWARD forward"), Place(mode=""), "libvirt", "the network is isolated"),
        (at("inet firewalld filter_FORWARD x forward"), Place(), "firewalld", "set StrictForwardPorts=no"),
        (at("bridge nat libvirt-I-vnet0 PREROUTING prerouting"), Place(), "libvirt filter", "allow it"),
        (at("inet virt-forward forward forward forward"), Place(), "virt-forward", "virt-forward sync"),
    ],
)  # fmt: skip
def test_fix_is_written_for_the_owner_of_the_chain(
    obstacle: Obstacle, place: Place, owner: str, fix: str
) -> None:
    assert remedies.owner(obstacle, place.chains) == owner
    assert remedies.dropped(obstacle, [PROBE], place).startswith(fix)


def test_ufw_gets_one_line_for_each_forward_and_family() -> None:
    wide = Forward("udp", 5000, 5020, 6000)
    probes = [
        PROBE,
        PROBE._replace(endpoint=ENDPOINT6),
        PROBE._replace(forward=wide, port=5000, to=6000),
        PROBE._replace(forward=wide, port=5020, to=6020),
    ]
    fix = remedies.dropped(at("ip filter ufw-user-forward FORWARD forward"), probes, UFW)
    assert fix.split("; ") == [
        "ufw route allow proto tcp to 10.10.0.200 port 80",
        "ufw route allow proto tcp to fd10:10::200 port 80",
        "ufw route allow proto udp to 10.10.0.200 port 6000:6020",
    ]
    sctp = PROBE._replace(forward=HTTP._replace(proto="sctp"))
    only = remedies.dropped(at("ip filter FORWARD FORWARD forward"), [sctp], UFW)
    assert only.startswith("iptables -I ufw-before-forward -p sctp")


def test_names_of_foreign_chains_are_quoted_for_the_shell() -> None:
    fix = remedies.dropped(DROP._replace(table="a;b", chain="$(c)"), [PROBE], Place())
    assert fix.startswith("nft insert rule inet 'a;b' '$(c)' ct label 100 accept")


@pytest.mark.parametrize(
    ("obstacle", "fix"),
    [
        (
            at("inet nat prerouting prerouting prerouting", rule="tcp dport 8080 dnat to 10.0.0.9", handle=2),
            "nft delete rule inet nat prerouting handle 2;",
        ),
        (
            at("ip nat PREROUTING PREROUTING prerouting", rule="-A PREROUTING -p tcp --dport 8080 -j DNAT"),
            "iptables -t nat -D PREROUTING -p tcp --dport 8080 -j DNAT, or",
        ),
        (
            at("ip nat DOCKER PREROUTING prerouting", rule="-A DOCKER -p tcp --dport 8080 -j DNAT"),
            "stop the container that publishes the port (docker ps --filter publish=8080)",
        ),
    ],
)  # fmt: skip
def test_fix_for_an_earlier_translation(obstacle: Obstacle, fix: str) -> None:
    assert remedies.shadowed(obstacle, [PROBE], Place()).startswith(fix)


@pytest.mark.parametrize(
    ("words", "number"),
    [("raw - 10", -310), ("filter", 0), ("-95", -95), ("dstnat + 5", -95), ("odd words", 0)],
)
def test_priorities_are_numbers(words: str, number: int) -> None:
    assert remedies.priority(words) == number
