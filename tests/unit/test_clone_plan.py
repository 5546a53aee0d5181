"""Which probes are sent, and how the copy of the host is built for them."""

import json
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest

from virt_forward.check.clone import host_state, plan, probes
from virt_forward.check.clone.host_state import HostState, Link, Route
from virt_forward.config import Config
from virt_forward.model import Endpoint, Forward, Guest

MAC = "52:54:00:a0:8f:2c"
ENDPOINT = Endpoint(ip_address("10.10.0.200"), "virbr0", MAC)
ENDPOINT6 = Endpoint(ip_address("fd10:10::200"), "virbr0", MAC)
HTTP = Forward("tcp", 8080, 8080, 80)
WEB = Guest("1a2b3c4d-0000-4000-8000-000000000001", "web", forwards=(HTTP,), endpoints=(ENDPOINT, ENDPOINT6))
UPLINK = Link(
    "enp1s0", 2, mac="52:54:00:11:11:11", addresses=(ip_interface("192.0.2.1/24"), ip_interface("fe80::1/64"))
)
WLAN = Link("wlan0", 3, mac="52:54:00:22:22:22", addresses=(ip_interface("198.51.100.1/24"),))
BRIDGE = Link("virbr0", 4, "bridge", "52:54:00:9a:8a:d1", addresses=(ip_interface("10.10.0.1/24"),))
TAP = Link("vnet0", 9, "tun", "fe:54:00:a0:8f:2c", "virbr0")
LO = Link("lo", 1, addresses=(ip_interface("127.0.0.1/8"),))
DEFAULT = Route(
    ip_network("0.0.0.0/0"),
    "table main via 192.0.2.254 dev enp1s0 onlink",
    ("enp1s0",),
    (ip_address("192.0.2.254"),),
)
ON_LINK = Route(ip_network("192.0.2.0/24"), "table main dev enp1s0 scope link", ("enp1s0",))
DEFAULTS = Config()
HOST = HostState((LO, UPLINK, WLAN, BRIDGE, TAP), (DEFAULT, ON_LINK))


def sent(
    *forwards: Forward, host: HostState = HOST, config: Config = DEFAULTS
) -> list[tuple[str, str, str, int]]:
    found = probes.probes([WEB._replace(forwards=forwards)], host, config)
    return [(probe.device, str(probe.client), str(probe.address), probe.port) for probe in found]


def test_probe_comes_from_the_subnet_of_the_default_route() -> None:
    """The last address is the gateway's; the uplink has no IPv6 address that a client can use."""
    assert sent(HTTP) == [("enp1s0", "192.0.2.253", "192.0.2.1", 8080)]


def test_range_is_probed_at_both_ends() -> None:
    forward = Forward("udp", 5000, 5020, 6000)
    found = probes.probes([WEB._replace(forwards=(forward,))], HOST, Config())
    assert [(probe.port, probe.to) for probe in found] == [(5000, 6000), (5020, 6020)]


def test_without_a_default_route_every_link_that_leads_outside_is_probed() -> None:
    assert [device for device, *_ in sent(HTTP, host=HOST._replace(routes=()))] == ["enp1s0", "wlan0"]


def test_default_route_of_the_other_family_counts_where_there_is_none() -> None:
    other = WLAN._replace(addresses=(ip_interface("2001:db8:9::1/64"),))
    uplink = UPLINK._replace(addresses=(*UPLINK.addresses, ip_interface("2001:db8::1/64")))
    # Where a host has no IPv6 uplink, the kernel may say so by a route.
    none = Route(ip_network("::/0"), "table main dev lo metric 4294967295", ("lo",), kind="unreachable")
    host = HOST._replace(links=(LO, uplink, other, BRIDGE, TAP), routes=(*HOST.routes, none))
    found = probes.probes([WEB], host, Config())
    assert {(probe.device, probe.endpoint.ip.version) for probe in found} == {("enp1s0", 4), ("enp1s0", 6)}


