"""``init`` on a host with a ruleset: what it finds there, and lines that nft adds to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.host import NFTABLES
from support.netns import Lab
from virt_forward.errors import VirtForwardError
from virt_forward.host import new_files, setup_facts

pytestmark = pytest.mark.root

# Without the accepts that init is to print.
BEFORE = NFTABLES.replace("    ct label 100 accept\n", "").replace('include "/run/virt-forward/*.nft"\n', "")


def dry_run(lab: Lab, *words: str) -> str:
    return lab.command("init", "--dry-run", "--dns", "9.9.9.9", *words).out


def lines(said: str) -> str:
    rest = said.partition("after what is there:")[2].partition("Attach guests")[0]
    return "\n".join(line for line in rest.splitlines() if not line.startswith("note:"))


@pytest.mark.parametrize("ruleset", ["", BEFORE], ids=["no ruleset", "hand-written"])
def test_nft_adds_the_printed_lines_to_the_ruleset(lab: Lab, ruleset: str) -> None:
    lab.host.nft(ruleset)
    printed = lines(dry_run(lab, "--bridge", "vmbr7", "--uplink", "enp1s0"))
    lab.host.nft(printed.replace('include "/run', f'include "{lab.dir}/none'))
    after = lab.host.ruleset()
    assert 'iifname "vmbr7" ip saddr 10.10.1.0/24 oifname "enp1s0" masquerade' in after
    chain = after.partition("chain forward {")[2].partition("\n\t}")[0]
    assert ("ct label 100 accept" in chain) == bool(ruleset)
    if ruleset:
        assert chain.count("ct state established,related accept") == 1, "it is there already"
        assert 'iifname "vmbr7" udp dport 67 accept' in after


def test_line_for_forwards_is_printed_once(lab: Lab) -> None:
    lab.host.nft(BEFORE)
    assert "ct label 100 accept" in lines(dry_run(lab, "--uplink", "enp1s0"))
    lab.host.nft(NFTABLES.replace('include "/run', f'include "{lab.dir}/none'))
    assert "ct label 100 accept" not in lines(dry_run(lab, "--uplink", "enp1s0"))


def test_subnet_of_the_hosts_own_bridge_is_not_chosen(lab: Lab) -> None:
    assert "Address=10.10.1.1/24" in dry_run(lab, "--uplink", "enp1s0")
    done = lab.command("init", "--subnet", "10.10.0.0/25", "--uplink", "enp1s0", check=False)
    assert done.status == 1
    assert "overlaps with 10.10.0.1/24 on virbr0" in done.err


def test_uplinks_are_the_interfaces_with_a_default_route(lab: Lab) -> None:
    done = lab.command("init", "--dry-run", check=False)
    assert (done.status, done.out) == (1, "")
    assert "no interface has a default route" in done.err
    lab.host.ip("route add default via 192.0.2.2")
    assert 'oifname "enp1s0" masquerade' in dry_run(lab)


def test_names_in_use_are_refused(lab: Lab) -> None:
    done = lab.command("init", "--bridge", "virbr0", "--uplink", "enp1s0", check=False)
    assert "the name virbr0 is taken" in done.err


@pytest.mark.parametrize("sign", ["phy80211", "wireless", "uevent"])
def test_wifi_is_known_by_sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sign: str) -> None:
    monkeypatch.setattr(setup_facts, "INTERFACES", str(tmp_path))
    device = tmp_path / "wlp3s0"
    device.mkdir()
    (device / "uevent").write_text("INTERFACE=wlp3s0\nIFINDEX=3\n")
    assert not setup_facts._is_wifi("wlp3s0")
    if sign == "uevent":
        (device / "uevent").write_text("DEVTYPE=wlan\nINTERFACE=wlp3s0\nIFINDEX=3\n")
    else:
        (device / sign).mkdir()
    assert setup_facts._is_wifi("wlp3s0")


def test_files_are_created_all_or_none(tmp_path: Path) -> None:
    wanted = [(str(tmp_path / "a/one"), "1"), (str(tmp_path / "b/two"), "2")]
    (tmp_path / "b").mkdir()
    (tmp_path / "b/two").write_text("theirs")
    with pytest.raises(VirtForwardError, match="b/two: File exists; nothing was written"):
        new_files.create_all(wanted)
    assert not (tmp_path / "a/one").exists()
    assert (tmp_path / "b/two").read_text() == "theirs"
    (tmp_path / "b/two").unlink()
    new_files.create_all(wanted)
    assert (tmp_path / "a/one").stat().st_mode & 0o777 == 0o644
