"""The service with one guest and without libvirt: events of the table and of neighbours."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from support import netns, payload
from support.netns import BRIDGE, GATEWAY4, GUEST4, GUEST_MAC, HOOK_ENV, Lab
from support.proc import REPO, Background, children, eventually, is_tied
from support.xml import domain, forwards, host_ip, port_forward
from virt_forward.addresses.probe import ETH_P_ARP
from virt_forward.state.store import Store
from virt_forward.watch.table_check import is_intact

pytestmark = pytest.mark.root

TABLE = ("table", "inet", "virt-forward")
DECLARED = forwards(host_ip(GUEST4), port_forward("8080:80"))
START = """\
from virt_forward.watch import service, table_check
service.TABLE_CHECK_SECONDS = {look}
table_check.LARGE = {large}
service.Service().run()
"""


@pytest.fixture
def lab() -> Iterator[Lab]:
    """One guest that runs, with a forward."""
    with netns.lab() as made:
        made.guest()
        hooks(made, DECLARED, "prepare", "started")
        yield made
        hooks(made, DECLARED, "stopped", "release")


def hooks(lab: Lab, metadata: str, *operations: str) -> None:
    for operation in operations:
        sub = "end" if operation in ("stopped", "release") else "begin"
        lab.hook("qemu", "web", operation, sub, xml=domain("web", metadata))


@pytest.fixture
def watch(lab: Lab) -> Iterator[Callable[..., Background]]:
    """Start the service; it ends with the test."""
    running: list[Background] = []

    def start(look: float = 3600, path: str = HOOK_ENV["PATH"], large: int = 1 << 20) -> Background:
        env = {**HOOK_ENV, **lab.env, "PYTHONPATH": str(REPO / "lib"), "PATH": path}
        words = ["env", "-i", *(f"{key}={value}" for key, value in env.items())]
        argv = [*words, "/usr/bin/python3", "-c", START.format(look=look, large=large)]
        service = lab.host.background(argv, lab.dir / "watch.log")
        running.append(service)
        service.wait_for(lambda: monitor_of(service), "the service has begun")
        return service

    yield start
    for service in running:
        service.end()
        assert service.process.returncode == 0, service.text()


def monitor_of(service: Background) -> int:
    """Return the PID of the service's nft monitor once it is subscribed, 0 before."""
    for pid in children(service.pid):
        if words_of(pid).startswith(b"nft\0monitor\0"):
            return pid if any(int(row[3], 16) for row in sockets_of(pid)) else 0
    return 0


def there(lab: Lab) -> bool:
    return "dnat" in lab.host.run(["nft", "list", *TABLE], check=False).out


def sockets_of(pid: int) -> list[list[str]]:
    """Return a process's netlink sockets; the fourth column is its groups, the ninth the lost events."""
    rows = [line.split() for line in Path(f"/proc/{pid}/net/netlink").read_text().splitlines()[1:]]
    return [row for row in rows if row[2] == str(pid)]


def lose_events(lab: Lab, pid: int) -> None:
    """Change the ruleset until a process that is stopped has lost events."""
    numbers = ", ".join(str(number) for number in range(20000))
    table = f"table ip flood {{ set s {{ type mark; elements = {{ {numbers} }}; }}; }}"
    for _ in range(500):
        lab.host.nft(f"{table}\ndelete table ip flood\n")
        if any(int(row[8]) for row in sockets_of(pid)):
            return
    raise AssertionError(f"no event was lost: {sockets_of(pid)}")


def test_table_deleted_with_lost_events_is_restored(lab: Lab, watch: Callable[..., Background]) -> None:
    service = watch()
    monitor = monitor_of(service)
    os.kill(monitor, signal.SIGSTOP)
    try:
        lose_events(lab, monitor)
        lab.host.run(["nft", "delete", *TABLE])
    finally:
        os.kill(monitor, signal.SIGCONT)
    eventually(lambda: there(lab), f"the table is back\n{service.text()}")


@pytest.mark.parametrize("what", ["delete", "flush"])
def test_table_is_checked_without_event(lab: Lab, watch: Callable[..., Background], what: str) -> None:
    """The monitor is stopped, so that there is no event."""
    service = watch(look=0.5)
    monitor = monitor_of(service)
    os.kill(monitor, signal.SIGSTOP)
    try:
        lab.host.run(["nft", what, *TABLE])
        eventually(lambda: there(lab), "the table is back")
    finally:
        os.kill(monitor, signal.SIGCONT)


