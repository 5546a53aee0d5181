"""A whole Debian with systemd: install, reload what people reload, take it away again."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator

import pytest

from support import machine as machines
from support.guest import Guest
from support.guest import fetch as guest_fetch
from support.host import NFTABLES
from support.machine import Machine
from support.metrics import openmetrics
from support.netns import Ns
from support.proc import eventually
from support.xml import forwards, host_ip, port_forward
from system.conftest import WEB

pytestmark = pytest.mark.system

# No static lease is for this one: networkd gives it an address of the pool.
EARLY = Guest("early", forwards(port_forward("8081:80")), mac="52:54:00:00:00:77", ip6=None)
LATE = Guest("late", forwards(port_forward("8082:80")), mac="52:54:00:00:00:78", ip6=None)
ANOTHER_PORT = forwards(host_ip("fd10:10::200"), port_forward("8090:80"))
WITHOUT_INCLUDE = NFTABLES.replace('include "/run/virt-forward/*.nft"\n', "")


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """A Debian with a guest that was running before we were installed, and one started after."""
    with machines.machine() as made:
        made.start(EARLY)
        made.wait_lease(EARLY)
        # Containers have a read-only /sys, real hosts have not.
        made.run(["mount", "--bind", INTERFACES, INTERFACES])
        made.run(["mount", "-o", "remount,rw", INTERFACES])
        # What hooks and drop-in do is seen without the service.
        made.install("--no-service")
        assert made.run(["systemctl", "is-enabled", "virt-forward"], check=False).out == "disabled\n"
        assert made.state(EARLY) == "running", "installing harms no guest"
        made.start(WEB)
        made.wait_booted(WEB)
        yield made


@pytest.fixture
def theirs(machine: Machine) -> Iterator[None]:
    """Put the person's nftables.conf back as it was."""
    yield
    machine.write("/etc/nftables.conf", NFTABLES)
    machine.systemctl("reload", "nftables")
    assert machine.fetch(8080) == WEB.page


def test_libvirt_runs_the_hooks_once_they_are_installed(machine: Machine) -> None:
    assert machine.fetch(8080) == WEB.page, machine.explain()
    assert machine.fetch6(8080) == WEB.page, machine.explain()


def test_guest_that_ran_before_is_forwarded_to_its_lease(machine: Machine) -> None:
    lease = machine.wait_lease(EARLY)
    rows = [row for row in machine.forwards() if row["domain"] == "early"]
    assert [(row["start"], row["guest"], row["state"]) for row in rows] == [(8081, [lease], "active")]
    assert machine.fetch(8081) == EARLY.page, machine.explain()


def test_restart_of_libvirtd_keeps_guest_and_forward(machine: Machine) -> None:
    pid = machine.qemu_pid(WEB)
    machine.restart_libvirtd()
    eventually(lambda: machine.state(WEB) == "running", "libvirtd finds the guest again")
    assert machine.qemu_pid(WEB) == pid
    assert machine.fetch(8080) == WEB.page, machine.explain()


def test_reload_of_libvirtd_is_what_a_new_hook_needs(machine: Machine) -> None:
    """A reload is told by systemd alone; ``check`` believes it."""

    def found() -> bool:
        return "hook-not-loaded" in machine.command("check", "--json", check=False).out

    # A file that is changed in the second in which libvirtd started counts as older.
    time.sleep(1.1)
    machine.run(["touch", "/etc/libvirt/hooks/qemu"])
    assert found()
    machine.systemctl("reload", "libvirtd")
    assert not found()


@pytest.mark.parametrize("verb", ["reload", "restart"])
@pytest.mark.parametrize("conf", [NFTABLES, WITHOUT_INCLUDE], ids=["include", "no include"])
def test_reload_of_nftables_keeps_the_forward(machine: Machine, theirs: None, conf: str, verb: str) -> None:
    machine.write("/etc/nftables.conf", conf)
    machine.systemctl(verb, "nftables")
    assert machine.fetch(8080) == WEB.page, machine.explain()


