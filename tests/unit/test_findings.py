"""Each problem is found where it exists, and only there."""

import os
from ipaddress import ip_address, ip_network

import pytest

from support.proc import REPO
from unit.build import UUID, domain_xml
from virt_forward.check import findings, includes, listing, reading
from virt_forward.check.clone.probes import Probe
from virt_forward.check.clone.verdict import Obstacle, Report, Result
from virt_forward.check.facts import Answer, Clash, Facts, Flush, Forwarding, Hook, Invalid, Response, Veto
from virt_forward.claims import vetoes
from virt_forward.claims.absent import Host
from virt_forward.config import Config
from virt_forward.host import process
from virt_forward.libvirtd.api import DomainState
from virt_forward.metadata.domain import MetadataError
from virt_forward.model import Domain, Endpoint, Forward, Guest, Nic

WEB = Guest(
    "1a2b3c4d-0000-4000-8000-000000000001",
    "web",
    forwards=(Forward("tcp", 8080, 8080, 80),),
    endpoints=(Endpoint(ip_address("10.10.0.200"), "virbr0", "52:54:00:00:00:01"),),
)
MADE = frozenset({"virbr0"})
"""Web's bridge, if networkd makes it."""

HOOK = Hook("qemu", "/etc/libvirt/hooks/qemu", True, True, 100.0, 200.0)
FLUSH = Flush("/etc/nftables.conf", True, True, False, False)
TABLE = 'table inet virt-forward {\n\tset own {\n\t\ttype ifname\n\t\telements = { "b", "a" }\n\t}\n}\n'
UNKNOWN = WEB._replace(
    endpoints=(),
    nics=(Nic("52:54:00:00:00:01", "bridge", "virbr0"),),
    lans=((ip_network("10.10.0.0/24"), "virbr0"),),
)
HOST = Host(
    frozenset({ip_address("192.0.2.1")}), (ip_network("127.0.0.0/8"),), frozenset({"enp1s0", "virbr0"})
)
ON_AN_ADDRESS = (Forward("tcp", 8080, 8080, 80, ip_address("203.0.113.7")),)
ENDPOINT = WEB.endpoints[0]
PROBE = Probe(
    WEB.uuid,
    "web",
    WEB.forwards[0],
    ENDPOINT,
    "enp1s0",
    ip_address("192.0.2.9"),
    ip_address("192.0.2.1"),
    8080,
    80,
)
DROPPED = Obstacle("dropped", False, "inet", "filter", "forward", "forward", "forward", priority="filter")


def stopped(*obstacles: Obstacle) -> Facts:
    """Return the facts of a host where these obstacles stop a packet to web's forward."""
    return GOOD._replace(report=Report((Result(PROBE, obstacles, False),)))


def unanswered(answer: Answer) -> Facts:
    return GOOD._replace(responses=(Response(WEB.uuid, ENDPOINT, WEB.forwards[0], answer),))


ON_A_DEVICE = (Forward("tcp", 8080, 8080, 80, dev="enp9s0"),)
LATE = Veto(WEB.uuid, WEB.forwards[0], vetoes.listening("tcp", 8080, ip_address("0.0.0.0"), "nginx"))
GOOD = Facts(
    guests=(WEB,),
    running=(Domain("web", WEB.uuid),),
    table=TABLE,
    expected_table=TABLE.replace('"b", "a"', '"a", "b"'),
    hooks=(HOOK, HOOK._replace(driver="network")),
    flush=FLUSH,
    forwarding=(Forwarding("enp1s0", 4, True), Forwarding("enp1s0", 6, False)),
)


def test_healthy_host_has_no_problems() -> None:
    assert findings.problems(GOOD) == []


