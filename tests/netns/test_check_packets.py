"""``virt-forward check`` follows packets: what stops them is named, and the printed fix lets them pass."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from netns.support import bridge_netfilter, has_br_netfilter
from support import netns, person
from support.netns import CLIENT4, CLIENT6, GUEST4, GUEST6, HOST4, HOST6, UPLINK, UPLINK2, Lab, Ns
from support.proc import REPO, eventually
from support.xml import Nic, domain, forwards, host_ip, port_forward

pytestmark = pytest.mark.root

ELSEWHERE = {"hook-missing", "flush-unprotected", "bridge-name-clash"}
"""What is wrong with a lab: it has no installation, and the machine's nftables.conf and libvirt networks."""


class Served:
    """A lab with a guest that serves port 80, and check."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self.host, self.client = lab, lab.host, lab.client
        bridge_netfilter(lab.host, False)
        self.web = lab.guest("web")
        self.server = self.web.serve("tcp", 80)

    def start(self, *children: str) -> None:
        children = children or (port_forward("8080:80"),)
        xml = domain("web", forwards(host_ip(GUEST4), host_ip(GUEST6), *children), [Nic()])
        for operation in ("prepare", "started"):
            self.lab.hook("qemu", "web", operation, xml=xml)

    def shell(self, text: str) -> None:
        self.host.run(["sh", "-ec", text])

    def problems(self) -> list[dict[str, Any]]:
        told = json.loads(self.lab.command("check", "--json", check=False).out)
        assert told["version"] == 1
        return [problem for problem in told["problems"] if problem["id"] not in ELSEWHERE]

    def found(self) -> set[str]:
        return {problem["id"] for problem in self.problems()}

    def reached(self, v4: bool = True, v6: bool = True, *, port: int = 8080) -> bool:
        """Tell whether a client outside reaches the guest by IPv4 and IPv6, or does not, as expected."""
        return all(
            self.client.ask(ip, port) is not None if expected else self.client.unanswered(ip, port)
            for ip, expected in ((HOST4, v4), (HOST6, v6))
        )


@pytest.fixture
def served(lab: Lab) -> Served:
    return Served(lab)


class Case(NamedTuple):
    """What is done to the host, what is found then, and words of the message."""

    broken: str
    found: str
    words: str
    reached: tuple[bool, bool] = (False, False)


def chain(
    hook: str, body: str, *, family: str = "inet", priority: str = "filter", policy: str = "accept"
) -> str:
    return (
        f"nft 'table {family} theirs {{ chain c {{ type filter hook {hook} priority {priority}; "
        f"policy {policy}; {body}; }}; }}'"
    )


def command(fix: str) -> str:
    """Return the command that a fix begins with, without what is said of keeping it and of other ways."""
    return re.split(r"; (?:to keep|with|delete)|, or", fix)[0]


DOCKER = (
    "for t in iptables ip6tables; do $t -P FORWARD DROP; $t -N DOCKER-USER; $t -A FORWARD -j DOCKER-USER; "
    "$t -A DOCKER-USER -j RETURN; done"
)


def table(name: str, hook: str, body: str, *, family: str = "inet", priority: str = "filter") -> str:
    return (
        f"nft 'table {family} {name} {{ chain d {{ {body}; }}; chain c {{ type filter hook {hook} "
        f"priority {priority}; jump d; }}; }}'"
    )


class Way(NamedTuple):
    """A way to stop the packets to one host port, PORT, and one port of the guest, TO."""

    broken: str
    words: str
    found: str = "forward-dropped"
    reached: tuple[bool, bool] = (False, False)


WAYS = {
    "rule": Way(
        "nft 'table inet w1 { chain c { type filter hook forward priority 0; tcp dport TO drop; }; }'",
        "chain c of table inet w1 (rule tcp dport TO drop)",
    ),
    "inner chain": Way(table("w2", "forward", "tcp dport TO reject"), "chain d of table inet w2"),
    "answer": Way(table("w3", "forward", "tcp sport TO drop"), "the guest's answer is dropped by chain d"),
    "postrouting": Way(table("w4", "postrouting", "tcp dport TO drop"), "chain d of table inet w4"),
    "before our table": Way(
        table("w5", "prerouting", "tcp dport PORT drop", priority="raw"), "(rule tcp dport PORT drop)"
    ),
    "ingress": Way(
        table("w6", "ingress device enp1s0", "tcp dport PORT drop", family="netdev"), "table netdev w6"
    ),
    "bridge": Way(table("w7", "output", "tcp dport TO drop", family="bridge"), "table bridge w7"),
    "iptables": Way(
        "iptables -A FORWARD -p tcp -m string --algo bm --string x -j DROP; "
        "iptables -A FORWARD -p tcp --dport TO -j REJECT",
        "table ip filter (rule -A FORWARD -p tcp -m tcp --dport TO -j REJECT", reached=(False, True),
    ),
    "ip6tables": Way(
        "ip6tables -A FORWARD -p tcp --dport TO -j DROP",
        "table ip6 filter (rule -A FORWARD -p tcp -m tcp --dport TO -j DROP)", reached=(True, False),
    ),
    "legacy iptables": Way(
        "iptables-legacy -A FORWARD -p tcp --dport TO -j DROP", "table ip filter of legacy iptables (rule -A",
        reached=(False, True),
    ),
    "earlier dnat": Way(
        "nft 'table inet w8 { chain c { type nat hook prerouting priority dstnat; "
        "tcp dport PORT dnat ip to 10.10.0.9:80; }; }'",
        "taken by chain c of table inet w8 (rule tcp dport PORT dnat ip to", "shadowed", (False, True),
    ),
    "iptables dnat": Way(
        "iptables -t nat -A PREROUTING -p tcp --dport PORT -j DNAT --to-destination 10.10.0.9:80",
        "rule -A PREROUTING -p tcp -m tcp --dport PORT -j DNAT", "shadowed", (False, True),
    ),
}  # fmt: skip


def test_whatever_stops_packets_is_found_and_the_fix_lets_them_pass(served: Served) -> None:
    """Each forward is stopped in another way; one check finds them all."""
    ways = dict(enumerate(WAYS.values(), 100))
    served.web.serve("tcp", *ways)
    served.start(*(port_forward(f"{8000 + number}:{number}") for number in ways))
    assert served.problems() == []

    def filled(words: str, number: int) -> str:
        return words.replace("PORT", str(8000 + number)).replace("TO", str(number))

    for number, way in ways.items():
        served.shell(filled(way.broken, number))
    for number, way in ways.items():
        assert served.reached(*way.reached, port=8000 + number), way
    found = served.problems()
    for number, way in ways.items():
        about = [item for item in found if f"{8000 + number}:{number}/tcp" in item["message"]]
        assert {item["id"] for item in about} == {way.found}, (way, found)
        assert filled(way.words, number) in about[0]["message"]
    for problem in found:
        served.shell(command(problem["fix"]))
    assert served.problems() == []
    assert all(served.reached(port=8000 + number) for number in ways)


def test_more_specific_forward_of_another_guest_is_found(served: Served) -> None:
    served.start()
    ip, mac = "10.10.0.11", "52:54:00:00:00:0b"
    served.lab.guest("db", ip, None, mac).serve("tcp", 80)
    narrow = port_forward("8080:80", attributes=f'dev="{UPLINK}"')
    xml = domain("db", forwards(host_ip(ip), narrow), [Nic(mac=mac)])
    for operation in ("prepare", "started"):
        served.lab.hook("qemu", "db", operation, xml=xml)
    (problem,) = (item for item in served.problems() if item["domain"])
    assert (problem["id"], problem["domain"]) == ("shadowed", "web")
    assert "goes to guest db, by a more specific forward" in problem["message"]


CASES = {
    "policy": Case(
        chain("forward", "ct state established accept", policy="drop"), "forward-dropped",
        "dropped by chain c of table inet theirs (its policy)",
    ),
    "answer by policy": Case(
        chain("forward", "iifname enp1s0 accept", policy="drop"), "forward-dropped", "the guest's answer is"
    ),
    "docker": Case(DOCKER, "forward-dropped", "chain FORWARD of table ip filter (its policy)"),
    "forwarding off on the bridge": Case(
        "sysctl -qw net.ipv4.conf.virbr0.forwarding=0", "ip-forwarding-off", "packets that arrive on virbr0",
        (False, True),
    ),
    "forwarding off altogether": Case(
        "sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0",
        "ip-forwarding-off",
        "not forward IPv6",
    ),
    "forwarding off without a default route": Case(
        "sysctl -qw net.ipv6.conf.all.forwarding=0", "ip-forwarding-off", "not forward IPv6", (True, False)
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_obstacle_to_all_forwards_is_found_and_the_fix_removes_it(served: Served, case: Case) -> None:
    served.start()
    served.shell(case.broken)
    assert served.reached(*case.reached)
    found = served.problems()
    assert {problem["id"] for problem in found} == {case.found}
    assert any(case.words in problem["message"] for problem in found), found
    for problem in found:
        served.shell(command(problem["fix"]))
    assert served.problems() == []
    assert served.reached()


def test_healthy_host_has_no_problem(served: Served) -> None:
    served.start()
    assert served.problems() == []
    assert served.reached()


def test_chains_one_after_the_other_are_all_found_at_once(served: Served) -> None:
    served.start()
    served.shell(chain("forward", "tcp dport 80 drop"))
    served.shell(chain("forward", "iifname virbr0 drop", priority="10").replace("theirs", "more"))
    served.shell(DOCKER)
    found = served.problems()
    assert [problem["id"] for problem in found] == ["forward-dropped"] * 4
    for problem in found:
        served.shell(problem["fix"].partition(";")[0])
    assert served.problems() == []
    assert served.reached()


def test_person_s_ruleset_that_admits_us_is_no_problem(served: Served) -> None:
    served.host.nft(person.RULESET)
    served.start(
        port_forward("8080:80", "5000-5005"), port_forward("53", proto="udp"), port_forward("9", proto="sctp")
    )
    problems = [problem for problem in served.problems() if problem["id"] != "guest-unreachable"]
    assert problems == []


def test_rate_limits_do_not_drop_probes(served: Served) -> None:
    served.start(port_forward("8080:80"), port_forward("8081:80"), port_forward("8082:80"))
    served.shell(
        chain(
            "forward",
            "ct state established accept; ct state new limit rate 1/minute burst 1 packets accept",
            policy="drop",
        )
    )
    assert served.problems() == []


def test_table_that_cannot_be_copied_is_told(served: Served) -> None:
    """Rules of nft in a table of iptables: neither program has the whole of it."""
    served.start()
    served.shell(
        "iptables -A FORWARD -p udp -m string --algo bm --string x -j DROP; "
        "nft add set ip filter s '{ type ipv4_addr; }'; nft add rule ip filter FORWARD ip saddr @s drop"
    )
    (problem,) = served.problems()
    assert problem["id"] == "not-verified"
    assert "ip filter" in problem["message"]


def test_reverse_path_filter_is_found(served: Served) -> None:
    served.lab.second_client()
    served.host.ip(f"route add 203.0.113.0/24 dev {UPLINK2}")
    served.host.sysctl("net.ipv4.conf.all.rp_filter", 0)
    served.host.sysctl(f"net.ipv4.conf.{UPLINK}.rp_filter", 1)
    served.start(port_forward("8080:80", attributes=f'dev="{UPLINK}" source="203.0.113.0/24"'))
    (problem,) = served.problems()
    assert problem["id"] == "not-routed"
    assert f"rp_filter) on {UPLINK}" in problem["message"]
    served.shell(problem["fix"].partition(";")[0])
    # Now the answers go the other way; that is asymmetric, and works.
    assert served.problems() == []


def test_missing_route_is_told_in_the_kernel_s_words(served: Served) -> None:
    served.start()
    served.host.ip(f"route add unreachable {GUEST4}/32")
    assert served.reached(v4=False)
    found = {problem["id"]: problem["message"] for problem in served.problems()}
    assert "No route to host" in found["not-routed"]
    served.host.ip(f"route del unreachable {GUEST4}/32")
    assert served.problems() == []


def test_policy_routing_is_copied(served: Served) -> None:
    served.start()
    served.host.ip(f"rule add from {GUEST4} lookup 77", "route add blackhole default table 77")
    assert served.reached(v4=False)
    assert served.found() == {"not-routed"}
    served.host.ip(f"rule del from {GUEST4} lookup 77")
    assert served.problems() == []


def test_guest_that_does_not_answer_is_found(served: Served) -> None:
    served.start()
    served.web.ip("link set eth0 down")
    served.host.ip("neighbour flush dev virbr0")
    found = served.problems()
    assert [(problem["id"], problem["severity"]) for problem in found] == [("guest-unreachable", "error")] * 2
    assert f"no answer to ARP from {GUEST4}" in found[0]["message"]
    served.web.ip("link set eth0 up")
    served.lab.readdress(served.web, GUEST4, GUEST6)
    # The kernel enables a bridge port in the background.
    eventually(served.reached, "the guest is up again")
    assert served.problems() == []


def test_closed_port_of_the_guest_is_found(served: Served) -> None:
    served.start(port_forward("8080:81"), port_forward("5353", proto="udp"), port_forward("6000-6010"))
    found = {problem["message"].partition(":")[0]: problem for problem in served.problems()}
    assert {problem["id"] for problem in found.values()} == {"guest-unreachable"}
    assert sum("tcp/81" in problem["message"] for problem in found.values()) == 1
    served.web.serve("tcp", 81)
    served.web.serve("udp", 5353)
    assert served.problems() == []


def test_firewall_in_the_guest_is_found(served: Served) -> None:
    served.start()
    served.web.nft("table inet f { chain c { type filter hook input priority 0; tcp dport 80 drop; }; }")
    found = served.problems()
    assert {problem["id"] for problem in found} == {"guest-unreachable"}
    assert "allow tcp/80 in the guest's own firewall" in found[0]["fix"]
    served.web.nft("delete table inet f")
    assert served.problems() == []


def test_another_machine_with_the_guest_s_address_is_found(served: Served) -> None:
    other = served.lab.guest("other", None, None, "52:54:00:00:00:99")
    served.start()
    served.web.ip("address flush dev eth0 scope global")
    served.lab.readdress(other, GUEST4, None)
    served.host.ip("neighbour flush dev virbr0")
    messages = [problem["message"] for problem in served.problems()]
    assert any("another machine answers" in message for message in messages)


@pytest.mark.skipif(not has_br_netfilter(), reason="the kernel module br_netfilter is not loaded")
def test_br_netfilter_is_found_and_both_fixes_work(served: Served) -> None:
    served.start()
    bridge_netfilter(served.host, True)
    assert served.web.unanswered(HOST4, 8080)
    (problem,) = served.problems()
    assert problem["id"] == "br-netfilter"
    assert 'hairpin = "ports"' in problem["fix"]
    served.shell(problem["fix"].rpartition("needs it, ")[2])
    assert served.problems() == []
    assert served.web.ask(HOST4, 8080) is not None
    bridge_netfilter(served.host, True)
    served.lab.configure('[forward]\nhairpin = "ports"\n')
    served.start()
    assert served.problems() == []
    assert served.web.ask(HOST4, 8080) is not None


def test_bridge_port_is_no_device_to_listen_on(served: Served) -> None:
    """As in the layout where the host's only NIC is in a bridge, which has the address."""
    served.host.ip(
        "link add br0 type bridge forward_delay 0", f"link set {UPLINK} master br0",
        f"address flush dev {UPLINK}",
        f"address add {HOST4}/24 dev br0", f"address add {HOST6}/64 dev br0", "link set br0 up",
    )  # fmt: skip
    served.start(port_forward("8080:80", attributes=f'dev="{UPLINK}"'))
    (problem,) = served.problems()
    assert (problem["id"], problem["fix"]) == ("device-is-port", 'use dev="br0" (virsh edit web)')
    assert served.reached(v4=False, v6=False)
    served.start(port_forward("8080:80", attributes='dev="br0"'))
    assert served.problems() == []
    assert served.reached()
    served.shell(chain("forward", "tcp dport 80 drop"))
    assert served.found() == {"forward-dropped"}


