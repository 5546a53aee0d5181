"""Each finding found where it is, and only there."""

from ipaddress import ip_address

import pytest

from virt_forward.check import findings, includes, listing
from virt_forward.check.facts import Facts, Flush, Forwarding, Hook
from virt_forward.model import Domain, Forward, Guest, Seat

WEB = Guest(
    "1a2b3c4d-0000-4000-8000-000000000001",
    "web",
    forwards=(Forward("tcp", 8080, 8080, 80),),
    seats=(Seat(ip_address("10.10.0.200"), "virbr0", "52:54:00:00:00:01"),),
)
HOOK = Hook("qemu", "/etc/libvirt/hooks/qemu", True, True, 100.0, 200.0)
FLUSH = Flush("/etc/nftables.conf", True, True, False, False)
TABLE = 'table inet virt-forward {\n\tset own {\n\t\ttype ifname\n\t\telements = { "b", "a" }\n\t}\n}\n'
GOOD = Facts(
    guests=(WEB,),
    running=(Domain("web", WEB.uuid),),
    table_is=TABLE,
    table_should_be=TABLE.replace('"b", "a"', '"a", "b"'),
    hooks=(HOOK, HOOK._replace(driver="network")),
    flush=FLUSH,
    forwarding=(Forwarding("enp1s0", 4, True), Forwarding("enp1s0", 6, False)),
)


def test_nothing_is_found_where_all_is_well() -> None:
    assert findings.problems(GOOD) == []


@pytest.mark.parametrize(
    ("facts", "found", "domain"),
    [
        (GOOD._replace(hooks=(HOOK._replace(ours=False),)), "hook-missing", None),
        (GOOD._replace(hooks=(HOOK._replace(executable=False),)), "hook-missing", None),
        (GOOD._replace(hooks=(HOOK._replace(changed=201.0),)), "hook-not-loaded", None),
        (GOOD._replace(table_is=None), "table-missing", None),
        (GOOD._replace(running=(Domain("db", "2"), Domain("web", WEB.uuid))), "table-missing", "db"),
        (GOOD._replace(table_is=TABLE.replace('"a"', '"c"')), "table-differs", None),
        (GOOD._replace(table_should_be=None), "table-differs", None),
        (GOOD._replace(flush=FLUSH._replace(included_after=False)), "flush-unprotected", None),
        (GOOD._replace(forwarding=(Forwarding("enp1s0", 4, False),)), "ip-forwarding-off", None),
        (GOOD._replace(networkd_ipforward=("98-virbr0.network",)), "networkd-ipforward", None),
        (
            GOOD._replace(guests=(WEB._replace(conflicts=((Forward("tcp", 22, 22, 22), "taken"),)),)),
            "host-port-taken",
            "web",
        ),
        (GOOD._replace(guests=(WEB._replace(seats=()),)), "no-address", "web"),
    ],
)
def test_each_is_found_with_its_fix(facts: Facts, found: str, domain: str | None) -> None:
    (problem,) = findings.problems(facts)
    assert (problem.id, problem.domain) == (found, domain)
    assert problem.message
    assert problem.fix


def test_without_libvirt_nothing_is_said_of_its_guests() -> None:
    assert findings.problems(GOOD._replace(running=None)) == []


def test_a_daemon_that_does_not_run_will_look_when_it_starts() -> None:
    assert findings.problems(GOOD._replace(hooks=(HOOK._replace(changed=900.0, looked_at=0.0),))) == []


@pytest.mark.parametrize(
    "flush",
    [
        FLUSH,
        FLUSH._replace(included_after=False, drop_in=True),
        FLUSH._replace(included_after=False, service=True),
    ],
)
def test_one_protection_is_enough(flush: Flush) -> None:
    assert findings.problems(GOOD._replace(flush=flush)) == []


OURS = "/run/virt-forward/ruleset.nft"
INCLUDE = 'include "/run/virt-forward/*.nft"\n'


@pytest.mark.parametrize(
    ("text", "flushes", "included"),
    [
        ("", False, False),
        ("flush ruleset\n" + INCLUDE, True, True),
        (INCLUDE + "flush ruleset\n", True, False),
        ("flush ruleset\n#" + INCLUDE, True, False),
        ("# flush ruleset\n", False, False),
        ('flush  ruleset\ninclude "ours.nft"\n', True, True),
        (INCLUDE + 'include "flush.nft"\n', True, False),
        ('include "loop.nft"\n', False, False),
        (f"flush ruleset\ninclude '{OURS}'\n", True, True),
    ],
)
def test_includes_are_followed(text: str, flushes: bool, included: bool) -> None:
    files = {"ours.nft": INCLUDE, "flush.nft": "flush ruleset\n", "loop.nft": 'include "loop.nft"\n'}

    def read(pattern: str) -> list[tuple[str, str]]:
        return [(pattern, files[pattern])] if pattern in files else []

    assert includes.flushes(text, read) is flushes
    assert includes.included_after(text, OURS, read) is included


def test_files_that_include_each_other_are_read_once_each() -> None:
    asked: list[str] = []
    everything = "".join(f"include '{number}.nft'\n" for number in range(10))

    def read(pattern: str) -> list[tuple[str, str]]:
        asked.append(pattern)
        return [(pattern, f"flush ruleset\n{everything}" if pattern == "9.nft" else everything)]

    assert includes.flushes(everything, read)
    assert not includes.included_after(INCLUDE + everything, OURS, read)
    assert len(asked) <= 2 * 11 * 10


def test_a_listing_is_compared_by_its_parts() -> None:
    other = TABLE.replace("set own", "set other")
    assert listing.differences(listing.parse(TABLE), listing.parse(other)) == [
        "set other is missing",
        "set own is not ours",
    ]
