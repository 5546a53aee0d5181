"""Forwards as text in messages and lists."""

from __future__ import annotations

import pytest

from unit.build import forward
from virt_forward.model import Forward, Span
from virt_forward.portspec import host_part, qualifiers, render


@pytest.mark.parametrize(
    ("shown", "item", "host"),
    [
        ("443/tcp", forward(443), "tcp/443"),
        ("8080:80/tcp", forward(8080, to=80), "tcp/8080"),
        ("5000-5020/udp", forward(5000, 5020, proto="udp"), "udp/5000-5020"),
        ("5000-5020:6000-6020/udp", forward(5000, 5020, to=6000, proto="udp"), "udp/5000-5020"),
        ("127.0.0.1:8080:80/tcp", forward(8080, to=80, address="127.0.0.1"), "tcp/127.0.0.1:8080"),
        ("[2001:db8::1]:53/sctp", forward(53, proto="sctp", address="2001:db8::1"), "sctp/[2001:db8::1]:53"),
    ],
)
def test_render_and_host_part(shown: str, item: Forward, host: str) -> None:
    assert render(item) == shown
    assert host_part(item) == host


def test_span_of_one_port_is_a_number() -> None:
    assert str(Span(80, 80)) == "80"
    assert str(Span(80, 81)) == "80-81"


@pytest.mark.parametrize(
    ("item", "shown"),
    [
        (forward(), ""),
        (forward(dev="enp1s0"), "on enp1s0"),
        (forward(source="192.0.2.0/24"), "from 192.0.2.0/24"),
        (forward(dev="enp1s0", source="2001:db8::/32"), "on enp1s0 from 2001:db8::/32"),
    ],
)
def test_qualifiers(item: Forward, shown: str) -> None:
    assert qualifiers(item) == shown