CONFIG = '[forward]\nlocalhost = true\nhairpin = "ports"\n'
INTERFACES = "/sys/devices/virtual/net"
LOCALNET = "/proc/sys/net/ipv4/conf/virbr0/route_localnet"
BRIDGES_CALL = "/proc/sys/net/bridge/bridge-nf-call-iptables"
# What the service and its programs do, one command a line, in the words of a shell.
ALLOWED = """\
nft list ruleset
nft add table inet lab-probe
nft delete table inet lab-probe
ip -json neighbour
ip route get 10.10.0.200
ss -Htlnp
conntrack -L
iptables-nft -w 5 -S
iptables-legacy -w 5 -S
readlink /proc/1/fd/0
cat /var/lib/systemd/network/dhcp-server-lease/virbr0
cat /var/lib/lab/file-of-somebody
logger -t virt-forward probe
virsh -c qemu:///system list
touch /run/virt-forward/probe
rm /run/virt-forward/probe
(exec 9>/run/xtables.lock)
cat /proc/sys/net/ipv4/ip_forward >/proc/sys/net/ipv4/ip_forward
/usr/bin/python3 -c 'import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)'
/usr/bin/python3 -c 'import threading, os; threading.Thread(target=os.system, args=["true"]).start()'
"""
FORBIDDEN = """\
touch /etc/probe
touch /run/probe
touch /var/lib/libvirt/probe
touch /usr/local/lib/virt-forward/probe
cat /proc/sys/kernel/core_pattern >/proc/sys/kernel/core_pattern
unshare --mount true
chown 1 /run/virt-forward
touch /root/probe
"""
PROBE = """\
while read -r line; do
    sh -c "$line" >/dev/null 2>&1 && echo "yes $line" || echo "no $line"
done </run/lab/words >/run/virt-forward/told
"""


@pytest.fixture
def service(machine: Machine) -> Iterator[Machine]:
    """The service, in its unit."""
    machine.write("/etc/virt-forward/config.toml", CONFIG)
    machine.systemctl("start", "virt-forward")
    yield machine
    machine.systemctl("stop", "virt-forward")
    machine.run(["rm", "-r", "/etc/virt-forward"])
    machine.command("sync")


def test_service_restores_a_flushed_table(service: Machine) -> None:
    service.run(["nft", "delete", "table", "inet", "virt-forward"])
    service.wait_page(8080, WEB.page, "the table is back")
    service.systemctl("stop", "virt-forward")
    assert service.fetch(8080) == WEB.page, "stopping the service closes nothing"


def test_service_follows_a_metadata_edit(service: Machine) -> None:
    set_live = ["metadata", WEB.name, "--uri", "urn:virt-forward:1", "--key", "vf", "--live", "--set"]
    declared = [re.sub(r"(</?)vf:|:vf(?==)", r"\1", text) for text in (ANOTHER_PORT, WEB.metadata)]
    service.virsh(*set_live, declared[0])
    service.wait_page(8090, WEB.page, "the edited forward works")
    service.virsh(*set_live, declared[1])
    service.wait_page(8080, WEB.page, "the first forward works again")
    assert service.closed(8090)


def test_service_follows_a_lease(service: Machine) -> None:
    service.start(LATE)
    lease = service.wait_lease(LATE)
    service.wait_page(8082, LATE.page, f"the forward leads to {lease}")
    service.virsh("destroy", LATE.name)


def test_service_sets_the_switches_of_the_kernel(machine: Machine) -> None:
    machine.systemctl("stop", "virt-forward")
    vnet = machine.virsh("domiflist", WEB.name).out.split()[0]
    hairpin = f"/sys/class/net/{vnet}/brport/hairpin_mode"
    assert [machine.read(path) for path in (LOCALNET, hairpin)] == ["0\n", "0\n"]
    before = machine.read(BRIDGES_CALL)
    # The kernel has it only where the machine has loaded br_netfilter.
    if before:
        machine.run(["tee", BRIDGES_CALL], stdin="1\n")
    machine.write("/etc/virt-forward/config.toml", CONFIG)
    machine.systemctl("start", "virt-forward")
    try:
        eventually(lambda: machine.read(LOCALNET) == "1\n", "route_localnet is set")
        if before:
            assert machine.read(hairpin) == "1\n", "hairpin_mode is set"
    finally:
        machine.run(["rm", "-r", "/etc/virt-forward"])
        machine.systemctl("restart", "virt-forward")
        eventually(lambda: machine.read(LOCALNET) == "0\n", "route_localnet is taken back")
        if before:
            machine.run(["tee", BRIDGES_CALL], stdin=before)
        machine.systemctl("stop", "virt-forward")