@pytest.mark.parametrize(
    ("facts", "found", "domain"),
    [
        (GOOD._replace(hooks=(HOOK._replace(ours=False),)), "hook-missing", None),
        (GOOD._replace(hooks=(HOOK._replace(executable=False),)), "hook-missing", None),
        (GOOD._replace(hooks=(HOOK._replace(changed=201.0),)), "hook-not-loaded", None),
        (GOOD._replace(table=None), "table-missing", None),
        (GOOD._replace(running=(Domain("db", "2"), Domain("web", WEB.uuid))), "table-missing", "db"),
        (GOOD._replace(table=TABLE.replace('"a"', '"c"')), "table-differs", None),
        (GOOD._replace(expected_table=None), "table-differs", None),
        (GOOD._replace(flush=FLUSH._replace(included_after=False)), "flush-unprotected", None),
        (GOOD._replace(forwarding=(Forwarding("enp1s0", 4, False),)), "ip-forwarding-off", None),
        (GOOD._replace(networkd_ipforward=("98-virbr0.network",)), "networkd-ipforward", None),
        (
            GOOD._replace(guests=(WEB._replace(conflicts=((Forward("tcp", 22, 22, 22), "taken"),)),)),
            "host-port-taken",
            "web",
        ),
        (GOOD._replace(guests=(UNKNOWN,)), "no-address", "web"),
        (
            GOOD._replace(invalid=(Invalid(MetadataError(Domain("db", "2"), ("a", "b"))),)),
            "metadata-invalid",
            "db",
        ),
        (GOOD._replace(vetoes=(LATE,)), "host-port-taken", "web"),
        (GOOD._replace(guests=(WEB._replace(forwards=ON_AN_ADDRESS),), host=HOST), "address-absent", "web"),
        (GOOD._replace(guests=(WEB._replace(forwards=ON_A_DEVICE),), host=HOST), "device-absent", "web"),
        (GOOD._replace(config=Config(uplinks=("enp1s0", "enp9s0")), host=HOST), "device-absent", None),
        (GOOD._replace(host=HOST._replace(devices=frozenset({"enp1s0"}))), "device-absent", "web"),
        (
            GOOD._replace(running=(Domain("db", "2", (Nic("", "user"),)), Domain("web", WEB.uuid))),
            "table-missing",
            "db",
        ),
        (stopped(DROPPED), "forward-dropped", "web"),
        (stopped(DROPPED._replace(table="libvirt_network", chain="guest_input")), "libvirt-rejects", "web"),
        (stopped(DROPPED._replace(kind="translated", hook="prerouting", handle=3)), "shadowed", "web"),
        (stopped(Obstacle("local")), "shadowed", "web"),
        (stopped(Obstacle("forwarding", True, detail="virbr0")), "ip-forwarding-off", None),
        (stopped(Obstacle("rp_filter", detail="enp1s0")), "not-routed", "web"),
        (stopped(Obstacle("unrouted", detail="No route to host")), "not-routed", "web"),
        (stopped(Obstacle("misled", detail="10.10.0.99")), "not-verified", "web"),
        (stopped(Obstacle("unknown", detail="it is lost")), "not-verified", "web"),
        (GOOD._replace(unverified="no namespaces here"), "not-verified", None),
        (GOOD._replace(report=Report((), (("ip x", "syntax error"),))), "not-verified", None),
        (unanswered("silent"), "guest-unreachable", "web"),
        (unanswered("foreign"), "guest-unreachable", "web"),
        (unanswered("filtered"), "guest-unreachable", "web"),
        (unanswered("refused"), "guest-unreachable", "web"),
        (GOOD._replace(ports={"enp1s0": "br0"}, config=Config(uplinks=("enp1s0",))), "device-is-port", None),
        (
            GOOD._replace(guests=(WEB._replace(forwards=ON_A_DEVICE),), ports={"enp9s0": "br0"}),
            "device-is-port",
            "web",
        ),
        (GOOD._replace(clashes=(Clash("default", "virbr0", "networkd"),)), "bridge-name-clash", None),
        (GOOD._replace(networkd_bridges=MADE, networkd=(False, True)), "networkd-stopped", None),
        (GOOD._replace(networkd_bridges=MADE, networkd=(True, False)), "networkd-stopped", None),
        (GOOD._replace(without_hairpin=((WEB.uuid, "vnet0"),)), "br-netfilter", "web"),
    ],
)
def test_problem_is_found_with_fix(facts: Facts, found: str, domain: str | None) -> None:
    (problem,) = findings.problems(facts)
    assert (problem.id, problem.domain) == (found, domain)
    assert problem.message
    assert problem.fix


def test_more_specific_forward_of_another_guest_is_named() -> None:
    other = WEB._replace(uuid="2", name="db", endpoints=(ENDPOINT._replace(ip=ip_address("10.10.0.99")),))
    facts = stopped(Obstacle("misled", detail="10.10.0.99"))._replace(guests=(WEB, other))
    (problem,) = (item for item in findings.problems(facts) if item.domain == "web")
    assert (problem.id, problem.severity) == ("shadowed", "warning")
    assert "goes to guest db, by a more specific forward" in problem.message


