"""``virt-forward check`` on a real host: what is broken is found, and the fix it prints is one."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import NamedTuple

import pytest

from support.guest import Guest
from support.host import Host
from support.proc import Done

pytestmark = pytest.mark.system

HOOK = "/etc/libvirt/hooks/qemu"


def problems(host: Host, *words: str) -> dict[str, str]:
    """Return the fix that is told by the id of each problem."""
    done = host.command("check", "--json", *words, check=False)
    found = json.loads(done.out)["problems"]
    assert done.status == (1 if found else 0), done
    return {item["id"]: item["fix"] for item in found}


def shell(host: Host, text: str) -> Done:
    return host.run(["sh", "-ec", text], check=False, timeout=20)


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


class Case(NamedTuple):
    """What is done to the host, what is found then, and how the fix that is told is carried out."""

    broken: str
    found: str
    fix: str
    mend: Callable[[Host], None]


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
    ],
    ids=["deleted", "flushed", "edited", "no include", "newer hook", "hook off"],
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
    case.mend(empty)
    assert problems(empty) == {}
    assert empty.fetch(8080) == web.page
