"""The README's first commands where nothing is installed: no python3, no procps, no sudo, no systemd."""

from __future__ import annotations

import pytest

from support import bare
from support.machine import SOURCE

pytestmark = pytest.mark.root

ABSENT = ("python3", "sysctl", "ps", "sudo", "nft", "ip", "systemctl")
STEPS = f"""
set -eu
for program in {" ".join(ABSENT)}; do ! command -v $program || exit 9; done
listing() {{ find /usr/local /run /opt /root /tmp /etc/systemd | grep -v /usr/local/lib/python | sort; }}
listing >/root/before
{SOURCE}/install.sh --demo
listing | diff /root/before -
{SOURCE}/install.sh
virt-forward --version
{SOURCE}/install.sh --uninstall
{SOURCE}/install.sh --uninstall
listing | diff /root/before -
! find / -xdev -path {SOURCE} -prune -o -name '*virt-forward*' -print | grep .
"""
DEMO = f"{SOURCE}/install.sh --demo"
READ_ONLY = "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && "
REMEDY = "run the demo on a machine, real or virtual, or in a privileged container"


@pytest.mark.parametrize("suite", bare.SUITES)
def test_demo_install_and_uninstall_on_a_bare_debian(suite: str) -> None:
    done = bare.run_bare(suite, ["sh", "-c", STEPS])
    assert "apt-get install -q -y --no-install-recommends python3 python3-lxml nftables iproute2" in done.out
    assert "All as it should be" in done.out
    assert "remove /usr/local/bin/virt-forward" in done.out


@pytest.mark.parametrize(
    ("prepare", "without", "says"),
    [
        (
            READ_ONLY,
            "mknod",
            "forwarding cannot be switched on here (tee: /proc/sys/net/ipv4/ip_forward: ",
        ),
        ("", "sys_admin", "namespaces cannot be made here (unshare: unshare failed: Operation not permitted"),
        ("", "net_admin", "networks cannot be set up here (no CAP_NET_ADMIN"),
    ],
)
def test_demo_says_in_one_sentence_what_a_container_forbids(prepare: str, without: str, says: str) -> None:
    powerless = f"{prepare}setpriv --bounding-set -{without} --inh-caps -{without} {DEMO}"
    left = "find /run /usr/bin/python3 -type f 2>/dev/null"
    done = bare.run_bare("trixie", ["sh", "-c", f"{powerless}; echo $?; {left}"], check=False)
    assert done.out == "1\n", "nothing was installed or written"
    assert done.err.startswith(f"install.sh: error: {says}")
    assert f": {REMEDY}" in done.err
    assert done.err.count("\n") == 1
