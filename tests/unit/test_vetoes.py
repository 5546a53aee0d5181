"""What can be done about the reason of a conflict."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from virt_forward import text
from virt_forward.claims import vetoes

ANY = ip_address("0.0.0.0")


@pytest.mark.parametrize(
    ("reason", "remedy"),
    [
        (
            vetoes.reserved("tcp", 22),
            "give the forward another port, or take tcp/22 out of [policy] reserved in "
            "/etc/virt-forward/config.toml",
        ),
        (
            vetoes.listening("udp", 53, ANY, "dnsmasq"),
            "stop that program (ss -Hlnup sport = :53 shows it), or give the forward another port",
        ),
        (
            vetoes.listening("sctp", 53, ip_address("::"), ""),
            "stop that program (ss -HlnSp sport = :53 shows it), or give the forward another port",
        ),
        (
            "host port tcp/8080 is taken by guest db",
            "give one of the two guests another port; virt-forward list shows who has which",
        ),
        (
            "address 10.10.0.200 on virbr0 is already that of guest db",
            "give one of the two guests another address; virt-forward list shows whose it is",
        ),
        ("", "give one of the two guests another port; virt-forward list shows who has which"),
    ],
)
def test_remedy_fits_the_reason(reason: str, remedy: str) -> None:
    assert vetoes.remedy(reason) == remedy


@pytest.mark.parametrize(
    "name", ["a, which listens on x", "a is reserved by the configuration ([policy] reserved)"]
)
def test_name_of_a_guest_is_not_taken_for_a_reason(name: str) -> None:
    reason = f"host port tcp/8080 is taken by guest {text.word(name)}"
    assert vetoes.remedy(reason).startswith("give one of the two guests another port")