def test_more_specific_forward_of_the_same_guest_is_no_problem() -> None:
    assert not [*findings.problems(stopped(Obstacle("misled", detail=str(ENDPOINT.ip))))]


def test_invalid_metadata_of_any_domain_is_found() -> None:
    broken = domain_xml('<forwards xmlns="urn:virt-forward:1"><portForward/></forwards>')
    stopped, running, transient = (UUID.replace("9b8b", word) for word in ("aaaa", "bbbb", "cccc"))
    states = [
        DomainState("web", stopped, False, broken),
        DomainState("db", running, True, domain_xml(name="db")),
        DomainState("no", transient, True, b"<x/>"),
    ]
    # As virt-manager's XML tab leaves it: the guest runs as before, and its next start is refused.
    found, invalid = reading.parsed(states, {running: broken})
    assert not found
    assert [item.definition for item in invalid] == ["only", "config"]
    facts = GOOD._replace(invalid=tuple(invalid))
    now, later = findings.problems(facts)
    wrong = "line 4: <portForward>: attribute proto is missing"
    assert now.message.startswith(wrong)
    assert later.message.startswith(f"the next start is refused: {wrong}")
    assert now.fix == later.fix == "correct it with: virsh edit web"
    _, later = findings.problems(facts._replace(config=Config(on_error="warn")))
    assert later.message.startswith(f"the next start has no forwards: {wrong}")


def test_metadata_of_a_running_guest_is_corrected_where_it_is_wrong() -> None:
    broken = domain_xml('<forwards xmlns="urn:virt-forward:1"><portForward/></forwards>')
    _, invalid = reading.parsed([DomainState("web", UUID, True, broken)], {})
    (problem,) = findings.problems(GOOD._replace(invalid=tuple(invalid)))
    live = "correct it with: virsh metadata web --uri urn:virt-forward:1 --key vf --edit --live"
    assert (problem.id, problem.fix) == ("metadata-invalid", live)


def test_absent_bridge_is_one_problem_and_not_what_follows_from_it() -> None:
    lost = stopped(Obstacle("unknown", False, detail="it is lost before the prerouting hook")).report
    facts = unanswered("silent")._replace(report=lost)
    assert {problem.id for problem in findings.problems(facts)} == {"not-verified", "guest-unreachable"}
    absent = facts._replace(host=HOST._replace(devices=frozenset({"enp1s0"})))
    assert [problem.id for problem in findings.problems(absent)] == ["device-absent"]


def test_late_listener_problem_names_program_port_and_guest() -> None:
    (problem,) = findings.problems(GOOD._replace(vetoes=(LATE,)))
    assert (problem.severity, problem.domain) == ("warning", "web")
    assert "tcp/8080 is taken by nginx on the host" in problem.message
    assert "ss -Hlntp sport = :8080" in problem.fix


def test_absent_address_is_one_problem_for_all_forwards() -> None:
    many = tuple(Forward("tcp", port, port, 80, ip_address("203.0.113.7")) for port in range(8001, 8010))
    (problem,) = findings.problems(GOOD._replace(guests=(WEB._replace(forwards=many),), host=HOST))
    assert problem.severity == "warning"
    assert "203.0.113.7:8001:80/tcp" in problem.message
    assert "and 4 more cannot be reached: no interface of this host has 203.0.113.7 now" in problem.message
    assert "virsh edit web" in problem.fix


def test_present_address_and_device_are_no_problem() -> None:
    present = (
        Forward("tcp", 8080, 8080, 80, ip_address("192.0.2.1"), "enp1s0"),
        Forward("tcp", 8081, 8081, 80, ip_address("127.0.0.9")),
    )
    facts = GOOD._replace(
        guests=(WEB._replace(forwards=present),), host=HOST, config=Config(uplinks=("enp1s0",))
    )
    assert findings.problems(facts) == []
    prepared = WEB._replace(forwards=ON_AN_ADDRESS, phase="prepared")
    assert findings.problems(facts._replace(guests=(prepared,))) == []


def test_forwards_that_one_chain_drops_are_one_problem() -> None:
    second = PROBE._replace(forward=Forward("udp", 53, 53, 53), port=53, to=53)
    other = PROBE._replace(uuid="2", guest="db")
    results = tuple(Result(probe, (DROPPED,), True) for probe in (PROBE, second, other))
    web, db = findings.problems(GOOD._replace(report=Report(results)))
    assert (web.domain, db.domain) == ("web", "db")
    assert web.message == (
        "8080:80/tcp, 53/udp from enp1s0 (IPv4): the packet is dropped by chain forward of table inet filter "
        "(its policy)"
    )
    assert web.fix.startswith("nft insert rule inet filter forward ct label 100 accept; to keep it, add")
    assert "/etc/nftables.conf" in web.fix


