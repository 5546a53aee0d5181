"""systemd-networkd's files: which one matches a bridge, and its addresses."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface
from pathlib import Path

import pytest

from unit.build import MAC
from virt_forward.addresses import networkd
from virt_forward.addresses.networkd import BridgeConfig, bridge_config, parse_ini
from virt_forward.host import collect
from virt_forward.model import Reservation

PERSONS_FILE = """\
[Match]
Name=virbr0
[Network]
Address=10.10.0.1/24
Address=fd10:10::1/64
DHCPServer=yes
# IPForward=ipv4
[DHCPServer]
PoolOffset=20
[DHCPServerStaticLease]
MACAddress=52:54:00:A0:8F:2C
Address=10.10.0.200
; and another
[DHCPServerStaticLease]
MACAddress=52-54-00-00-00-02
Address=10.10.0.201
"""


def test_typical_network_file_is_parsed() -> None:
    assert bridge_config({"98-virbr0.network": PERSONS_FILE}, "virbr0") == BridgeConfig(
        (ip_interface("10.10.0.1/24"), ip_interface("fd10:10::1/64")),
        (
            Reservation(ip_address("10.10.0.200"), MAC),
            Reservation(ip_address("10.10.0.201"), "52:54:00:00:00:02"),
        ),
    )


BRIDGE_MAC = "52:54:00:9a:8a:d1"


@pytest.mark.parametrize(
    ("match", "matches"),
    [
        ("Name=virbr0", True),
        ("Name=virbr1", False),
        ("Name=VIRBR0", False),
        ("Name=vir*", True),
        ("Name=virbr?", True),
        ("Name=virbr[0-9]", True),
        ("Name=*", True),
        ("Name=br0 virbr0", True),
        ("Name=br0\nName=virbr0", True),
        ("Name=!virbr0", False),
        ("Name=!br*", True),
        ("Name=!br0 virbr0", False),
        ("Name=!br0 br1", True),
        # what is excluded stays out, whatever else matches; and the reverse does not hold
        ("Name=vir*\nName=!virbr0", False),
        ("Name=!virbr1\nName=vir*", True),
        ("Name=!virbr1\nName=br*", False),
        # an empty assignment forgets those before it
        ("Name=virbr1\nName=\nName=virbr0", True),
        ("Name=virbr0\nName=", False),
        ("Kind=bridge", True),
        ("Kind=!bridge", False),
        ("Type=bridge", True),
        ("Type=ether", False),
        ("Type=ether bridge", True),
        (f"MACAddress={BRIDGE_MAC}", True),
        (f"MACAddress={BRIDGE_MAC.upper().replace(':', '-')}", True),
        (f"MACAddress=52:54:00:00:00:01 {BRIDGE_MAC}", True),
        ("MACAddress=52:54:00:00:00:01", False),
        ("Name=virbr0\nKind=bridge\nType=bridge", True),
        ("Name=virbr0\nKind=veth", False),
        # what cannot be vetoed from here is not taken for true
        ("Name=virbr0\nHost=laptop", False),
        ("Driver=virtio_net", False),
        ("", False),
    ],
)
def test_match_section_conditions(match: str, matches: bool) -> None:
    text = f"[Match]\n{match}\n[Network]\nAddress=192.0.2.1/24\n"
    found = bridge_config({"a.network": text}, "virbr0", BRIDGE_MAC)
    assert found == (BridgeConfig((ip_interface("192.0.2.1/24"),)) if matches else BridgeConfig())


def test_file_without_match_section_matches_nothing() -> None:
    assert bridge_config({"a.network": "[Network]\nAddress=192.0.2.1/24\n"}, "virbr0") == BridgeConfig()


def test_first_match_by_name_wins() -> None:
    def text(number: int, name: str) -> str:
        return f"[Match]\nName={name}\n[Network]\nAddress=192.0.2.{number}/24\n"

    files = {
        "50-b.network": text(50, "virbr0"),
        "10-a.network": text(10, "wlan0"),
        "20-c.network": text(20, "vir*"),
        "9-z.network": text(9, "*"),
    }
    assert [str(a.ip) for a in bridge_config(files, "virbr0").addresses] == ["192.0.2.20"]


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        ("[Network]\nAddress=192.0.2.1/24\nAddress=\nAddress=192.0.2.2/24", ["192.0.2.2/24"]),
        (
            "[Network]\nAddress=192.0.2.1/24\n[Address]\nAddress=192.0.2.2/24",
            ["192.0.2.1/24", "192.0.2.2/24"],
        ),
        ("[Network]\nAddress=192.0.2.1", ["192.0.2.1/32"]),
        ("[Network]\nAddress=0.0.0.0/24\nAddress=::/64", []),
        ("[Network]\nAddress=nonsense\nAddress=192.0.2.1/99", []),
        ("[Network]\nAddress=2001:db8::1%a } accept/64", []),
        ("[Network]\nGateway=192.0.2.1\n[Route]\nDestination=192.0.2.0/24", []),
    ],
)
def test_addresses_are_parsed(text: str, addresses: list[str]) -> None:
    found = bridge_config({"a.network": f"[Match]\nName=virbr0\n{text}\n"}, "virbr0").addresses
    assert found == tuple(map(ip_interface, addresses))


@pytest.mark.parametrize(
    "lease",
    [
        "MACAddress=52:54:00:a0:8f:2c",
        "Address=192.0.2.200",
        "MACAddress=nonsense\nAddress=192.0.2.200",
        f"MACAddress={MAC}\nAddress=192.0.2.200/24",
        f"MACAddress={MAC}\nAddress=2001:db8::1%x; drop",
    ],
)
def test_incomplete_static_lease_is_ignored(lease: str) -> None:
    text = f"[Match]\nName=virbr0\n[DHCPServerStaticLease]\n{lease}\n"
    assert bridge_config({"a.network": text}, "virbr0").leases == ()


def test_ini_syntax() -> None:
    text = """
    no section = yet
    [A]
    key = value with = sign
    empty =
    # comment
    ; comment
    long = one \\
      # a comment in between
      two \\
      three
    not an assignment
    [B] [A]
    [A]
    key=again
    trailing=x \\"""
    assert parse_ini(text) == [
        ("A", [("key", "value with = sign"), ("empty", ""), ("long", "one  two  three")]),
        ("B] [A", []),
        ("A", [("key", "again"), ("trailing", "x")]),
    ]


@pytest.fixture
def etc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replace systemd's directories by a tree; the first one is ``0``."""
    directories = tuple(str(tmp_path / str(number)) for number in range(3))
    monkeypatch.setattr(networkd, "DIRECTORIES", directories)
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def matching(text: str) -> str:
    return f"[Match]\nName=virbr0\n[Network]\n{text}\n"