def test_configured_uplinks_are_probed_and_no_other() -> None:
    assert [device for device, *_ in sent(HTTP, config=Config(uplinks=("wlan0",)))] == ["wlan0"]


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        (HTTP._replace(dev="wlan0"), [("wlan0", "198.51.100.254", "198.51.100.1", 8080)]),
        (
            HTTP._replace(address=ip_address("198.51.100.1")),
            [("wlan0", "198.51.100.254", "198.51.100.1", 8080)],
        ),
        (HTTP._replace(source=ip_network("192.0.2.8/29")), [("enp1s0", "192.0.2.14", "192.0.2.1", 8080)]),
        (HTTP._replace(source=ip_network("192.0.2.9/32")), [("enp1s0", "192.0.2.9", "192.0.2.1", 8080)]),
        (
            HTTP._replace(source=ip_network("203.0.113.0/24")),
            [("enp1s0", "203.0.113.254", "192.0.2.1", 8080)],
        ),
        (HTTP._replace(address=ip_address("10.10.0.1")), [("virbr0", "10.10.0.254", "10.10.0.1", 8080)]),
        (HTTP._replace(address=ip_address("127.0.0.1")), []),
        (HTTP._replace(address=ip_address("203.0.113.7")), []),
        (HTTP._replace(dev="enp9s0"), []),
        (HTTP._replace(dev="vnet0"), []),
    ],
)
def test_limits_of_a_forward_choose_client_address_and_device(
    forward: Forward, expected: list[tuple[str, str, str, int]]
) -> None:
    assert sent(forward) == expected


def test_address_of_a_local_route_is_probed() -> None:
    local = Route(ip_network("203.0.113.0/28"), "table local dev lo", ("lo",), kind="local", table="local")
    forward = HTTP._replace(address=ip_address("203.0.113.7"))
    assert sent(forward, host=HOST._replace(routes=(DEFAULT, local))) == [
        ("enp1s0", "192.0.2.253", "203.0.113.7", 8080)
    ]


def test_link_that_is_down_and_guest_that_does_not_run_are_not_probed() -> None:
    down = HOST._replace(links=(LO, UPLINK._replace(up=False), BRIDGE, TAP))
    assert sent(HTTP, host=down) == []
    assert probes.probes([WEB._replace(phase="prepared")], HOST, Config()) == []


def test_peer_is_the_client_of_a_point_to_point_link() -> None:
    peer = {ip_address("203.0.113.1"): ip_address("203.0.113.2")}
    ppp = Link("ppp0", 2, addresses=(ip_interface("203.0.113.1/32"),), peers=peer)
    route = Route(ip_network("0.0.0.0/0"), "table main dev ppp0", ("ppp0",))
    assert sent(HTTP, host=HostState((ppp, BRIDGE), (route,))) == [
        ("ppp0", "203.0.113.2", "203.0.113.1", 8080)
    ]


def test_number_of_probes_is_bounded() -> None:
    many = tuple(Forward("tcp", port, port, port) for port in range(1, 20000))
    assert len(sent(*many)) == probes.MAX_PROBES


def built(host: HostState = HOST, guest: Guest = WEB) -> plan.Plan:
    return plan.plan(host, probes.probes([guest], host, Config()))


def test_links_have_the_names_indexes_and_addresses_of_the_host() -> None:
    found = built()
    words = [line for line, _ in found.links]
    assert words[0] == (
        "link add virbr0 index 4 address 52:54:00:9a:8a:d1 type bridge "
        "forward_delay 0 stp_state 0 mcast_snooping 0"
    )
    assert any(
        line.startswith("link add enp1s0 index 2 address 52:54:00:11:11:11 type veth peer") for line in words
    )
    assert "link add lo" not in " ".join(words)
    assert "address add 192.0.2.1/24 dev enp1s0 noprefixroute" in found.configure
    assert "address add fe80::1/64 dev enp1s0 noprefixroute nodad" in found.configure
    assert "link set vnet0 master virbr0" in found.configure


