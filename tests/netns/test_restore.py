"""A guest that is restored from a file, or whose NICs are not those that it declares."""

from __future__ import annotations

import re

import pytest

from netns.support import PHASES, V4, Cast, mac_of, who
from support import state
from support.proc import Done
from support.xml import Nic, domain, forwards, port_forward, uuid_of
from virt_forward.hooks.dispatch import RESTORE_SECONDS

pytestmark = pytest.mark.root

WEB, FAR = mac_of(200), mac_of(5)
HTTP = port_forward("8080:80")


def two_nics(cast: Cast, operation: str, *nics: Nic) -> Done:
    """Run an event of web, which has forwards to a NIC on each bridge, and those NICs or others."""
    declared = forwards(
        f"<host mac='{WEB}' ip='{V4.guest(200)}'/>",
        f"<host mac='{FAR}' ip='10.20.0.5'/>",
        port_forward("8080:80", attributes=f'mac="{WEB}"'),
        port_forward("8081:80", attributes=f'mac="{FAR}"'),
    )
    sub, phase = PHASES[operation]
    text = domain("web", declared, nics, phase)
    return cast.scene.lab.hook("qemu", "web", operation, sub, xml=text, check=False)


NEAR, BEYOND = Nic("virbr0", WEB), Nic("virbr1", FAR)


def reached(cast: Cast) -> tuple[str | None, str | None]:
    return who(cast.client, V4.host, 8080), who(cast.client, V4.host, 8081)


def table(cast: Cast) -> str:
    """Return our table, whichever revision it is."""
    return re.sub(r"(set revision .*?elements = \{).*?\}", r"\1", cast.scene.table(), flags=re.DOTALL)


def test_a_nic_that_was_plugged_out_takes_its_rules_along(cast: Cast) -> None:
    cast.scene.event("web", "release")  # so that the scene stops it in the end
    assert two_nics(cast, "started", NEAR, BEYOND).status == 0
    assert reached(cast) == ("web", "far")
    assert two_nics(cast, "reconnect", NEAR).status == 0
    assert reached(cast) == ("web", None)
    assert "10.20.0.5" not in cast.scene.table()
    assert two_nics(cast, "reconnect", NEAR, BEYOND).status == 0
    assert reached(cast) == ("web", "far")


@pytest.mark.parametrize("children", [(HTTP,), (port_forward("0"),)], ids=["as it was", "spoiled"])
def test_a_guest_whose_only_nic_was_plugged_out_has_no_rules(cast: Cast, children: tuple[str, ...]) -> None:
    """Its forwards wait for a NIC; they are its own as before, whatever its metadata says meanwhile."""
    cast.scene.event("db", "started", HTTP)
    assert who(cast.client, V4.host, 8080) == "db"
    bare = domain("db", forwards(*children), [])
    assert cast.scene.lab.hook("qemu", "db", "reconnect", xml=bare).status == 0
    assert V4.guest(201) not in cast.scene.table()
    assert "host port tcp/8080 is taken by guest db" in cast.scene.refused("app", HTTP)
    cast.scene.event("db", "reconnect", HTTP)
    assert who(cast.client, V4.host, 8080) == "db"


def test_a_nic_that_is_not_there_is_wrong_at_a_start_and_no_obstacle_to_a_restore(cast: Cast) -> None:
    cast.scene.event("web", "release")
    refused = two_nics(cast, "prepare", NEAR)
    assert refused.status == 1
    assert f'guest "web": mac="{FAR}" is no NIC of this guest; its NICs: {WEB}' in refused.err
    for operation in ("restore", "prepare", "started"):
        assert two_nics(cast, operation, NEAR).status == 0, operation
    assert reached(cast) == ("web", None)


def test_a_restore_of_a_guest_that_runs_changes_nothing(cast: Cast) -> None:
    """libvirt asks the hook first, and only then finds that there is nothing to restore."""
    cast.scene.start("web", HTTP)
    before = cast.scene.table()
    for children in ((HTTP,), (port_forward("8090:80"),), (port_forward("0"),)):
        done = cast.scene.event("web", "restore", *children)
        assert (done.out, cast.scene.table()) == ("", before), children
    # One saved before it had any forwards.
    bare = domain("web", "", [NEAR], "prepare")
    assert cast.scene.lab.hook("qemu", "web", "restore", xml=bare).out == ""
    assert cast.scene.table() == before
    assert who(cast.client, V4.host, 8080) == "web"


def test_a_restored_guest_is_not_refused_for_what_it_declares(cast: Cast) -> None:
    """Others may have its ports by now, and what is wrong in the file it was saved to is hard to mend."""
    cast.scene.start("db", HTTP)
    before = table(cast)
    for children in ((HTTP,), (port_forward("0"),), ("<host ip='203.0.113.9'/>", HTTP)):
        for operation in ("restore", "prepare", "started"):
            done = cast.scene.event("web", operation, *children)
            assert (done.status, done.out) == (0, ""), operation
        assert who(cast.client, V4.host, 8080) == "db"
        cast.scene.stop("web")
        assert table(cast) == before
    cast.scene.refused("web", HTTP)


def test_restore_that_never_happened_waives_no_later_conflict(cast: Cast) -> None:
    """libvirt may find that it cannot restore a guest after it has asked the hook; then nothing follows."""
    cast.scene.start("db", HTTP)
    cast.scene.event("web", "restore", HTTP)
    run_dir = cast.scene.lab.run_dir
    assert uuid_of("web") in state.uuids(run_dir)
    with state.edited(run_dir) as connection:
        connection.execute("UPDATE guest SET changed = changed - ?", (RESTORE_SECONDS + 1,))
    assert "host port tcp/8080 is taken by guest db" in cast.scene.refused("web", HTTP)
    assert uuid_of("web") not in state.uuids(run_dir)
