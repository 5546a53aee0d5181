"""``virt-forward check`` on a real host: what is broken is found, and the fix it prints is one."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import NamedTuple

import pytest

from support.guest import Guest
from support.host import Host
from support.proc import Done, eventually

pytestmark = pytest.mark.system

HOOK = "/etc/libvirt/hooks/qemu"
NETWORK = (
    "<network><name>theirs</name><forward mode='nat'/><bridge name='virbr0'/>"
    "<ip address='192.168.9.1' netmask='255.255.255.0'/></network>"
)
SET = "virsh -q metadata web --uri urn:virt-forward:1 --key vf"
EDITED = """<forwards><host ip="fd10:10::200"/>
<portForward proto="tcp"><range start="8080" to="80"/><range start="{}" to="80"/></portForward></forwards>"""
TAP = "ip link set $(ip -o link show master virbr0 | cut -d: -f2)"


def problems(host: Host, *words: str) -> dict[str, str]:
    """Return the fix that is told by the id of each problem."""
    done = host.command("check", "--json", *words, check=False)
    found = json.loads(done.out)["problems"]
    assert done.status == (1 if found else 0), done
    return {item["id"]: item["fix"] for item in found}


def shell(host: Host, text: str) -> Done:
    return host.run(["sh", "-ec", text], check=False)


def synced(host: Host) -> None:
    host.command("sync")


def loaded(host: Host) -> None:
    host.restart_libvirtd()


def protected(host: Host) -> None:
    shell(host, "echo 'include \"/run/virt-forward/*.nft\"' >> /etc/nftables.conf")


def executable(host: Host) -> None:
    # What is changed is newer than libvirtd, too, which looks for hooks as it starts.
    shell(host, f"chmod 755 {HOOK}")
    host.restart_libvirtd()


def plugged(host: Host) -> None:
    shell(host, f"{TAP} up")
    # The kernel enables a bridge port in the background.
    eventually(lambda: "state forwarding" in shell(host, "bridge link show").out, "the port is up")


def edited(host: Host) -> None:
    """The live metadata is applied, and the configuration is what virt-manager might have made of it."""
    host.command("sync")
    assert problems(host) == {"metadata-invalid": "correct it with: virsh edit web"}
    assert shell(host, f"{SET} --config --set '{EDITED.format(8082)}'").status == 0


def undefined(host: Host) -> None:
    host.virsh("net-undefine", "theirs")


def run_fixes(host: Host, until: str) -> None:
    for problem in json.loads(host.command("check", "--json", check=False).out)["problems"]:
        done = shell(host, problem["fix"].partition(until)[0])
        assert done.status == 0, done


class Case(NamedTuple):
    """What is done to the host, what is found then, and how the fix that is told is carried out.

    Without ``mend``, the fix is a command, and what is said after ``until`` is no part of it.
    """

    broken: str
    found: str
    fix: str
    mend: Callable[[Host], None] | None = None
    until: str = "; to keep"


@pytest.mark.parametrize(
    "case",
    [
        Case("nft delete table inet virt-forward", "table-missing", "virt-forward sync", synced),
        Case("nft flush table inet virt-forward", "table-differs", "virt-forward sync", synced),
        Case("nft add rule inet virt-forward forward drop", "table-differs", "virt-forward sync", synced),
        Case(
            "sed -i '/^include/d' /etc/nftables.conf",
            "flush-unprotected",
            'add include "/run/virt-forward/*.nft" as the last line of /etc/nftables.conf',
            protected,
        ),
        Case(
            f"touch {HOOK}; chmod 744 {HOOK}; chmod 755 {HOOK}", "hook-not-loaded", "systemctl reload", loaded
        ),
        Case(f"chmod 644 {HOOK}", "hook-missing", f"chmod 755 {HOOK}", executable),
        Case("nft flush chain inet filter forward", "forward-dropped", "nft insert rule inet filter forward"),
        Case(
            "iptables -I FORWARD -d 10.10.0.200 -p tcp --dport 80 -j REJECT",
            "forward-dropped",
            "iptables -I FORWARD -m conntrack --ctstate DNAT -j ACCEPT",
        ),
        Case(
            "nft 'table inet theirs { chain c { type nat hook prerouting priority dstnat; "
            "tcp dport 8080 redirect to :22; }; }'",
            "shadowed",
            "nft delete rule inet theirs c handle",
            until="; delete",
        ),
        Case(
            "sysctl -qw net.ipv4.conf.enp1s0.forwarding=0 net.ipv6.conf.all.forwarding=0",
            "ip-forwarding-off",
            "sysctl -w net.ipv",
            until="; to keep",
        ),
        Case(
            f"{SET} --live --set '{EDITED.format(8082)}'; {SET} --config --set '{EDITED.format(0)}'",
            "table-differs",
            "virt-forward sync",
            edited,
        ),
        Case(f"{TAP} down", "guest-unreachable", "see in the guest that its network is up", plugged),
        Case(
            f'echo "{NETWORK}" | virsh -q net-define /dev/stdin',
            "bridge-name-clash",
            "give it another name in <bridge name=…/> with virsh net-edit theirs, or delete it",
            undefined,
        ),
    ],
    ids=[
        *("deleted", "flushed", "edited", "no include", "newer hook", "hook off"),
        *("policy", "iptables", "redirect", "forwarding", "metadata", "unplugged", "clash"),
    ],
)
def test_problem_is_found_and_fixed(web: Guest, empty: Host, case: Case) -> None:
    if problems(empty):
        # The hooks were put there in the second in which libvirtd started.
        empty.restart_libvirtd()
    assert problems(empty) == {}
    shell(empty, case.broken)
    told = problems(empty)
    assert case.found in told
    assert told[case.found].startswith(case.fix)
    if case.mend:
        case.mend(empty)
    else:
        run_fixes(empty, case.until)
    # A guest that is plugged in again takes a moment to answer.
    eventually(lambda: problems(empty) == {}, f"no problems are left: {problems(empty)}")
    assert empty.fetch(8080) == web.page
    shell(empty, "nft -f /etc/nftables.conf")


def test_guest_is_explained_step_by_step(web: Guest, empty: Host) -> None:
    told = empty.command("check", "web").out.splitlines()
    assert told[0] == "web:"
    steps = [line.split(maxsplit=1) for line in told[1:-1]]
    assert [*dict.fromkeys(name for name, _ in steps)] == [
        *("declared", "state", "endpoint", "claims", "rules", "path", "guest"),
    ]
    texts = dict(steps)
    assert texts["declared"] == "8080:80/tcp in its live metadata"
    assert "arrives at fd10:10::200 port 80, as does the answer" in texts["path"]
    assert "inet filter forward: accept by ct label 100 accept" in texts["path"]
    assert texts["guest"] == "fd10:10::200 answers for tcp/80"
    assert told[-1] == "no problems found; packets to 1 forward arrive"
    shell(empty, "nft flush chain inet filter forward")
    stopped = json.loads(empty.command("check", "--json", "web", check=False).out)["guests"][0]["steps"]
    assert {step["step"] for step in stopped if not step["ok"]} == {"path"}
    empty.nft_reload()
    empty.virsh("destroy", "web")
    told = empty.command("check", "web").out.splitlines()
    assert told[2] == "  state     NOT OK: shut off: its forwards are opened when it starts"