def test_answers_find_their_way_to_client_and_guest() -> None:
    found = built().configure
    assert "route add 192.0.2.0/24 table main dev enp1s0 scope link" in found
    assert "route add 0.0.0.0/0 table main via 192.0.2.254 dev enp1s0 onlink" in found
    assert f"neighbour replace 10.10.0.200 lladdr {MAC} dev virbr0 nud permanent" in found
    assert f"neighbour replace 192.0.2.253 lladdr {plan.CLIENT_MAC} dev enp1s0 nud permanent" in found
    assert f"neighbour replace 192.0.2.254 lladdr {plan.CLIENT_MAC} dev enp1s0 nud permanent" in found


def test_routes_that_no_probe_takes_are_left_out() -> None:
    many = tuple(
        Route(ip_network(f"100.64.{n}.0/24"), "table main dev enp1s0", ("enp1s0",)) for n in range(256)
    )
    assert built(HOST._replace(routes=(*HOST.routes, *many))).configure == built().configure


def crowd(count: int) -> tuple[list[Guest], HostState]:
    guests, taps = [], []
    for number in range(count):
        mac = f"52:54:00:00:01:{number:02x}"
        endpoint = Endpoint(ip_address(f"10.10.0.{number + 2}"), "virbr0", mac)
        guests.append(WEB._replace(uuid=str(number), endpoints=(endpoint,)))
        taps.append(Link(f"vnet{number}", 100 + number, "tun", "fe" + mac[2:], "virbr0"))
    return guests, HOST._replace(links=(LO, UPLINK, BRIDGE, *taps))


@pytest.mark.parametrize("ruleset", ["", 'oifname "vnet1" drop', "-A FORWARD -o vnet1 -j DROP"])
def test_guests_share_a_port_unless_a_rule_names_theirs(ruleset: str) -> None:
    guests, host = crowd(5)
    host = host._replace(ruleset=ruleset)
    found = plan.plan(host, probes.probes(guests, host, Config()))
    assert {wire.link for wire in found.guests.values()} == ({"vnet0", "vnet1"} if ruleset else {"vnet0"})
    assert len(found.guests) == 5


def test_ports_of_a_bridge_that_filters_vlans_are_copied_with_their_vlans() -> None:
    guests, host = crowd(3)
    bridge = BRIDGE._replace(vlan_filtering=True)
    vlans = (("vnet0", "vid 10 pvid untagged"), ("virbr0", "vid 10"), ("vnet7", "vid 1"))
    host = host._replace(links=(UPLINK, bridge, *host.links[3:]), vlans=vlans)
    found = plan.plan(host, probes.probes(guests, host, Config()))
    assert len({wire.link for wire in found.guests.values()}) == 3
    assert found.vlans == ("vlan add dev vnet0 vid 10 pvid untagged", "vlan add dev virbr0 vid 10 self")


def test_probes_enter_a_bridge_by_its_hardware_port() -> None:
    lan = Link("br0", 5, "bridge", "52:54:00:33:33:33", addresses=(ip_interface("192.0.2.1/24"),))
    nic, tap = Link("enp1s0", 2, mac="52:54:00:11:11:11", master="br0"), Link("vnet7", 8, "tun", master="br0")
    route = Route(ip_network("0.0.0.0/0"), "table main via 192.0.2.254 dev br0 onlink", ("br0",))
    host = HostState((tap, nic, lan, BRIDGE, TAP), (route,))
    found = built(host)
    assert found.uplinks["br0"].link == "enp1s0"
    assert "link set enp1s0 master br0" in found.configure
    assert plan.flow(probes.probes([WEB], host, Config())[0], found, 40000).dst_mac == lan.mac


def test_guest_without_a_known_port_gets_one() -> None:
    host = HOST._replace(links=(LO, UPLINK, BRIDGE))
    found = built(host)
    assert found.guests["virbr0", MAC].link == "vf-guest0"
    assert any(line.startswith("link add vf-guest0 address") for line, _ in found.links)


