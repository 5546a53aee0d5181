"""The demo: it shows what it says, and leaves the host as it was, however it ends."""

from __future__ import annotations

import os
import re
import shutil
import signal
from pathlib import Path

import pytest

from support.proc import REPO, Background, eventually, run
from system.install.support import INSTALL, PATH, install

pytestmark = pytest.mark.root
DEMO_NAMES = re.compile(
    r"virt-forward-demo|\b(virbr0|enp1s0|vnet0)\b|^(host|guest|client)\b|__pycache__|ip_forward"
)


def traces() -> set[str]:
    """Return what the demo could have left on this host; other work on it may go on meanwhile."""
    looks = (
        "nft -s list ruleset",
        "ip -o link",
        "ip netns",
        "cat /proc/self/mounts",
        "sysctl net.ipv4.ip_forward",
        f"find /run {REPO}/hooks {REPO}/demo -maxdepth 1",
    )
    lines = {line for look in looks for line in run(look.split()).out.splitlines()}
    return {line for line in lines if DEMO_NAMES.search(line)}


def living(group: int) -> str:
    """List the processes of a group, without those that have ended and nobody has asked after."""
    return run(["pgrep", "--pgroup", str(group), "--runstates", "D,R,S", "--list-full"], check=False).out


def altered_checkout(tmp_path: Path, file: str, old: str, new: str) -> Path:
    for part in ("install.sh", "installer", "demo", "hooks", "lib"):
        copy = shutil.copytree if (REPO / part).is_dir() else shutil.copy2
        copy(REPO / part, tmp_path / part)
    text = (tmp_path / file).read_text()
    assert old in text
    (tmp_path / file).write_text(text.replace(old, new))
    return tmp_path


def test_demo_shows_the_main_job_in_seconds() -> None:
    before = traces()
    done = install("--demo")
    assert traces() == before
    for line in (
        "is closed",
        "hooks/qemu web started begin -",
        "Hello from the guest",
        "dnat ip to 10.10.0.200:80",
    ):
        assert line in done.out
    assert "byte for byte" in done.out
    assert "\033" not in done.out, "colours, and nobody to look at them"


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        (
            "demo/nftables.conf",
            "oifname virbr0 ip daddr 10.10.0.0/24",
            "oifname virbr9",
            "the client fetches",
        ),
        ("demo/web.xml", 'start="8080"', 'start="80x"', "prepare begin"),
        ("demo/web.xml", 'start="8080"', 'start="8081"', "the client fetches"),
        ("demo/nftables.conf", "flush ruleset", "nonsense", "nft"),
    ],
)
def test_demo_fails_where_something_is_wrong(
    tmp_path: Path, file: str, old: str, new: str, says: str
) -> None:
    checkout = altered_checkout(tmp_path, file, old, new)
    before = traces()
    done = run([checkout / "install.sh", "--demo"], env={"PATH": PATH}, check=False)
    assert done.status == 1
    assert "FAILED" in done.err
    assert says in done.err
    assert traces() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_demo_cut_short_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    before = traces()
    with Background([REPO / "install.sh", "--demo"], tmp_path / "log", env={"PATH": PATH}) as demo:
        demo.wait_for(lambda: "before: " in demo.text(), "the demo begins")
        os.kill(demo.pid, number)
        demo.process.wait(60)
        expected = -number if number == signal.SIGKILL else 128 + number
        assert demo.process.returncode == expected
        eventually(lambda: not living(demo.pid), "all processes of the demo end")
    assert traces() == before


def test_forbidden_namespaces_are_reported_with_the_reason() -> None:
    powerless = ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"]
    done = run([*powerless, INSTALL, "--demo"], env={"PATH": PATH}, check=False)
    assert done.status == 1
    assert done.err.startswith("install.sh: error: namespaces cannot be made here (")
    assert "not permitted" in done.err
