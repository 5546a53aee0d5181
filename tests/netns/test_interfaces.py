"""The host's addresses from rtnetlink are those that ip(8) shows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from ipaddress import ip_interface

import pytest

from support import payload
from support.netns import PREFIX, Ns
from virt_forward.host.interfaces import read_interfaces

pytestmark = pytest.mark.root

NUMBER = 900
"""So many addresses are more than one datagram of the kernel."""


@pytest.fixture
def host() -> Iterator[Ns]:
    made = Ns(f"{PREFIX}interfaces")
    try:
        made.ip(
            "link add many type bridge", "link set many up", "link add p2p type bridge", "link set p2p up",
            "link add empty type bridge",
            *(f"address add 10.{number >> 8}.{number & 255}.1/24 dev many" for number in range(NUMBER)),
            "address add fd10::1/64 dev many", "address add fd10::2/64 dev many preferred_lft 0",
            "address add 192.0.2.1 peer 192.0.2.2/31 dev p2p", "address add fd20::1 peer fd20::2/128 dev p2p",
            "address add 192.0.2.9/24 label p2p:0 dev p2p",
        )  # fmt: skip
        yield made
    finally:
        made.remove()


def test_addresses_are_those_that_ip_shows(host: Ns) -> None:
    shown = json.loads(host.run(["ip", "-j", "address", "show"]).out)
    expected = {
        link["ifname"]: {ip_interface(f"{item['local']}/{item['prefixlen']}") for item in link["addr_info"]}
        for link in shown
        if link["addr_info"]
    }
    found = payload.inside(host.path, read_interfaces)
    assert {name: set(addresses) for name, addresses in found.items()} == expected
    assert len(found["many"]) == len(expected["many"]) >= NUMBER + 2
    assert ip_interface("192.0.2.1/31") in found["p2p"]