def test_libvirt_that_rejects_is_found(served: Served) -> None:
    served.start()
    served.shell(
        "nft 'table ip libvirt_network { chain guest_input { oifname virbr0 counter reject; }; "
        "chain forward { type filter hook forward priority filter; jump guest_input; }; }'"
    )
    assert served.reached(v4=False)
    (problem,) = served.problems()
    assert (problem["id"], problem["fix"]) == ("libvirt-rejects", "virt-forward sync")


def state(host: Ns) -> str:
    """Return all that a check could have changed."""
    commands = [
        ["nft", "-a", "list", "ruleset"], ["ip", "address"], ["ip", "route", "show", "table", "all"],
        ["ip", "-6", "route", "show", "table", "all"], ["ip", "rule"],
        ["sysctl", "-a", "--pattern", r"net\..*(forward|rp_filter|bridge)"],
    ]  # fmt: skip
    return "\n".join(host.run(words, check=False).out for words in commands)


def test_nothing_of_the_host_is_changed(served: Served) -> None:
    served.start()
    served.shell(DOCKER)
    served.lab.command("check", check=False)
    before = state(served.host)
    served.lab.command("check", check=False)
    assert state(served.host) == before


# A shell that starts the tests in the background has them ignore SIGINT.
SLEEPS = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from virt_forward.check.clone import namespace
def work():
    print(open("/proc/self/stat").read().split()[0], flush=True)
    time.sleep(60)
