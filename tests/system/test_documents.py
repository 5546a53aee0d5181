"""Every command of the documentation is run as it is printed, on a Debian with a guest and a machine outside.

How a block says that it is not to be run, or where, or what it prints: ``support.documents``.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

from support import machine as machines
from support.documents import DOCUMENTS, Block, blocks, shows
from support.guest import Guest
from support.machine import SOURCE, Machine
from support.netns import CLIENT4, Ns
from support.proc import REPO, Done, run
from support.xml import forwards, port_forward

pytestmark = pytest.mark.system

README, PAGE_ON_FIREWALLS = REPO / "README.md", REPO / "docs/firewalls.md"
PAGE_ON_NETWORKS = REPO / "docs/libvirt-networks.md"
# As virt-manager would make it; the README moves it to its bridge.
WEB = Guest("web", ip6=None, interface="<interface type='user'>@</interface>")
# Debian's own.
NFTABLES = """\
#!/usr/sbin/nft -f
flush ruleset
table inet filter {
\tchain input { type filter hook input priority filter; }
\tchain forward { type filter hook forward priority filter; }
\tchain output { type filter hook output priority filter; }
}
"""
# The bridge of the other tests goes: a new Debian forwards nothing, and does not start networkd or nftables.
FRESH = f"""\
rm -r /etc/systemd/network/* /etc/systemd/networkd.conf
systemctl disable --now systemd-networkd.service systemd-networkd.socket nftables
ip link delete virbr0
sysctl -q -w net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0
ip route add default via {CLIENT4}
echo 127.0.1.1 $(hostname) >>/etc/hosts
"""
ASK_DHCP = ["busybox", "udhcpc", "-i", "eth0", "-n", "-q", "-t", "2", "-T", "1", "-s", "/bin/true"]
DECLARED = forwards(port_forward("8080:80")).replace("vf:", "").replace(":vf", "")
# Where every document but the README begins: the guest runs, and port 8080 is forwarded to it.
RUNNING = f"""\
rm -rf /etc/virt-forward
virsh metadata web --uri urn:virt-forward:1 --key vf --config --live --set '{DECLARED}'
virt-forward sync
"""

# What a document takes for granted, beyond that.
GIVEN = {
    "libvirt-networks": "virsh destroy web\nvirt-forward remove web --all\n",
    # The package prometheus-node-exporter makes it.
    "monitoring": "mkdir -p /var/lib/prometheus/node-exporter",
}


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """A Debian with libvirt and a guest, as it is before the first command of the README."""
    with machines.machine(layers=(machines.PROGRAMS,)) as made:
        made.write("/etc/nftables.conf", NFTABLES)
        do(made, FRESH)
        made.define(WEB)
        yield made


def shell(machine: Machine, text: str, *, outside: bool = False) -> Done:
    """Run commands in the checkout as root, or on a machine outside that has the same programs."""
    argv = ["bash", "-euo", "pipefail", "-c", f"cd {SOURCE}\n{text}"]
    if not outside:
        return machine.run(argv, check=False)
    network = f"--net={machine.client.path}"
    return run(["nsenter", f"--target={machine.init}", "--mount", network, "--wdns=/", *argv], check=False)


def do(machine: Machine, text: str) -> None:
    """Run commands that are no part of a document."""
    done = shell(machine, text)
    assert done.status == 0, str(done)


def run_block(machine: Machine, block: Block, printed: str) -> None:
    """Run the commands of a block, again and again where it says so; they print what is in ``printed``."""
    until = time.monotonic() + (30 if block.repeated else 0)
    while True:
        done = shell(machine, block.text, outside=block.elsewhere)
        if done.status == block.status and shows(done.out + done.err, printed):
            return
        if time.monotonic() > until:
            break
        time.sleep(0.3)
    shown = f"this is not printed:\n{printed}\n" if done.status == block.status else ""
    raise AssertionError(f"{block.place}: {shown}{done}\n{machine.explain()}")


def follow(machine: Machine, wanted: Iterable[Block]) -> None:
    """Do what the blocks of a document say, in their order."""
    for block, after in pairwise((*wanted, None)):
        if block and block.path:
            machine.write(block.path, block.text)
        elif block and block.is_run:
            run_block(machine, block, after.text if after and after.is_output else "")


def test_commands_of_the_readme(machine: Machine) -> None:
    follow(machine, blocks(README))
    assert machine.fetch(8080) == WEB.page


def problems(machine: Machine) -> list[str]:
    """Return what ``check`` finds for the guest: the id of each problem, and the fix."""
    found = json.loads(machine.command("check", WEB.name, "--json", check=False).out)["problems"]
    return [f"{problem['id']}: {problem['fix']}" for problem in found]


class Firewall(NamedTuple):
    """A section of the page: how the firewall gets on this host, is loaded again, and goes.

    ``fix`` is what ``check`` advises where it drops forwards.
    """

    section: str
    start: str
    again: str
    stop: str
    fix: str = ""


FIREWALLS = (
    Firewall(
        "nftables with policy drop",
        start="sed '/ct label/d' /etc/nftables.conf | nft -f -",
        again="systemctl reload nftables",
        stop="",
        fix="ct label 100 accept",
    ),
    Firewall(
        "Docker",
        # dockerd drops what is forwarded only if it was itself that switched forwarding on.
        start="sysctl -q -w net.ipv4.ip_forward=0 && systemctl start docker",
        again="systemctl restart docker && test $(iptables -S DOCKER-USER | grep -c connlabel) = 1",
        stop="systemctl stop docker docker.socket containerd && ip link delete docker0",
        fix="iptables -I DOCKER-USER",
    ),
    Firewall(
        "ufw",
        start="ufw --force enable",
        # The line for all forwards is enough without the one for this forward.
        again="ufw route delete allow proto tcp to 10.10.0.200 port 80; ufw reload; systemctl restart ufw",
        stop="ufw disable",
        fix="ufw route allow proto tcp to 10.10.0.200 port 80",
    ),
    Firewall(
        "firewalld",
        start="systemctl start firewalld",
        again="firewall-cmd --reload; systemctl restart firewalld",
        stop="systemctl stop firewalld",
    ),
)


@pytest.fixture(scope="module")
def sibling(machine: Machine) -> Iterator[Ns]:
    """Another guest on the bridge, which can be told to connect to the outside."""
    made = Ns(f"{machine.lab.tag}-sibling")
    machine.ns.ip(f"link add sibling type veth peer name eth0 netns {made.name}", "link set sibling up")
    machine.ns.ip("link set sibling master vmbr0")
    made.ip("address add 10.10.0.50/24 dev eth0", "link set eth0 up", "route add default via 10.10.0.1")
    try:
        with contextlib.closing(machine.client.serve("tcp", 9000)):
            yield made
    finally:
        made.remove()


@pytest.fixture
def firewall(machine: Machine, request: pytest.FixtureRequest) -> Iterator[Firewall]:
    wanted: Firewall = request.param
    do(machine, wanted.start)
    yield wanted
    do(machine, f"{wanted.stop}\nsystemctl restart nftables")


@pytest.mark.parametrize("firewall", FIREWALLS, ids=lambda case: case.section.split()[0], indirect=True)
def test_firewall_lets_forwards_in_as_the_page_says(
    machine: Machine, sibling: Ns, firewall: Firewall
) -> None:
    assert machine.shows([None if firewall.fix else WEB.page], [8080])
    found = problems(machine)
    assert all(problem.startswith("forward-dropped: ") for problem in found)
    assert firewall.fix in "".join(found)
    for problem in found:
        do(machine, problem.partition(": ")[2].partition("; to keep")[0])
    assert machine.fetch(8080) == WEB.page, f"not after {found}\n{machine.explain()}"
    follow(machine, [block for block in blocks(PAGE_ON_FIREWALLS) if block.section == firewall.section])
    assert machine.fetch(8080) == WEB.page, machine.explain()
    assert sibling.ask(CLIENT4, 9000), "the guests' own connections"
    assert sibling.run(ASK_DHCP).status == 0
    assert problems(machine) == []
    do(machine, firewall.again)
    assert machine.fetch(8080) == WEB.page, machine.explain()


def test_strict_firewalld_rejects_forwards(machine: Machine) -> None:
    configure = "sed -i s/^StrictForwardPorts=.*/StrictForwardPorts={}/ /etc/firewalld/firewalld.conf"
    do(machine, f"{configure.format('yes')}; systemctl start firewalld")
    assert machine.closed(8080)
    found = problems(machine)
    assert found
    assert all("StrictForwardPorts=no" in problem for problem in found)
    do(machine, f"{configure.format('no')}; firewall-cmd --reload")
    assert machine.fetch(8080) == WEB.page
    do(machine, "systemctl stop firewalld")