def test_table_is_intact_only_with_revision_of_file(lab: Lab) -> None:
    store = Store(str(lab.run_dir))

    def looked() -> bool:
        return payload.inside(lab.host.path, lambda: is_intact(store))

    assert looked()
    for damage in (
        "flush table inet virt-forward",
        "delete table inet virt-forward",
        "flush set inet virt-forward revision; add element inet virt-forward revision { 1 }",
    ):
        lab.host.nft(damage)
        assert not looked(), damage
        lab.host.run(["nft", "-f", lab.run_dir / "ruleset.nft"])
        assert looked(), damage
    hooks(lab, DECLARED, "stopped")
    assert looked()


def test_check_of_intact_table_takes_no_lock(lab: Lab) -> None:
    store = Store(str(lab.run_dir))
    with store.lock():
        assert payload.inside(lab.host.path, lambda: is_intact(store))


def test_service_that_waits_for_the_lock_stops_when_told(lab: Lab, watch: Callable[..., Background]) -> None:
    service = watch()
    with (lab.run_dir / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lab.host.run(["nft", "delete", *TABLE])

        def waits() -> bool:
            lines = Path("/proc/locks").read_text().splitlines()
            return any("->" in line and str(service.pid) in line.split() for line in lines)

        service.wait_for(waits, "it waits for the lock")
        os.kill(service.pid, signal.SIGTERM)
        eventually(lambda: not service.alive(), "it ends before it has the lock", timeout=8)
    assert not there(lab)


def put_nft(lab: Lab, command: str) -> str:
    """Have nft -f run a shell's command first, from now on; return the PATH for that."""
    program = lab.dir / "bin" / "nft"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f'#!/bin/sh\n[ "$1" = -f ] && {command}\nexec /usr/sbin/nft "$@"\n')
    program.chmod(0o755)
    return f"{program.parent}:{HOOK_ENV['PATH']}"


def restores(service: Background) -> bool:
    """Tell whether the service has a child process that restores the table."""
    return any(b"watch.table_process" in words_of(pid) for pid in children(service.pid))