def test_unit_allows_what_the_service_does_and_no_more(machine: Machine) -> None:
    vnet = machine.virsh("domiflist", WEB.name).out.split()[0]
    hairpin = f"echo 0 >/sys/class/net/{vnet}/brport/hairpin_mode"
    machine.write("/run/lab/words", f"{ALLOWED}{hairpin}\n{FORBIDDEN}")
    machine.write("/run/lab/probe", PROBE)
    machine.run(["install", "-d", "-m", "0700", "-o", "nobody", "/var/lib/lab"])
    machine.run(["install", "-m", "0600", "-o", "nobody", "/dev/null", "/var/lib/lab/file-of-somebody"])
    post = "[Service]\nExecStartPost=/bin/sh /run/lab/probe\n"
    machine.write("/run/systemd/system/virt-forward.service.d/probe.conf", post)
    machine.systemctl("daemon-reload")
    try:
        machine.systemctl("start", "virt-forward")
        told = machine.read("/run/virt-forward/told").splitlines()
    finally:
        machine.systemctl("stop", "virt-forward")
        machine.run(["rm", "-r", "/run/systemd/system/virt-forward.service.d", "/run/virt-forward/told"])
        machine.systemctl("daemon-reload")
    allowed = [f"yes {line}" for line in (*ALLOWED.splitlines(), hairpin)]
    assert told == [*allowed, *(f"no {line}" for line in FORBIDDEN.splitlines())]


def test_unit_exposure_is_below_three(machine: Machine) -> None:
    told = machine.run(["systemd-analyze", "security", "virt-forward"], check=False).out
    level = re.search(r"Overall exposure level for virt-forward.service: ([0-9.]+)", told)
    assert level, told
    assert float(level[1]) < 3, told


def test_command_tells_what_is_forwarded(machine: Machine) -> None:
    said = machine.command("list").out
    assert "web" in said
    assert "8080" in said
    assert "10.10.0.200" in said


SECOND = Guest(
    "second",
    forwards(port_forward("8085:80")),
    mac="52:54:00:00:00:79",
    ip6=None,
    interface="<interface type='bridge'>@<source bridge='vmbr0'/></interface>",
)


def test_init_makes_a_bridge_that_leases_and_forwards(machine: Machine, theirs: None) -> None:
    """Bridge, DHCP server, router advertisements and the printed lines, by networkd and nft as they are."""
    uplink = ["--uplink", "enp1s0", "--dns", "9.9.9.9"]
    assert "virbr0 is taken" in machine.command("init", "--bridge", "virbr0", *uplink, check=False).err
    would = machine.command("init", "--dry-run", *uplink).out
    assert not machine.read("/etc/systemd/network/98-vmbr0.netdev")
    said = machine.command("init", "--apply", *uplink).out
    wrote = re.findall(r"^wrote (\S+)$", said, re.MULTILINE)
    try:
        assert wrote == re.findall(r"^==> (\S+)$", would, re.MULTILINE)
        assert "is set up already" in machine.command("init", *uplink, check=False).err
        eventually(
            lambda: "vmbr0" in machine.run(["ip", "-br", "-4", "addr"]).out, "networkd makes the bridge"
        )
        address = re.search(r"Address=(\S+)/24", machine.read(wrote[1]))
        prefix = re.search(r"Prefix=(\S+)/64", machine.read(wrote[1]))
        assert address
        assert prefix
        lines = said.partition("after what is there:")[2].partition("note:")[0].partition("Attach")[0]
        machine.write("/etc/nftables.conf", NFTABLES.replace('include "/run', '#include "/run') + lines)
        machine.systemctl("reload", "nftables")
        machine.start(SECOND)
        lease = machine.wait_lease(SECOND)
        assert lease.rpartition(".")[0] == address[1].rpartition(".")[0]
        machine.command("sync")
        assert machine.fetch(8085) == SECOND.page, machine.explain()
        # The guest has made itself an address of the advertised prefix, from its MAC address (RFC 4291).
        slaac = f"{prefix[1]}5054:ff:fe00:79"
        eventually(
            lambda: guest_fetch(machine.ns.path, slaac, 80) == SECOND.page, f"guest answers at {slaac}"
        )
    finally:
        machine.virsh("destroy", SECOND.name, check=False)
        machine.run(["rm", *wrote])
        machine.run(["networkctl", "delete", "vmbr0"])
        machine.run(["networkctl", "reload"])


def test_check_finds_a_stopped_networkd_and_the_fix_starts_it(machine: Machine) -> None:
    def found() -> dict[str, dict[str, str]]:
        told = json.loads(machine.command("check", "--json", check=False).out)
        return {problem["id"]: problem for problem in told["problems"]}

    machine.systemctl("enable", "systemd-networkd.service")
    assert "networkd-stopped" not in found()
    # The socket, which has messages of the kernel start it, too.
    machine.systemctl("stop", "systemd-networkd.socket", "systemd-networkd.service")
    stopped = found()["networkd-stopped"]
    assert "virbr0, is not running" in stopped["message"]
    machine.run(stopped["fix"].split())
    assert "networkd-stopped" not in found()
    machine.systemctl("disable", "systemd-networkd.service")
    assert "the next boot does not make virbr0" in found()["networkd-stopped"]["message"]
    machine.systemctl("enable", "systemd-networkd.service")