def test_forwarding_that_is_off_on_an_uplink_is_told_once() -> None:
    facts = stopped(Obstacle("forwarding", detail="enp1s0"))
    off = facts._replace(forwarding=(Forwarding("enp1s0", 4, False),))
    (problem,) = findings.problems(off)
    assert problem.id == "ip-forwarding-off"


def test_packet_without_a_rule_in_the_kernel_is_no_problem_of_its_own() -> None:
    facts = stopped(Obstacle("local"))._replace(table=TABLE.replace('"a"', '"c"'))
    assert [problem.id for problem in findings.problems(facts)] == ["table-differs"]


def test_silent_guest_is_one_problem_for_all_its_forwards() -> None:
    more = Forward("tcp", 443, 443, 443)
    silent = tuple(Response(WEB.uuid, ENDPOINT, forward, "silent") for forward in (*WEB.forwards, more))
    (problem,) = findings.problems(GOOD._replace(responses=silent))
    assert (problem.id, problem.severity) == ("guest-unreachable", "error")


@pytest.mark.parametrize(
    ("systemd", "version", "setting"),
    [
        (252, 4, "IPForward=ipv4 in its .network file"),
        (252, 6, "IPForward=yes in its .network file"),
        (256, 4, "IPv4Forwarding=yes in its .network file"),
        (257, 6, "IPv6Forwarding=yes in networkd.conf"),
        (0, 4, "IPv4Forwarding=yes in its .network file"),
    ],
)
def test_setting_of_networkd_is_that_of_its_version(systemd: int, version: int, setting: str) -> None:
    guest = WEB._replace(endpoints=(ENDPOINT, ENDPOINT._replace(ip=ip_address("fd10:10::200"))))
    facts = GOOD._replace(
        guests=(guest,), systemd=systemd, forwarding=(Forwarding("enp1s0", version, False),)
    )
    (problem,) = findings.problems(facts)
    assert problem.fix.endswith(setting)


@pytest.mark.parametrize(
    ("device", "fix"),
    [
        ("enp1s0", "sysctl -w net.ipv4.conf.enp1s0.forwarding=1;"),
        ("eth0.100", "sysctl -w net/ipv4/conf/eth0.100/forwarding=1;"),
        ("lan;reboot", 'sysctl -w net.ipv4.conf."lan;reboot".forwarding=1;'),
    ],
)
def test_forwarding_fix_has_valid_sysctl_key(device: str, fix: str) -> None:
    (problem,) = findings.problems(GOOD._replace(forwarding=(Forwarding(device, 4, False),)))
    assert problem.fix.startswith(fix)


def test_no_address_fix_depends_on_reason() -> None:
    (unknown,) = findings.problems(GOOD._replace(guests=(UNKNOWN,)))
    assert unknown.fix.startswith("wait for its DHCP lease and run virt-forward sync")
    misnamed = UNKNOWN._replace(nics=(Nic("52:54:00:00:00:01", "bridge", "br 0"),))
    (nowhere,) = findings.problems(GOOD._replace(guests=(misnamed,)))
    assert 'the name of its bridge, "br 0", is not supported' in nowhere.message
    assert nowhere.fix == "correct its interfaces, or mac= in its metadata (virsh edit web)"


def test_no_address_fix_is_not_sync_while_the_service_runs() -> None:
    served = GOOD._replace(guests=(UNKNOWN,), flush=FLUSH._replace(service=True))
    (unknown,) = findings.problems(served)
    assert unknown.fix.startswith("wait for its DHCP lease, reserve an address, or add")


@pytest.mark.parametrize(
    ("forward", "word"),
    [
        (Forward("tcp", 80, 80, 80, source=ip_network("2001:db8::/32")), "source="),
        (Forward("tcp", 80, 80, 80, ip_address("2001:db8::1")), "address="),
    ],
)
def test_address_of_a_family_without_subnet_is_not_waited_for(forward: Forward, word: str) -> None:
    waits = UNKNOWN._replace(forwards=(*UNKNOWN.forwards, forward))
    lease, family = findings.problems(GOOD._replace(guests=(waits,)))
    assert lease.fix.startswith("wait for its DHCP lease")
    assert "80/tcp waits: the host has no IPv6 subnet on virbr0" in family.message
    assert family.fix.startswith(f'correct {word}, or add <host ip="…"/> (virsh edit web), or give the host')


