"""A guest that is restored from a file, or whose NICs are not those that it declares."""

from __future__ import annotations

import re

import pytest

from netns.support import PHASES, V4, Topology, mac_of, who
from support import state
from support.proc import Done
from support.xml import Nic, domain, forwards, port_forward, uuid_of
from virt_forward.hooks.dispatch import RESTORE_SECONDS

pytestmark = pytest.mark.root

WEB, FAR = mac_of(200), mac_of(5)
HTTP = port_forward("8080:80")


def two_nics(topo: Topology, operation: str, *nics: Nic) -> Done:
    """Run an event of web, which has forwards to a NIC on each bridge, and those NICs or others."""
    declared = forwards(
        f"<host mac='{WEB}' ip='{V4.guest(200)}'/>",
        f"<host mac='{FAR}' ip='10.20.0.5'/>",
        port_forward("8080:80", attributes=f'mac="{WEB}"'),
        port_forward("8081:80", attributes=f'mac="{FAR}"'),
    )
    sub, phase = PHASES[operation]
    text = domain("web", declared, nics, phase)
    return topo.testbed.lab.hook("qemu", "web", operation, sub, xml=text, check=False)


NEAR, BEYOND = Nic("virbr0", WEB), Nic("virbr1", FAR)


def reached(topo: Topology) -> tuple[str | None, str | None]:
    return who(topo.client, V4.host, 8080), who(topo.client, V4.host, 8081)


def table(topo: Topology) -> str:
    """Return our table, whichever revision it is."""
    return re.sub(r"(set revision .*?elements = \{).*?\}", r"\1", topo.testbed.table(), flags=re.DOTALL)


def test_nic_that_was_plugged_out_takes_its_rules_along(topo: Topology) -> None:
    topo.testbed.event("web", "release")  # so that the testbed stops it in the end
    assert two_nics(topo, "started", NEAR, BEYOND).status == 0
    assert reached(topo) == ("web", "far")
    assert two_nics(topo, "reconnect", NEAR).status == 0
    assert reached(topo) == ("web", None)
    assert "10.20.0.5" not in topo.testbed.table()
    assert two_nics(topo, "reconnect", NEAR, BEYOND).status == 0
    assert reached(topo) == ("web", "far")


@pytest.mark.parametrize("children", [(HTTP,), (port_forward("0"),)], ids=["as it was", "spoiled"])
def test_guest_whose_only_nic_was_plugged_out_has_no_rules(topo: Topology, children: tuple[str, ...]) -> None:
    """Its forwards wait for a NIC; they are its own as before, whatever its metadata says meanwhile."""
    topo.testbed.event("db", "started", HTTP)
    assert who(topo.client, V4.host, 8080) == "db"
    bare = domain("db", forwards(*children), [])
    assert topo.testbed.lab.hook("qemu", "db", "reconnect", xml=bare).status == 0
    assert V4.guest(201) not in topo.testbed.table()
    assert "host port tcp/8080 is taken by guest db" in topo.testbed.refused("app", HTTP)
    topo.testbed.event("db", "reconnect", HTTP)
    assert who(topo.client, V4.host, 8080) == "db"


def test_nic_that_is_not_there_is_wrong_at_a_start_and_no_obstacle_to_a_restore(topo: Topology) -> None:
    topo.testbed.event("web", "release")
    refused = two_nics(topo, "prepare", NEAR)
    assert refused.status == 1
    assert f'guest "web": mac="{FAR}" is no NIC of this guest; its NICs: {WEB}' in refused.err
    for operation in ("restore", "prepare", "started"):
        assert two_nics(topo, operation, NEAR).status == 0, operation
    assert reached(topo) == ("web", None)


def test_restore_of_a_guest_that_runs_changes_nothing(topo: Topology) -> None:
    """libvirt asks the hook first, and only then finds that there is nothing to restore."""
    topo.testbed.start("web", HTTP)
    before = topo.testbed.table()
    for children in ((HTTP,), (port_forward("8090:80"),), (port_forward("0"),)):
        done = topo.testbed.event("web", "restore", *children)
        assert (done.out, topo.testbed.table()) == ("", before), children
    # One saved before it had any forwards.
    bare = domain("web", "", [NEAR], "prepare")
    assert topo.testbed.lab.hook("qemu", "web", "restore", xml=bare).out == ""
    assert topo.testbed.table() == before
    assert who(topo.client, V4.host, 8080) == "web"


def test_restored_guest_is_not_refused_for_what_it_declares(topo: Topology) -> None:
    """Others may have its ports by now, and what is wrong in the file it was saved to is hard to mend."""
    topo.testbed.start("db", HTTP)
    before = table(topo)
    for children in ((HTTP,), (port_forward("0"),), ("<host ip='203.0.113.9'/>", HTTP)):
        for operation in ("restore", "prepare", "started"):
            done = topo.testbed.event("web", operation, *children)
            assert (done.status, done.out) == (0, ""), operation
        assert who(topo.client, V4.host, 8080) == "db"
        topo.testbed.stop("web")
        assert table(topo) == before
    topo.testbed.refused("web", HTTP)


def test_restore_that_never_happened_waives_no_later_conflict(topo: Topology) -> None:
    """libvirt may find that it cannot restore a guest after it has asked the hook; then nothing follows."""
    topo.testbed.start("db", HTTP)
    topo.testbed.event("web", "restore", HTTP)
    run_dir = topo.testbed.lab.run_dir
    assert uuid_of("web") in state.uuids(run_dir)
    with state.edited(run_dir) as connection:
        connection.execute("UPDATE guest SET changed = changed - ?", (RESTORE_SECONDS + 1,))
    assert "host port tcp/8080 is taken by guest db" in topo.testbed.refused("web", HTTP)
    assert uuid_of("web") not in state.uuids(run_dir)
