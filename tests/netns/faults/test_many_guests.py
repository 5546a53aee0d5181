"""Dozens of guests at once, as a host has them when it boots, shuts down or restarts libvirtd.

VIRT_FORWARD_TEST_ROUNDS=20 in the environment is the full measure; one round by default.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import pytest

from netns.support import PHASES, mac_of
from support import person, state
from support.netns import Lab
from support.proc import Done
from support.xml import Nic, domain, forwards, host_ip, port_forward, uuid_of
from virt_forward.check import listing

pytestmark = pytest.mark.root

GUESTS = 50
ROUNDS = int(os.environ.get("VIRT_FORWARD_TEST_ROUNDS", "1"))


def name_of(number: int) -> str:
    return f"g{number:02}"


def xml_of(number: int, operation: str) -> str:
    """Every guest has a port of its own, some of its own, and its share of one that all have."""
    metadata = forwards(
        host_ip(f"10.10.0.{100 + number}"),
        host_ip(f"fd10:10::1:{number:x}"),
        port_forward(f"{10000 + number}:80", f"{20000 + number * 10}-{20005 + number * 10}:6000"),
        port_forward("9000", proto="udp", attributes=f'source="198.51.100.{number}"'),
    )
    return domain(name_of(number), metadata, [Nic(mac=mac_of(number))], PHASES[operation][1])


class ManyGuests:
    """Runs the events of many guests, each guest's one after the other and all guests at once."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    def event(self, number: int, operation: str, xml: str = "") -> Done:
        text, sub = xml or xml_of(number, operation), PHASES[operation][0]
        return self.lab.hook("qemu", name_of(number), operation, sub, xml=text, check=False)

    def all(self, numbers: Iterable[int], *operations: str) -> None:
        def life(number: int) -> list[Done]:
            return [self.event(number, operation) for operation in operations]

        with ThreadPoolExecutor(GUESTS) as pool:
            for done in (done for all_of_one in pool.map(life, numbers) for done in all_of_one):
                assert (done.status, done.out) == (0, ""), done

    def table(self) -> str:
        return self.lab.host.run(["nft", "-s", "list", "table", "inet", "virt-forward"], check=False).out

    def assert_right(self, numbers: Iterable[int]) -> None:
        """Each of these guests has all its rules once, and nobody else any."""
        names = {name_of(number) for number in numbers}
        text = self.table()
        jumps = Counter(re.findall(r"(?:jump|goto) ((?:guest|forward)-g\d\d)-", text))
        # One element a port, one rule in the chain that all share; one element an address.
        should = Counter({f"guest-{name}": 8 for name in names} | {f"forward-{name}": 2 for name in names})
        assert jumps == should
        chains = Counter(re.findall(r"chain ((?:guest|forward)-g\d\d)-", text))
        assert chains == Counter(dict.fromkeys(should, 1))
        self._assert_written(names)

    def _assert_written(self, names: set[str]) -> None:
        run_dir = self.lab.run_dir
        assert state.uuids(run_dir) == set(map(uuid_of, names))
        assert not state.left(run_dir)
        now = listing.parse(self.table())
        self.lab.host.run(["nft", "-c", "-f", run_dir / "ruleset.nft"])
        made = self.lab.host.run(
            ["unshare", "--net", "sh", "-c", f"nft -f {run_dir}/ruleset.nft && nft -s list ruleset"]
        ).out
        assert listing.parse(made) == now or not names


@pytest.fixture
def guests(lab: Lab) -> ManyGuests:
    lab.host.nft(person.RULESET)
    return ManyGuests(lab)


def test_fifty_guests_start_reconnect_and_stop_at_once(guests: ManyGuests) -> None:
    before = guests.lab.host.theirs()
    everybody = range(GUESTS)
    for _ in range(ROUNDS):
        guests.all(everybody, "prepare", "start", "started")
        guests.assert_right(everybody)
        guests.lab.host.run(["nft", "delete", "table", "inet", "virt-forward"])
        guests.all(everybody, "reconnect")
        guests.assert_right(everybody)
        guests.all(everybody, "stopped", "release")
        guests.assert_right(())
        assert guests.table() == ""
    assert guests.lab.host.theirs() == before


def test_some_stop_while_others_start(guests: ManyGuests) -> None:
    early, late = range(12), range(12, 24)
    guests.all(early, "prepare", "started")
    with ThreadPoolExecutor(2) as pool:
        futures = [
            pool.submit(guests.all, early, "stopped", "release"),
            pool.submit(guests.all, late, "prepare", "started"),
        ]
        for future in futures:
            future.result()
    guests.assert_right(late)


def test_of_guests_that_want_the_same_port_one_gets_it(guests: ManyGuests) -> None:
    def prepare(number: int) -> Done:
        metadata = forwards(host_ip(f"10.10.0.{100 + number}"), port_forward("8080:80"))
        return guests.event(number, "prepare", domain(name_of(number), metadata, [Nic()], "prepare"))

    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(prepare, range(8)))
    assert sorted(item.status for item in done) == [0] + [1] * 7
    winner = next(number for number, item in enumerate(done) if item.status == 0)
    assert all(f"is taken by guest {name_of(winner)}" in item.err for item in done if item.status)


def test_several_hooks_for_one_guest_at_once(guests: ManyGuests) -> None:
    guests.all([1], "prepare")
    with ThreadPoolExecutor(6) as pool:
        for done in pool.map(lambda _: guests.event(1, "reconnect"), range(6)):
            assert done.status == 0
    guests.assert_right([1])


def test_run_directory_removed_while_many_guests_start(guests: ManyGuests) -> None:
    """No hook fails for it, and a reconnect of all mends it."""
    some = range(10)
    guests.all(some, "prepare")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(guests.all, some, "started", "reconnect")
        while not running.done():
            shutil.rmtree(guests.lab.run_dir, ignore_errors=True)
            time.sleep(0.2)
        running.result()
    guests.all(some, "reconnect")
    guests.assert_right(some)