def test_no_lease_is_waited_for_on_a_bridge_that_does_not_exist() -> None:
    facts = GOOD._replace(guests=(UNKNOWN,), host=HOST._replace(devices=frozenset({"enp1s0"})))
    (problem,) = findings.problems(facts)
    assert (problem.id, problem.message) == ("device-absent", "its bridge virbr0 does not exist now")


def test_paused_guest_is_told_once_and_is_to_be_resumed() -> None:
    facts = unanswered("silent")._replace(paused=frozenset({WEB.uuid}))
    (problem,) = findings.problems(facts._replace(responses=facts.responses * 2))
    assert (problem.id, problem.fix) == ("guest-unreachable", "virsh resume web")


def test_table_of_guests_that_the_state_lacks_is_told_once() -> None:
    found = findings.problems(GOOD._replace(guests=(), expected_table=None))
    assert [(problem.id, problem.domain) for problem in found] == [("table-missing", "web")]


def test_missing_hook_is_put_back_by_what_has_installed_it() -> None:
    missing = GOOD._replace(hooks=(HOOK._replace(ours=False),))
    assert [problem.fix for problem in findings.problems(missing)] == ["sudo ./install.sh"]
    packaged = missing._replace(packaged=True)
    assert [problem.fix for problem in findings.problems(packaged)] == ["dpkg-reconfigure virt-forward"]
    # It runs this script, which puts the hooks in place by the functions of that file.
    assert f"\n. {reading.PACKAGED_HOOKS}\n" in (REPO / "debian/postinst").read_text()


def test_fix_names_the_daemon_that_runs() -> None:
    later = HOOK._replace(changed=900.0, daemon="virtqemud")
    (problem,) = findings.problems(GOOD._replace(hooks=(later,)))
    assert problem.fix == "systemctl reload virtqemud"


def test_fix_for_guest_without_usable_nic_is_not_sync() -> None:
    facts = GOOD._replace(running=(Domain("web", WEB.uuid), Domain("db", "2", (Nic("", "bridge", "br 0"),))))
    (problem,) = findings.problems(facts)
    assert 'the name of its bridge, "br 0", is not supported' in problem.message
    assert problem.fix == "virsh edit db"


def test_guests_are_not_checked_without_libvirt() -> None:
    assert findings.problems(GOOD._replace(running=None)) == []


def test_new_hook_is_no_problem_if_daemon_is_stopped() -> None:
    assert findings.problems(GOOD._replace(hooks=(HOOK._replace(changed=900.0, loaded_at=0.0),))) == []


def test_hook_changed_in_the_second_of_the_last_look_is_loaded() -> None:
    """libvirt's last look is known in whole seconds only: in doubt nobody is bothered."""
    same = HOOK._replace(changed=HOOK.loaded_at)
    assert findings.problems(GOOD._replace(hooks=(same,))) == []
    later = HOOK._replace(changed=HOOK.loaded_at + 0.01)
    assert [found.id for found in findings.problems(GOOD._replace(hooks=(later,)))] == ["hook-not-loaded"]