def test_sysctls_of_links_that_are_not_copied_are_left_out() -> None:
    paths = (
        "ipv4/conf/all/rp_filter",
        "ipv4/conf/enp1s0/rp_filter",
        "ipv4/conf/gone/rp_filter",
        "ipv4/fwmark_reflect",
    )
    found = built(HOST._replace(sysctls=tuple((path, "1") for path in paths)))
    assert [path for path, _ in found.sysctls] == [path for path in paths if "gone" not in path]


def shown(**fields: Any) -> str:
    return json.dumps([fields])


def test_links_are_read_from_ip() -> None:
    text = shown(
        ifindex=4, ifname="virbr0", flags=["UP"], link_type="ether", address="52:54:00:9a:8a:d1",
        linkinfo={"info_kind": "bridge", "info_data": {"vlan_filtering": 1}},
        addr_info=[{"family": "inet", "local": "10.10.0.1", "prefixlen": 24}, {}],
    )  # fmt: skip
    (found,) = host_state.parse_links(text)
    assert found == BRIDGE._replace(vlan_filtering=True, peers={})


@pytest.mark.parametrize("name", ["a b", "a\x1b[1m", 'a"b', "a;b", ""])
def test_links_with_names_that_need_quoting_are_left_out(name: str) -> None:
    assert host_state.parse_links(shown(ifindex=4, ifname=name)) == ()


HOP = {"gateway": "192.0.2.3", "dev": "a", "weight": 1}


@pytest.mark.parametrize(
    ("version", "fields", "expected"),
    [
        (4, {"dst": "default", "gateway": "192.0.2.254", "dev": "enp1s0", "protocol": "dhcp", "metric": 100},
         "0.0.0.0/0 table main via 192.0.2.254 dev enp1s0 onlink metric 100"),
        (6, {"dst": "default", "gateway": "fe80::1", "dev": "enp1s0", "pref": "medium", "metric": 1024},
         "::/0 table main via fe80::1 dev enp1s0 onlink metric 1024"),
        (4, {"dst": "192.0.2.0/24", "dev": "enp1s0", "scope": "link", "prefsrc": "192.0.2.1"},
         "192.0.2.0/24 table main dev enp1s0 src 192.0.2.1 scope link"),
        (4, {"dst": "10.0.0.0/8", "table": 9, "nexthops": [HOP]},
         "10.0.0.0/8 table 9 nexthop via 192.0.2.3 dev a weight 1 onlink"),
        (4, {"dst": "10.1.0.0/16", "via": {"family": "inet6", "host": "fe80::2"}, "dev": "a"},
         "10.1.0.0/16 table main via inet6 fe80::2 dev a onlink"),
        (4, {"type": "unreachable", "dst": "10.2.0.0/16"}, "10.2.0.0/16 table main"),
        (4, {"type": "local", "dst": "192.0.2.1", "table": "local", "protocol": "kernel"}, ""),
        (4, {"type": "broadcast", "dst": "192.0.2.255", "table": "local"}, ""),
    ],
)  # fmt: skip
def test_routes_are_read_from_ip(version: int, fields: dict[str, Any], expected: str) -> None:
    found = host_state.parse_routes(shown(**fields), version)
    assert [f"{route.destination} {route.words}" for route in found] == ([expected] if expected else [])


def test_rules_are_read_from_ip() -> None:
    text = "0:\tfrom all lookup local\n32766:\tfrom all lookup main\n"
    text = f"99:\tnot from 10.0.0.0/8 iif eth7 [detached] lookup 100\n{text}"
    assert host_state.parse_rules(text, 4) == (
        (4, "pref 99 not from 10.0.0.0/8 iif eth7 lookup 100"),
        (4, "pref 32766 from all lookup main"),
    )


def test_vlans_are_read_from_bridge() -> None:
    text = shown(
        ifname="vnet0",
        vlans=[{"vlan": 10, "flags": ["PVID", "Egress Untagged"]}, {"vlan": 20, "vlanEnd": 29}],
    )
    assert [*host_state.parse_vlans(text)] == [("vnet0", "vid 10 pvid untagged"), ("vnet0", "vid 20-29")]