@pytest.fixture(scope="module")
def outside(machine: Machine) -> Ns:
    """Another client, on enp2s0, which nothing configures but this test."""
    return machine.lab.second_client()


def test_init_sets_forwarding_on_an_uplink_of_networkd(machine: Machine, outside: Ns) -> None:
    own = "/etc/systemd/network/20-second.network"
    machine.write(own, "[Match]\nName=enp2s0\n[Network]\nAddress=198.51.100.1/24\nIPv4Forwarding=no\n")
    machine.systemctl("restart", "systemd-networkd")
    forwarding = "/proc/sys/net/ipv4/conf/enp2s0/forwarding"
    eventually(lambda: machine.read(forwarding) == "0\n", "networkd configures the uplink")
    said = machine.command("init", "--apply", "--bridge", "vmbr8", "--uplink", "enp2s0", "--ipv6", "none").out
    wrote = re.findall(r"^wrote (\S+)$", said, re.MULTILINE)
    try:
        assert f"{own}.d/98-vmbr8.conf" in wrote
        eventually(lambda: machine.read(forwarding) == "1\n", "the drop-in takes effect")
        assert machine.read(own).endswith("IPv4Forwarding=no\n"), "their file is as it was"
    finally:
        machine.run(["rm", *wrote, own])
        machine.run(["networkctl", "delete", "vmbr8"])
        machine.run(["networkctl", "reload"])


def test_init_lan_moves_the_address_to_the_bridge(machine: Machine, outside: Ns) -> None:
    machine.run(["ip", "address", "replace", "198.51.100.1/24", "dev", "enp2s0"])
    mac = machine.read("/sys/class/net/enp2s0/address")
    said = machine.command("init", "--lan", "enp2s0", "--bridge", "lan0", "--apply").out
    wrote = re.findall(r"^wrote (\S+)$", said, re.MULTILINE)
    try:
        eventually(
            lambda: "198.51.100.1" in machine.run(["ip", "-br", "addr", "show", "lan0"], check=False).out,
            "moved",
        )
        assert "198.51.100.1" not in machine.run(["ip", "-br", "addr", "show", "enp2s0"]).out
        assert machine.read("/sys/class/net/lan0/address") == mac, "so that a lease stays the same"
        eventually(
            lambda: guest_fetch(outside.path, "198.51.100.1", 8080) == WEB.page,
            "the client on the LAN reaches the host through the bridge",
        )
    finally:
        machine.run(["rm", *wrote])
        machine.run(["networkctl", "delete", "lan0"])
        machine.run(["networkctl", "reload"])


def test_metrics_count_what_passes_a_forward(machine: Machine) -> None:
    path = "/run/lab/virt-forward.prom"

    def packets() -> float:
        machine.command("metrics", "--output", path)
        found = {family.name: family for family in openmetrics(machine.read(path))}
        assert found["virt_forward_table_matches"].samples[0].value == 1
        counted = found["virt_forward_forward_packets"].samples
        return sum(each.value for each in counted if each.labels["domain"] == WEB.name)

    before = packets()
    assert machine.fetch(8080) == WEB.page
    assert packets() >= before + 6, "a page takes three packets each way at least"
    machine.run(["nft", "add", "rule", "inet", "virt-forward", "forward", "counter"])
    text = machine.command("metrics").out
    machine.command("sync")
    assert "virt_forward_table_matches 0" in text


def test_uninstalling_leaves_the_guests_and_nothing_else() -> None:
    with machines.machine() as machine:
        look = ["find", "/etc", "/usr/local", "/run/virt-forward"]
        before = machine.run(look, check=False).out
        machine.install()
        machine.start(WEB)
        assert machine.our_table()
        for _ in range(2):
            assert machine.run(["systemctl", "is-enabled", "virt-forward"]).out == "enabled\n"
            assert machine.run(["systemctl", "is-active", "virt-forward"]).out == "active\n"
            machine.install()
        # As an interrupted run may leave it.
        machine.run(["rm", "/etc/systemd/system/virt-forward.service"])
        machine.systemctl("daemon-reload")
        for _ in range(2):
            machine.install("--uninstall")
        assert machine.state(WEB) == "running"
        assert machine.our_table() == ""
        after = machine.run(look, check=False).out
        assert set(after.split()) - set(before.split()) == {f"/etc/libvirt/qemu/{WEB.name}.xml"}
        status = machine.run(["systemctl", "status", "virt-forward"], check=False)
        assert "could not be found" in status.err, status
        machine.virsh("destroy", WEB.name)
        machine.virsh("start", WEB.name)