namespace.run_in_clone(work, float(sys.argv[1]))
"""


def start_sleeper(timeout: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SLEEPS, timeout],
        env={"PYTHONPATH": str(REPO / "lib")}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.fixture(params=[signal.SIGKILL, signal.SIGINT, None], ids=["killed", "interrupted", "timeout"])
def ended(request: pytest.FixtureRequest) -> Iterator[Path]:
    """The process in the clone, after the command above it has ended in one way or another."""
    with start_sleeper("0.5" if request.param is None else "60") as process:
        assert process.stdout
        clone = Path("/proc") / process.stdout.readline().strip()
        assert clone.exists()
        if request.param:
            os.kill(process.pid, request.param)
        _, told = process.communicate(timeout=10)
    if request.param is None:
        assert "NamespaceError" in told
    yield clone


def test_clone_ends_with_the_command(ended: Path) -> None:
    """Its namespaces have no name, and no process but this one."""
    eventually(
        lambda: not ended.exists() or "\nState:\tZ" in (ended / "status").read_text(), "the clone has ended"
    )


def test_forbidden_namespaces_are_reported_in_one_sentence(served: Served) -> None:
    served.start()
    done = served.host.run(
        ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin",
         "python3", "-m", "virt_forward.cli", "check"],
        env={**netns.HOOK_ENV, **served.lab.env, "PYTHONPATH": str(REPO / "lib")}, check=False,
    )  # fmt: skip
    assert "[not-verified]" in done.out
    assert "a network namespace cannot be made or wired here: Operation not permitted" in done.out
    assert "Traceback" not in done.err


def test_many_rules_and_forwards(served: Served) -> None:
    served.server.close()
    served.start(*(port_forward(f"{8000 + number}:80") for number in range(100)))
    rules = "".join(f"ip saddr 198.51.{n // 250}.{n % 250} drop\n" for n in range(2000))
    served.host.nft(
        f"table inet theirs {{ chain c {{ type filter hook forward priority 0; policy drop;\n{rules}}}\n}}\n"
    )
    found = [problem for problem in served.problems() if problem["id"] == "forward-dropped"]
    assert len(found) == 1
    assert "and 95 more" in found[0]["message"]
    served.shell(found[0]["fix"].partition(";")[0])
    assert "forward-dropped" not in served.found()


def test_clients_of_other_families_and_addresses_are_not_needed(served: Served) -> None:
    """A host whose client side has one family alone is checked for that."""
    served.host.ip(f"address del {HOST6}/64 dev {UPLINK}")
    served.host.ip(f"route add default via {CLIENT4}")
    served.start()
    assert served.problems() == []
    assert CLIENT6  # the client still has its own
