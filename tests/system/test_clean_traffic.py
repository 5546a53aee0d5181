"""A guest that takes another one's addresses: libvirt can filter what a guest sends, and nobody else can.

The filter is ``clean-traffic`` (formatnwfilter.html), which comes with libvirt.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import guest as guests
from support import host as hosts
from support import initramfs, netns
from support.guest import Guest
from support.host import Host
from support.proc import eventually
from support.xml import forwards, host_ip, port_forward

pytestmark = pytest.mark.system

FILTERS = Path("/etc/libvirt/nwfilter")
WEB4, DB4, DB_MAC = netns.GUEST4, "10.10.0.201", "52:54:00:00:00:02"
INTERFACE = f"<interface type='bridge'>@<source bridge='{netns.BRIDGE}'/>{{}}</interface>"
CLEAN = f"<filterref filter='clean-traffic'><parameter name='IP' value='{DB4}'/></filterref>"

# It becomes the other guest as far as the wire shows, and says so again and again.
TAKE = f"""\
#!/bin/sh
printf 'Content-Type: text/plain\\r\\n\\r\\nsoon\\n'
(
    sleep 0.5
    [ "$QUERY_STRING" = ip ] || ip link set eth0 address {netns.GUEST_MAC}
    ip addr add {WEB4}/24 dev eth0
    while :; do
        arping -A -c 1 -I eth0 {WEB4}
        sleep 0.1
    done
) >/dev/null 2>&1 </dev/null &
"""

WEB = Guest("web", forwards(port_forward("8080:80")), ip4=f"{WEB4}/24", ip6=None)


def db(interface: str) -> Guest:
    return Guest(
        "db",
        forwards(host_ip(DB4), port_forward("8081:80")),
        DB_MAC,
        ip4=f"{DB4}/24",
        ip6=None,
        interface=interface,
    )


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """A host with libvirt's own filters, our hooks, and ``web`` running, which nothing filters."""
    files = {f"etc/libvirt/nwfilter/{path.name}": path.read_text() for path in FILTERS.glob("*.xml")}
    assert "etc/libvirt/nwfilter/clean-traffic.xml" in files, "install libvirt-daemon-config-nwfilter"
    with hosts.host(files) as made:
        made.start(WEB)
        made.wait_booted(WEB)
        yield made
        made.forget_all()


@pytest.fixture(autouse=True)
def no_db(host: Host) -> Iterator[None]:
    """End what a test has started, also where it fails."""
    yield
    host.virsh("destroy", "db", check=False)
    eventually(lambda: "db" not in host.virsh("list", "--name").out.split(), "db has ended")


def start_db(host: Host, interface: str) -> Guest:
    """Start ``db``, whose initramfs has one more program: a page that makes it another guest."""
    made = db(interface)
    boot = guests.assets()
    extra = [("www", None), ("www/cgi-bin", None), ("www/cgi-bin/take", TAKE.encode())]
    initrd = host.dir / "db.img"
    # The kernel unpacks one archive after the other (initramfs buffer format).
    initrd.write_bytes(boot.initrd.read_bytes() + gzip.compress(initramfs.cpio(extra), 1))
    text = host.domain(made).replace(str(boot.initrd), str(initrd))
    host.run(["virsh", "-q", "create", "/dev/stdin"], stdin=text)
    host.wait_booted(made)
    return made


def take(host: Host, what: str) -> None:
    """Make ``db`` take the IP address of ``web``, or its MAC address as well."""
    assert guests.fetch(host.ns.path, DB4, 80, f"/cgi-bin/take?{what}") == "soon"


TAKEN = pytest.mark.parametrize("what", ["ip", "mac"])


@TAKEN
def test_unfiltered_guest_takes_the_address_of_another(host: Host, what: str) -> None:
    """So says docs/security.md of a bridge without filters; and so the next test proves something."""
    made = start_db(host, INTERFACE.format(""))
    host.wait_page(8080, WEB.page, "the forward leads to its guest")
    take(host, what)
    host.wait_page(8080, made.page, "the forward leads to the other guest")
    host.virsh("destroy", made.name)
    # Once the kernel has asked the neighbour that is gone, and given it up.
    host.wait_page(8080, WEB.page, "the forward leads to its guest again", timeout=90)


@TAKEN
def test_filtered_guest_takes_no_address_of_another(host: Host, what: str) -> None:
    made = start_db(host, INTERFACE.format(CLEAN))
    host.wait_page(8080, WEB.page, "the forward leads to its guest")
    host.wait_page(8081, made.page, "the other's as well")
    take(host, what)
    eventually(lambda: drops(host) > 10, "what it sends is dropped")
    assert {host.fetch(8080) for _ in range(20)} == {WEB.page}
    host.virsh("destroy", made.name)
    assert host.fetch(8080) == WEB.page


def drops(host: Host) -> int:
    """Return how many frames libvirt's filters have dropped."""
    listed = host.run(["nft", "list", "table", "bridge", "nat"]).out
    return sum(map(int, re.findall(r"counter packets (\d+) bytes \d+ drop", listed)))
