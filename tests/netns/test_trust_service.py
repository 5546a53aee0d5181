"""What the service alone sees: leases that the host's own server gives, and a table that is gone."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from netns.trust import MACS, WEB4, Guests, pages, repeated
from support import frames
from support.frames import BROADCAST
from support.netns import BRIDGE, GATEWAY4, Ns
from support.proc import eventually

pytestmark = pytest.mark.root

UDHCPC = """\
#!/bin/sh
[ "$1" = bound ] && ip address replace "$ip/24" dev "$interface" && ip route replace default via "$router"
exit 0
"""


def serve_dhcp(guests: Guests) -> None:
    """Run a DHCP server on the host: it gives ``web`` .50 and anybody else what follows .100."""
    words = f"""
        --no-daemon --conf-file=/dev/null --port=0 --interface={BRIDGE} --bind-dynamic --no-ping --user=root
        --dhcp-range=10.10.0.100,10.10.0.110,255.255.255.0,1h --dhcp-host={MACS["web"]},{WEB4}
        --dhcp-leasefile={guests.lab.dir}/leases --pid-file={guests.lab.dir}/dnsmasq.pid
    """.split()
    log = guests.lab.dir / "dnsmasq.log"
    running = guests.host.background(["dnsmasq", *words], log)
    running.wait_for(lambda: ":67 " in guests.host.run(["ss", "-Hlnu"]).out, "the DHCP server listens")


def ask_for_lease(guests: Guests, guest: Ns) -> None:
    script = guests.lab.dir / "udhcpc"
    script.write_text(UDHCPC)
    script.chmod(0o755)
    words = "busybox udhcpc -i eth0 -n -q -f -t 5 -T 1 -s"
    guest.run([*words.split(), script])


def test_lease_of_the_hosts_own_server_completes_a_forward(watched: Guests) -> None:
    watched.start("web")
    watched.settle()
    serve_dhcp(watched)
    ask_for_lease(watched, watched.web)
    watched.follow(lambda: watched.leads() == {WEB4}, "the lease is heard")
    assert pages(watched) == {"web"}


def test_lease_that_a_sibling_got_in_anothers_name_leads_nobody_to_it(watched: Guests) -> None:
    """A DHCP server takes the client's word for its MAC address; the frame of ``db`` bears its own."""
    trap = "10.10.0.105"
    watched.start("web")
    watched.settle()
    serve_dhcp(watched)
    request = frames.udp(
        ("0.0.0.0", 68), ("255.255.255.255", 67), frames.dhcp_request(MACS["web"], trap, GATEWAY4)
    )
    frame = frames.ethernet(MACS["db"], BROADCAST, frames.ETH_P_IP, request)
    given = watched.lab.dir / "leases"
    with repeated(lambda: frames.send(watched.db, frame)):
        eventually(lambda: trap in given.read_text(), "the server gives the lease")
        watched.settle()
    # Silent until now: the kernel knows nothing of it.
    watched.address(watched.db, trap)
    assert pages(watched) == {None}
    watched.settle()
    assert pages(watched) == {None}


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Let a process not run for a while, as on a busy host."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        # The service may have ended it meanwhile, and started another.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def big_ruleset(path: Path, count: int) -> Path:
    """Write a ruleset, as of somebody who blocks many networks by a rule each."""
    rules = "\n".join(
        f"add rule ip big c ip saddr 198.18.{number >> 8 & 255}.{number & 255} tcp dport {number % 60000 + 1}"
        f' counter drop comment "{"x" * 100}"'
        for number in range(count)
    )
    path.write_text(f"add table ip big\nadd chain ip big c\n{rules}\n")
    return path


@pytest.mark.parametrize("paused", [False, True], ids=["running", "paused"])
def test_table_comes_back_after_a_flush_that_loses_events(watched: Guests, paused: bool) -> None:
    """More goes away at once than the monitor's socket holds: it says that events were lost, and no more."""
    assert watched.service
    watched.address(watched.web, WEB4)
    watched.start("web", WEB4)
    big = big_ruleset(watched.lab.dir / "big.nft", 30000)
    monitor = watched.service.monitor()
    with stopped(monitor) if paused else contextlib.nullcontext():
        watched.host.run(["nft", "-f", big])
        watched.host.run(["nft", "flush", "ruleset"])
    eventually(lambda: watched.page() == "web", "the table is back", 60, 0.2)
    assert pages(watched) == {"web"}


def test_table_comes_back_where_no_event_told_of_it(watched: Guests) -> None:
    """The service looks by itself now and then; that the monitor lives and says nothing proves nothing."""
    assert watched.service
    watched.address(watched.web, WEB4)
    watched.start("web", WEB4)
    with stopped(watched.service.monitor()):
        watched.host.run(["nft", "delete", "table", "inet", "virt-forward"])
        eventually(lambda: watched.page() == "web", "the table is back", 90, 0.2)
