"""``virt-forward check`` on a table that somebody has changed."""

import json

import pytest

from support.netns import BRIDGE, CLIENT4, CLIENT6, GUEST4, GUEST6, GUEST_MAC, HOST4, HOST6, UPLINK, Lab
from support.xml import Nic, domain, forwards, host_ip, port_forward, uuid_of

pytestmark = pytest.mark.root


# A lab has no installation, and the machine's nftables.conf and libvirt networks; most guests serve nothing.
ELSEWHERE = {"hook-missing", "flush-unprotected", "bridge-name-clash", "guest-unreachable", "br-netfilter"}


def found(lab: Lab) -> set[str]:
    told = json.loads(lab.command("check", "--json", check=False).out)
    assert told["version"] == 1
    return {problem["id"] for problem in told["problems"]} - ELSEWHERE


def test_table_changed_by_hand_is_found(lab: Lab) -> None:
    assert found(lab) == set()
    xml = started(lab, port_forward("8080:80", "9000-9020"))
    assert found(lab) == set()
    lab.host.nft("delete element inet virt-forward ports { tcp . 8080 }")
    assert found(lab) == {"table-differs"}
    lab.host.nft("delete table inet virt-forward")
    assert found(lab) == {"table-missing"}
    lab.hook("qemu", "web", "reconnect", xml=xml)
    assert found(lab) == set()


def started(lab: Lab, *children: str) -> str:
    """Start a guest that refuses connections (an answer of none would be waited for), and return its XML."""
    lab.guest("web")
    xml = domain("web", forwards(host_ip(GUEST4), *children), [Nic()])
    lab.hook("qemu", "web", "prepare", xml=xml)
    lab.hook("qemu", "web", "started", xml=xml)
    return xml


def test_absent_address_and_device_are_found(lab: Lab) -> None:
    lab.configure("[forward]\nlocalhost = true\n")
    started(
        lab,
        port_forward("8080", attributes='address="203.0.113.7"'),
        port_forward("8081", attributes='address="127.0.0.9"'),
        port_forward("8082", attributes='dev="enp9s0"'),
        port_forward("8083", attributes=f'dev="{UPLINK}" address="{HOST4}"'),
    )
    assert found(lab) == {"address-absent", "device-absent"}
    lab.add_bridge("enp9s0")
    assert found(lab) == {"address-absent"}
    # Every address of a local route is the host's, whether an interface has it or not.
    lab.host.ip("route add local 203.0.113.0/28 dev lo")
    assert found(lab) == set()
    lab.host.ip("route del local 203.0.113.0/28 dev lo", f"address add 203.0.113.7/32 dev {UPLINK}")
    assert found(lab) == set()


LISTENER = """#!/usr/bin/python3
import socket, time
sock = socket.create_server(("0.0.0.0", 8080))
print("ready", flush=True)
time.sleep(60)
"""


def test_later_listener_is_found_with_escaped_name(lab: Lab) -> None:
    started(lab, port_forward("8080:80"))
    program, log = lab.dir / "ev\x1b[31m\nil", lab.dir / "log"
    program.write_text(LISTENER)
    program.chmod(0o700)
    log.touch()
    process = lab.host.background([program], log)
    try:
        process.wait_for(lambda: "ready" in process.text(), "the listener is there")
        assert found(lab) == {"host-port-taken"}
        told = lab.command("check", check=False).out
        refused = lab.hook("qemu", "db", "prepare", xml=other_guest(), check=False)
    finally:
        process.end()
    assert 'host port tcp/8080 is taken by "ev?[31m?il" on the host, which listens on 0.0.0.0' in told
    assert "(ss -Hlntp sport = :8080 shows it)" in told
    assert refused.status == 1
    assert 'taken by "ev?[31m?il" on the host' in refused.err
    assert "hint: stop that program (ss -Hlntp sport = :8080 shows it)" in refused.err
    assert all(line.isprintable() for line in (*told.split("\n"), *refused.err.split("\n")))


def other_guest() -> str:
    metadata = forwards(host_ip("10.10.0.201"), port_forward("8080:80"))
    return domain("db", metadata, [Nic(mac="52:54:00:a0:8f:99")])


def test_addresses_of_running_guests_are_shown_with_origin(lab: Lab) -> None:
    started(lab, port_forward("8080:80"))
    told = json.loads(lab.command("check", "--json", check=False).out)
    endpoint = {"ip": "10.10.0.200", "bridge": "virbr0", "mac": GUEST_MAC, "origin": "declared"}
    assert told["guests"] == [{"domain": "web", "uuid": uuid_of("web"), "addresses": [endpoint]}]


def test_fix_for_interface_with_dot_works(lab: Lab) -> None:
    started(lab, port_forward("8080:80"))
    lab.host.ip(f"link set {UPLINK} down", f"link set {UPLINK} name eth0.100", "link set eth0.100 up")
    lab.host.ip(f"address replace {HOST4}/24 dev eth0.100", f"route add default via {CLIENT4}")
    lab.host.sysctl("net.ipv4.conf.all.forwarding", 0)
    assert found(lab) == {"ip-forwarding-off"}
    told = json.loads(lab.command("check", "--json", check=False).out)["problems"]
    fixes = [problem["fix"] for problem in told if problem["id"] == "ip-forwarding-off"]
    assert fixes[0].startswith("sysctl -w net/ipv4/conf/eth0.100/forwarding=1;")
    # The answers arrive on the bridge, where it is off as well.
    assert fixes[1].startswith(f"sysctl -w net.ipv4.conf.{BRIDGE}.forwarding=1;")
    for fix in fixes:
        lab.host.run(fix.partition(";")[0].split())
    assert found(lab) == set()


def test_interface_name_with_control_characters_is_accepted(lab: Lab) -> None:
    lab.host.run(["ip", "link", "add", "a\x1b[1mb", "type", "bridge"])
    lab.host.run(["ip", "address", "add", "198.51.100.1/24", "dev", "a\x1b[1mb"])
    started(lab, port_forward("8080:80"))
    assert found(lab) == set()


def test_fix_for_ipv6_makes_the_kernel_forward(lab: Lab) -> None:
    lab.guest("web").serve("tcp", 80)
    metadata = forwards(host_ip(GUEST4), host_ip(GUEST6), port_forward("8080:80"))
    xml = domain("web", metadata, [Nic()])
    lab.hook("qemu", "web", "prepare", xml=xml)
    lab.hook("qemu", "web", "started", xml=xml)
    lab.host.ip(f"route add ::/0 via {CLIENT6} dev {UPLINK}")
    lab.host.sysctl("net.ipv6.conf.all.forwarding", 0)
    # With IPv6, the switch of the device does not decide.
    lab.host.sysctl(f"net.ipv6.conf.{UPLINK}.forwarding", 1)
    assert found(lab) == {"ip-forwarding-off"}
    assert lab.client.unanswered(HOST6, 8080)
    told = json.loads(lab.command("check", "--json", check=False).out)["problems"]
    (fix,) = [problem["fix"] for problem in told if problem["id"] == "ip-forwarding-off"]
    lab.host.run(fix.partition(";")[0].split())
    lab.host.sysctl(f"net.ipv6.conf.{UPLINK}.forwarding", 0)
    assert found(lab) == set()
    assert lab.client.ask(HOST6, 8080) is not None