def addresses() -> list[str]:
    return [str(address.ip) for address in bridge_config(collect.networkd_files(), "virbr0").addresses]


def test_file_hides_same_name_in_later_directory(etc: Path) -> None:
    write(etc / "2/50-a.network", matching("Address=192.0.2.2/24"))
    write(etc / "1/50-a.network", matching("Address=192.0.2.1/24"))
    write(etc / "2/60-b.network", matching("Address=192.0.2.60/24"))
    assert addresses() == ["192.0.2.1"]


def test_link_to_dev_null_masks_file(etc: Path) -> None:
    write(etc / "2/50-a.network", matching("Address=192.0.2.2/24"))
    write(etc / "2/60-b.network", matching("Address=192.0.2.60/24"))
    (etc / "0").mkdir()
    (etc / "0/50-a.network").symlink_to("/dev/null")
    assert addresses() == ["192.0.2.60"]


def test_dropins_of_all_directories_are_appended_by_name(etc: Path) -> None:
    write(etc / "1/50-a.network", matching("Address=192.0.2.1/24"))
    write(etc / "0/50-a.network.d/20-second.conf", "[Network]\nAddress=192.0.2.20/24\n")
    write(etc / "2/50-a.network.d/10-first.conf", "[Network]\nAddress=192.0.2.10/24\n")
    write(etc / "2/50-a.network.d/20-second.conf", "[Network]\nAddress=192.0.2.99/24\n")
    write(etc / "2/50-a.network.d/notes.txt", "[Network]\nAddress=192.0.2.98/24\n")
    write(etc / "2/60-b.network.d/10-x.conf", "[Network]\nAddress=192.0.2.97/24\n")
    assert addresses() == ["192.0.2.1", "192.0.2.10", "192.0.2.20"]


def test_masked_dropin_is_ignored(etc: Path) -> None:
    write(etc / "1/50-a.network", matching("Address=192.0.2.1/24"))
    write(etc / "2/50-a.network.d/10-x.conf", "[Network]\nAddress=192.0.2.10/24\n")
    (etc / "0/50-a.network.d").mkdir(parents=True)
    (etc / "0/50-a.network.d/10-x.conf").symlink_to("/dev/null")
    assert addresses() == ["192.0.2.1"]


def test_dropin_can_change_match(etc: Path) -> None:
    write(etc / "1/50-a.network", matching("Address=192.0.2.1/24"))
    write(etc / "0/50-a.network.d/10-x.conf", "[Match]\nName=\nName=br9\n")
    assert addresses() == []


def test_missing_and_unreadable_directories_are_empty(etc: Path) -> None:
    assert addresses() == []
    (etc / "0/50-a.network").mkdir(parents=True)
    write(etc / "1/60-b.network", matching("Address=192.0.2.60/24"))
    (etc / "1/60-b.network").write_bytes(b"\xff\xfe" + (etc / "1/60-b.network").read_bytes())
    assert addresses() == []
