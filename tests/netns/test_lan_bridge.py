"""A bridge that the host's uplink is a port of: LAN and guests share a subnet."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from netns.support import bridge_netfilter
from support import netns
from support.netns import CLIENT4, CLIENT6, HOST4, HOST6, UPLINK, Lab
from support.xml import Nic, domain, forwards, host_ip, port_forward

pytestmark = pytest.mark.root

GUEST4, GUEST6 = "192.0.2.200", "2001:db8:1::200"


@pytest.fixture(scope="module", params=[False, True], ids=["", "br_netfilter"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with netns.lab(bridge=False) as made:
        bridge_netfilter(made.host, request.param)
        made.host.ip(f"address flush dev {UPLINK}")
        made.add_bridge("br0", f"{HOST4}/24", f"{HOST6}/64")
        made.host.ip(
            f"link set {UPLINK} master br0",
            f"route add default via {CLIENT4}",
            f"route add default via {CLIENT6}",
        )
        routers = {"gateway4": CLIENT4, "gateway6": CLIENT6}
        made.guest("web", GUEST4, GUEST6, bridge="br0", **routers).serve("tcp", 80)
        made.guest("db", "192.0.2.201", "2001:db8:1::201", "52:54:00:00:00:02", bridge="br0", **routers)
        text = domain(
            "web", forwards(host_ip(GUEST4), host_ip(GUEST6), port_forward("8080:80")), [Nic("br0")]
        )
        for operation in ("prepare", "started"):
            made.hook("qemu", "web", operation, xml=text)
        yield made


@pytest.mark.parametrize("host", [HOST4, HOST6])
@pytest.mark.parametrize("who", ["LAN", "sibling"])
def test_client_on_the_bridge_is_answered_through_the_host(lab: Lab, who: str, host: str) -> None:
    """The guest would answer it directly."""
    client = {"LAN": lab.client, "sibling": lab.guests["db"]}[who]
    answer = client.ask(host, 8080)
    assert answer
    assert (answer.source, answer.port) == (host, 80)


@pytest.mark.parametrize("host", [HOST4, HOST6])
def test_host_reaches_the_forward(lab: Lab, host: str) -> None:
    assert lab.host.ask(host, 8080)
