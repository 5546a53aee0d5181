"""``virt-forward watch`` on a real host: what changes while guests run is followed without a hook."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Iterator

import pytest

from support.base_host import COMMAND
from support.guest import Guest
from support.host import Host
from support.proc import Background, eventually
from support.xml import forwards, port_forward
from system.conftest import WEB

pytestmark = pytest.mark.system

ANY = Guest("any", forwards(port_forward("8080:80")), mac="52:54:00:00:00:99", ip6=None)
URI = ("--uri", "urn:virt-forward:1", "--key", "vf", "--live")


def edit(host: Host, *ports: str) -> None:
    words = "".join(port_forward(port) for port in ports)
    host.virsh("metadata", WEB.name, *URI, "--set", f"<forwards>{words}</forwards>")


def test_waiting_forward_is_completed_once_the_guest_has_an_address(service: Background, empty: Host) -> None:
    empty.start(ANY)
    lease = empty.wait_lease(ANY)
    # systemd 252 keeps no lease file, and the guest has not spoken with its host: the service heard DHCP.
    eventually(lambda: f"dnat ip to {lease}:80" in empty.our_table(), "the rule is there")
    empty.wait_page(8080, ANY.page, "the guest answers")


def test_edited_metadata_of_running_guest_is_applied(service: Background, web: Guest, empty: Host) -> None:
    edit(empty, "8080:80", "8082:80")
    empty.wait_page(8082, WEB.page, "the port that was added answers")
    edit(empty, "8080:80")
    eventually(lambda: empty.closed(8082), "the port that was removed is closed")
    assert empty.fetch(8080) == WEB.page
    empty.virsh("metadata", WEB.name, *URI, "--remove")
    eventually(lambda: empty.our_table() == "", "without metadata there is no rule")


def test_invalid_edit_changes_nothing(service: Background, web: Guest, empty: Host) -> None:
    edit(empty, "0:80")
    edit(empty, "8080:80", "8082:80")
    empty.wait_page(8082, WEB.page, "the next good edit counts")
    assert empty.fetch(8080) == WEB.page


def test_service_reconnects_to_restarted_libvirtd(service: Background, web: Guest, empty: Host) -> None:
    empty.restart_libvirtd()

    def answers() -> bool:
        edit(empty, "8080:80", "8083:80")
        return not empty.closed(8083)

    eventually(answers, "an edit after the restart counts")


def test_flushed_table_is_restored(service: Background, web: Guest, empty: Host) -> None:
    empty.run(["nft", "delete", "table", "inet", "virt-forward"])
    empty.wait_page(8080, WEB.page, "the table is back")


@pytest.fixture
def hung(empty: Host) -> Iterator[Callable[[], None]]:
    """Return a function that makes libvirtd hang until the test ends, or the function is called again."""
    pid = empty.read("/run/libvirtd.pid").strip()
    signals = itertools.cycle(("-STOP", "-CONT"))

    def toggle() -> None:
        empty.run(["kill", next(signals), pid])

    yield toggle
    empty.run(["kill", "-CONT", pid])


def test_table_is_restored_while_libvirtd_hangs(
    service: Background, web: Guest, empty: Host, hung: Callable[[], None]
) -> None:
    empty.wait_page(8080, WEB.page, "reached")
    hung()
    # It asks libvirt for everything, and waits for the answer.
    empty.run(["kill", "-HUP", str(service_pid(empty))])
    time.sleep(0.5)
    for _ in range(2):
        empty.run(["nft", "delete", "table", "inet", "virt-forward"])
        empty.wait_page(8080, WEB.page, "the table is back")
    hung()

    def answers() -> bool:
        edit(empty, "8080:80", "8084:80")
        return not empty.closed(8084)

    eventually(answers, "an edit counts once libvirtd goes on")


def test_service_stops_while_libvirtd_hangs(
    service: Background, empty: Host, hung: Callable[[], None]
) -> None:
    eventually(lambda: empty.run(["pgrep", "-f", "nft monitor"], check=False).out, "the service has begun")
    pid = service_pid(empty)
    hung()
    empty.run(["kill", "-HUP", str(pid)])
    time.sleep(0.5)
    empty.run(["kill", "-TERM", str(pid)])
    eventually(lambda: not service.alive(), "the service ends though libvirtd hangs", timeout=10)
    assert empty.run(["pgrep", "-f", "watch.sync_process"], check=False).out == ""


LISTEN = """\
import os, socket
sockets = []
for name in ("libvirt-sock", "libvirt-sock-ro"):
    path = "/run/libvirt/" + name
    if os.path.exists(path): os.unlink(path)
    one = socket.socket(socket.AF_UNIX); one.bind(path); one.listen(); sockets.append(one)
import select
open("/run/lab/listening", "w").close()
select.select(sockets, [], [])
open("/run/lab/woken", "w").close()
"""


def test_stopped_libvirtd_is_not_started_by_socket(service: Background, web: Guest, empty: Host) -> None:
    """As systemd would start it for whoever connects; it is followed again once somebody has started it."""
    empty.run(["mkdir", "-p", "/run/systemd/system"])
    try:
        empty.stop_libvirtd()
        empty.run(["sh", "-c", f"rm -f /run/lab/woken; python3 -c '{LISTEN}' >/dev/null 2>&1 &"])
        eventually(
            lambda: empty.run(["test", "-e", "/run/lab/listening"], check=False).status == 0, "listening"
        )
        empty.run(["kill", "-HUP", str(service_pid(empty))])
        time.sleep(4)
        assert empty.run(["test", "-e", "/run/lab/woken"], check=False).status != 0
        empty.run(["pkill", "-f", "lab/woken"])
        empty.start_libvirtd()

        def answers() -> bool:
            edit(empty, "8080:80", "8085:80")
            return not empty.closed(8085)

        eventually(answers, "an edit after the start counts")
    finally:
        empty.run(["rm", "-r", "/run/systemd/system"])


def service_pid(host: Host) -> int:
    """Return the service's process as the host numbers it."""
    return int(host.run(["pgrep", "-o", "-f", f"python3.*{COMMAND} watch"]).out.split()[0])


def waits(host: Host, pid: int) -> int:
    """Return how often the service has gone to sleep so far, which no load on the machine changes."""
    (threads,) = re.findall(r"Threads:\s+(\d+)", host.read(f"/proc/{pid}/status"))
    texts = host.run(["sh", "-c", f"cat /proc/{pid}/task/*/status"]).out
    found = re.findall(r"^voluntary_ctxt_switches:\s+(\d+)", texts, re.MULTILINE)
    assert len(found) == int(threads)
    return sum(map(int, found))


def resident(host: Host, pid: int) -> float:
    """Return the MiB that the service has in memory (proc_pid_status(5))."""
    (kib,) = re.findall(r"VmRSS:\s+(\d+) kB", host.read(f"/proc/{pid}/status"))
    return int(kib) / 1024


def test_idle_service_sleeps_and_stays_small(service: Background, web: Guest, empty: Host) -> None:
    empty.wait_page(8080, WEB.page, "reached")
    pid = service_pid(empty)
    for round_ in range(12):
        edit(empty, "8080:80", f"{8100 + round_}:80")
    empty.wait_page(8111, WEB.page, "the last edit counts")
    time.sleep(1)
    before = waits(empty, pid)
    time.sleep(4)
    woken = waits(empty, pid) - before
    print(f"\nidle beside a guest: woken {woken} times in 4 s, {resident(empty, pid):.0f} MiB resident")
    assert woken <= 200
    assert resident(empty, pid) < 64
