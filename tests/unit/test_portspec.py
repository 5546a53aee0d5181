"""Forwards as text in messages and lists."""

from __future__ import annotations

import pytest

from unit.build import MAC, UUID, domain_xml, forward
from virt_forward.cli import listing
from virt_forward.libvirtd.api import DomainState
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


def test_specs_leave_out_forwards_that_would_be_open_to_more_by_their_spec_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    narrowed = f'source="192.0.2.0/24" dev="enp1s0" mac="{MAC}"'
    metadata = f"""<forwards xmlns="urn:virt-forward:1">
      <portForward proto="tcp"><range start="8080" to="80"/></portForward>
      <portForward proto="udp" address="203.0.113.7"><range start="53"/></portForward>
      <portForward proto="tcp" {narrowed}><range start="5432"/></portForward>
    </forwards>"""
    listing._print_specs([DomainState("web", UUID, True, domain_xml(metadata))], [])
    out, err = capsys.readouterr()
    assert out.split() == ["8080:80/tcp", "203.0.113.7:53/udp"]
    assert err == (
        "virt-forward: warning: web: 5432/tcp is left out; it also needs "
        f"--dev enp1s0 --source 192.0.2.0/24 --mac {MAC}\n"
    )