def test_every_section_of_the_page_on_firewalls_is_tried() -> None:
    with_blocks = {block.section for block in blocks(PAGE_ON_FIREWALLS)}
    assert with_blocks == {case.section for case in FIREWALLS}


def is_followed(document: Path) -> bool:
    return any(block.is_run or block.path for block in blocks(document))


OTHERS = [path for path in DOCUMENTS if path not in (README, PAGE_ON_FIREWALLS) and is_followed(path)]


@pytest.mark.parametrize("document", OTHERS, ids=lambda path: path.stem)
def test_commands_of_the_document(machine: Machine, document: Path) -> None:
    do(machine, RUNNING + GIVEN.get(document.stem, ""))
    follow(machine, blocks(document))


def test_firewalls_let_forwards_into_a_network_of_libvirt(machine: Machine) -> None:
    """The guest is where the page on libvirt's networks leaves it."""
    if "default" not in machine.virsh("domiflist", WEB.name).out:
        do(machine, RUNNING + GIVEN["libvirt-networks"])
        follow(machine, [block for block in blocks(PAGE_ON_NETWORKS) if "libvirt's own" in block.section])
    # Docker is the last, as it leaves its rules behind, and a flush would delete those of libvirt.
    for case in reversed(FIREWALLS[1:]):
        do(machine, case.start)
        assert machine.fetch(8080) == WEB.page, f"{case.section}\n{machine.explain()}"
        assert problems(machine) == []
        do(machine, case.stop)