def test_last_look_is_rounded_up_to_the_next_second(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    files = {
        "/run/virtqemud.pid": "77\n",
        "/proc/77/stat": f"77 (a) b) S {' '.join(['0'] * 18)} {500 * ticks} 0 0",
        "/proc/stat": "cpu 1\nbtime 1000\n",
    }
    monkeypatch.setattr(reading, "read_text", lambda path: files.get(path, ""))
    assert reading._started("virtqemud") == 1501.0
    assert reading._started("libvirtd") == 0.0
    shown = "ExecReload={ path=x ; start_time=[@2000] }\nExecReload={ path=y ; start_time=[@1990] }\n"
    monkeypatch.setattr(reading, "run", lambda _: process.Result(0, shown, ""))
    assert reading._reloaded("virtqemud") == 2001.0
    monkeypatch.setattr(reading, "run", lambda _: process.Result(0, "ExecReload=\n", ""))
    assert reading._reloaded("virtqemud") == 0.0


@pytest.mark.parametrize(
    ("shown", "at"),
    [("1795779166.159405 host systemd[1]: Reloaded libvirtd.service.\n", 1795779166.159405), ("", 0.0)],
)
def test_reload_that_systemd_has_forgotten_is_in_the_journal(
    monkeypatch: pytest.MonkeyPatch, shown: str, at: float
) -> None:
    monkeypatch.setattr(reading, "run", lambda _: process.Result(0, shown, ""))
    assert reading._logged_reload("libvirtd", 1795779000.5) == at


ISOLATED = WEB._replace(forwards=(), isolate=True)


def test_guest_that_is_only_isolated_waits_for_no_packets() -> None:
    off = (Forwarding("enp1s0", 4, False),)
    assert findings.problems(GOOD._replace(guests=(ISOLATED,), forwarding=off)) == []
    unknown = ISOLATED._replace(endpoints=())
    assert findings.problems(GOOD._replace(guests=(unknown,), forwarding=off)) == []
    both = GOOD._replace(guests=(ISOLATED, WEB._replace(uuid="2", name="db")), forwarding=off)
    assert [found.id for found in findings.problems(both)] == ["ip-forwarding-off"]


def test_guest_that_is_only_isolated_is_not_expected_to_have_open_forwards() -> None:
    def state(name: str, inside: str, *, active: bool = True) -> DomainState:
        metadata = f'<forwards xmlns="urn:virt-forward:1" isolate="yes">{inside}</forwards>'
        return DomainState(name, UUID, active, domain_xml(metadata, name=name))

    opened = '<portForward proto="tcp"><range start="80"/></portForward>'
    states = [state("a", ""), state("b", opened), state("c", opened, active=False)]
    found, invalid = reading.parsed(states, {})
    assert [item.name for item in found] == ["b"]
    assert not invalid


@pytest.mark.parametrize(
    "flush",
    [
        FLUSH,
        FLUSH._replace(included_after=False, drop_in=True),
        FLUSH._replace(included_after=False, service=True),
    ],
)
def test_one_flush_protection_is_enough(flush: Flush) -> None:
    assert findings.problems(GOOD._replace(flush=flush)) == []


OURS = "/run/virt-forward/ruleset.nft"
INCLUDE = 'include "/run/virt-forward/*.nft"\n'


@pytest.mark.parametrize(
    ("text", "flushes", "included"),
    [
        ("", False, False),
        ("flush ruleset\n" + INCLUDE, True, True),
        (INCLUDE + "flush ruleset\n", True, False),
        ("flush ruleset\n#" + INCLUDE, True, False),
        ("# flush ruleset\n", False, False),
        ('flush  ruleset\ninclude "ours.nft"\n', True, True),
        (INCLUDE + 'include "flush.nft"\n', True, False),
        ('include "loop.nft"\n', False, False),
        (f"flush ruleset\ninclude '{OURS}'\n", True, True),
        ("flush ruleset ip\nflush ruleset ip6; flush ruleset bridge # flush ruleset\n", False, False),
        ("flush ruleset inet\n" + INCLUDE, True, True),
        ("flush ruleset ip; flush ruleset\n", True, False),
        ("define wan = enp1s0; flush ruleset; " + INCLUDE, True, True),
        ("# add table ip x; flush ruleset\n", False, False),
        ('table ip x { comment "before; flush ruleset"; }\n', False, False),
        ('table ip x { comment "# no comment"; }; flush ruleset\n', True, False),
    ],
)
def test_includes_are_followed(text: str, flushes: bool, included: bool) -> None:
    files = {"ours.nft": INCLUDE, "flush.nft": "flush ruleset\n", "loop.nft": 'include "loop.nft"\n'}

    def read(pattern: str) -> list[tuple[str, str]]:
        return [(pattern, files[pattern])] if pattern in files else []

    assert includes.flushes(text, read) is flushes
    assert includes.included_after(text, OURS, read) is included


def test_circular_includes_are_read_once() -> None:
    asked: list[str] = []
    everything = "".join(f"include '{number}.nft'\n" for number in range(10))

    def read(pattern: str) -> list[tuple[str, str]]:
        asked.append(pattern)
        return [(pattern, f"flush ruleset\n{everything}" if pattern == "9.nft" else everything)]

    assert includes.flushes(everything, read)
    assert not includes.included_after(INCLUDE + everything, OURS, read)
    assert len(asked) <= 2 * 11 * 10


def test_listings_are_compared_by_parts() -> None:
    other = TABLE.replace("set own", "set other")
    assert listing.differences(listing.parse(TABLE), listing.parse(other)) == [
        "set other is missing",
        "set own is not ours",
    ]