def words_of(pid: int) -> bytes:
    """Return the command line of a process; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def test_jobs_wait_until_a_large_table_is_restored(lab: Lab, watch: Callable[..., Background]) -> None:
    """They would wait for the lock, and with them the service."""
    gate = lab.dir / "gate"
    os.mkfifo(gate)
    path, calls = counting(lab)
    service = watch(path=path, large=1)
    begun(calls)
    put_nft(lab, f"read _ <{gate}")
    lab.host.run(["nft", "delete", *TABLE])
    # Opened once somebody reads: nft has been started.
    with gate.open("w") as opened:
        before = calls()
        arp_request(lab, "web", GUEST_MAC, ["10.10.0.77"])
        time.sleep(1.5)
        assert (calls(), there(lab), restores(service)) == (before, False, True)
        put_nft(lab, "true")
        opened.write("\n")
    eventually(lambda: there(lab), f"the table is back\n{service.text()}")
    eventually(lambda: calls() > before, "the new address is looked at")
    eventually(lambda: not restores(service), "the process ends")
    assert "virt-forward" not in service.text(), service.text()


def test_service_stops_while_a_large_table_is_restored(lab: Lab, watch: Callable[..., Background]) -> None:
    begin = lab.dir / "begin"
    os.mkfifo(begin)
    path = put_nft(lab, "true")
    service = watch(path=path, large=1)
    eventually(lambda: not restores(service), "it has begun")
    put_nft(lab, f"echo $$ >{begin} && exec sleep 600")
    lab.host.run(["nft", "delete", *TABLE])
    nft = int(begin.read_text())
    eventually(lambda: is_tied(nft), "nft is tied to the process that has started it")
    os.kill(service.pid, signal.SIGTERM)
    eventually(lambda: not service.alive(), "it ends before nft has", timeout=8)
    eventually(lambda: not words_of(nft), "nft ends with the process that has started it")
    assert not there(lab)


def test_include_file_is_loaded_only_where_there_is_no_table(lab: Lab) -> None:
    program = (
        "from virt_forward.state.store import Store; from virt_forward.watch import table_check; "
        "print(table_check.load_include(Store()))"
    )

    def loaded() -> bool:
        env = {**HOOK_ENV, **lab.env, "PYTHONPATH": str(REPO / "lib")}
        return lab.host.run(["/usr/bin/python3", "-c", program], env=env).out == "True\n"

    before = lab.host.ruleset(*TABLE)
    lab.host.nft("add chain inet virt-forward stranger")
    assert not loaded()
    assert "stranger" in lab.host.ruleset(*TABLE)
    lab.host.run(["nft", "delete", *TABLE])
    assert loaded()
    assert lab.host.ruleset(*TABLE) == before
    lab.host.run(["nft", "delete", *TABLE])
    (lab.run_dir / "ruleset.nft").touch()
    assert not loaded(), "somebody may have edited it"
    assert not there(lab)


def test_table_is_rebuilt_once_where_the_include_file_cannot_be_written(
    lab: Lab, watch: Callable[..., Background]
) -> None:
    service = watch()
    # In the place of the new text there is a directory.
    (lab.run_dir / ".ruleset.nft.new").mkdir()
    (lab.run_dir / "ruleset.nft").unlink()
    lab.host.run(["nft", "delete", *TABLE])
    eventually(lambda: there(lab), f"the table is back\n{service.text()}")
    # A rebuild begins within the settle time after the event of the one before.
    time.sleep(1)
    before = lab.host.ruleset(*TABLE)
    time.sleep(1)
    assert lab.host.ruleset(*TABLE) == before, service.text()


def counting(lab: Lab) -> tuple[str, Callable[[], int]]:
    """Return a PATH whose ip(8) records calls that list neighbours, and a function that counts them.

    A refresh lists them once, as no source knows the guest's IPv6 address.
    """
    notes, program = lab.dir / "calls", lab.dir / "bin" / "ip"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\ncase "$*" in *"neighbour show"*) echo x >>{notes} ;; esac\n'
        f'PATH={HOOK_ENV["PATH"]} exec ip "$@"\n'
    )
    program.chmod(0o755)
    return f"{program.parent}:{HOOK_ENV['PATH']}", lambda: len(
        notes.read_text().split() if notes.exists() else []
    )


def begun(calls: Callable[[], int]) -> None:
    """Wait until the service has finished its initial work."""
    eventually(lambda: calls() > 0, "it looks at the neighbours")
    before = -1
    while before != calls():
        before = calls()
        time.sleep(1.5)


def arp_request(lab: Lab, name: str, mac: str, ips: Iterator[str] | list[str], pause: float = 0.005) -> None:
    """Let a guest ask for the host's address, from each of these addresses."""

    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as sender:
            for ip in ips:
                start = bytes.fromhex("0001 0800 06 04 0001" + mac.replace(":", "")) + ip_address(ip).packed
                request = start + bytes(6) + ip_address(GATEWAY4).packed
                sender.sendto(request, ("eth0", ETH_P_ARP, 0, 0, b"\xff" * 6))
                time.sleep(pause)

    payload.inside(lab.guests[name].path, send)


def test_neighbour_flood_causes_at_most_one_refresh_per_second(
    lab: Lab, watch: Callable[..., Background]
) -> None:
    path, calls = counting(lab)
    watch(path=path)
    begun(calls)
    before, began = calls(), time.monotonic()
    for _ in range(3):
        arp_request(lab, "web", GUEST_MAC, [f"10.10.0.{number}" for number in range(2, 200)])
    elapsed = time.monotonic() - began
    eventually(lambda: calls() > before, "the new addresses are noticed")
    assert calls() - before <= elapsed + 2


def test_irrelevant_neighbours_cause_no_refresh(lab: Lab, watch: Callable[..., Background]) -> None:
    """A NIC of no guest on the bridge, and a guest at its known address."""
    lab.guest("db", "10.10.0.201", None, "52:54:00:00:00:02")
    path, calls = counting(lab)
    watch(path=path)
    begun(calls)
    before = calls()
    arp_request(lab, "db", "52:54:00:00:00:02", [f"10.10.0.{number}" for number in range(2, 100)], 0.04)
    arp_request(lab, "web", GUEST_MAC, [GUEST4] * 50, 0.04)
    # Relevant ones would cause six, one a second. The service probes the guest for an IPv6 address with
    # increasing intervals, and two answers at most (after 4 and 8 seconds) can be within this time.
    assert calls() - before <= 2
    before = calls()
    # A new address is noticed.
    arp_request(lab, "web", GUEST_MAC, ["10.10.0.77"])
    eventually(lambda: calls() > before, "a new address is noticed")
    assert BRIDGE in lab.host.run(["ip", "neighbour"]).out
