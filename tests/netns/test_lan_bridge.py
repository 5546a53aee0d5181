"""A bridge that the host's uplink is a port of: LAN and guests share a subnet."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from netns.support import bridge_netfilter
from support import netns
from support.netns import CLIENT4, CLIENT6, HOST4, HOST6, UPLINK, Lab
from support.proc import eventually
from support.watching import TestDriver, service
from support.xml import Nic, domain, forwards, host_ip, port_forward

pytestmark = pytest.mark.root

GUEST4, GUEST6 = "192.0.2.200", "2001:db8:1::200"
METADATA = forwards(host_ip(GUEST4), host_ip(GUEST6), port_forward("8080:80"))
NICS = (Nic("br0"),)
HOSTS = [HOST4, HOST6]
ROUTERS = {"gateway4": CLIENT4, "gateway6": CLIENT6}


@contextlib.contextmanager
def lan_bridge() -> Iterator[Lab]:
    """Make the host, and a guest that has not started; there is no default route."""
    with netns.lab(bridge=False) as made:
        made.host.ip(f"address flush dev {UPLINK}")
        made.add_bridge("br0", f"{HOST4}/24", f"{HOST6}/64")
        made.host.ip(f"link set {UPLINK} master br0")
        made.guest("web", GUEST4, GUEST6, bridge="br0", **ROUTERS).serve("tcp", 80)
        yield made


def add_default_routes(lab: Lab) -> None:
    lab.host.ip(f"route add default via {CLIENT4}", f"route add default via {CLIENT6}")


def start(lab: Lab) -> None:
    for operation in ("prepare", "started"):
        lab.hook("qemu", "web", operation, xml=domain("web", METADATA, NICS))


@pytest.fixture(scope="module", params=[False, True], ids=["", "br_netfilter"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with lan_bridge() as made:
        bridge_netfilter(made.host, request.param)
        made.guest("db", "192.0.2.201", "2001:db8:1::201", "52:54:00:00:00:02", bridge="br0", **ROUTERS)
        add_default_routes(made)
        start(made)
        yield made


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("who", ["LAN", "sibling"])
def test_client_on_the_bridge_is_answered_through_the_host(lab: Lab, who: str, host: str) -> None:
    """The guest would answer it directly."""
    client = {"LAN": lab.client, "sibling": lab.guests["db"]}[who]
    answer = client.ask(host, 8080)
    assert answer
    assert (answer.source, answer.port) == (host, 80)


@pytest.mark.parametrize("host", HOSTS)
def test_host_reaches_the_forward(lab: Lab, host: str) -> None:
    assert lab.host.ask(host, 8080)


def test_service_follows_the_default_route() -> None:
    """Guests that libvirt starts by itself may be there before the host has a lease on the LAN."""
    with lan_bridge() as lab:
        driver = TestDriver(lab)
        start(lab)
        driver.has("web", METADATA, NICS)
        with service(lab):
            assert [lab.client.ask(host, 8080) for host in HOSTS] == [None, None]
            add_default_routes(lab)
            eventually(lambda: all(lab.client.ask(host, 8080) for host in HOSTS), "the forward is open")
            lab.host.ip("route del default", f"route del default via {CLIENT6}")
            eventually(lambda: lab.client.ask(HOST4, 8080) is None, "the host's address is a gateway again")
