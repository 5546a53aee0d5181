"""``virt-forward add`` and ``remove``, with a real libvirtd and the programs that people make guests with."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from support.base_host import COMMAND
from support.guest import Guest
from support.host import Host
from support.proc import Background, Done
from support.xml import forwards, port_forward

pytestmark = pytest.mark.system

BOTH: tuple[tuple[str, ...], ...] = ((), ("--inactive",))

SHOP = Guest(
    "shop",
    '<o:os xmlns:o="urn:other"><o:version>13</o:version></o:os>'
    '<vf:forwards xmlns:vf="urn:virt-forward:1"><!-- the till --><vf:host ip="10.10.0.41"/></vf:forwards>',
    mac="52:54:00:00:00:41",
)
RIVAL = Guest("rival", forwards("<host ip='10.10.0.42'/>", port_forward("8443:443")), mac="52:54:00:00:00:42")


def metadata(host: Host, name: str, *flags: str) -> str:
    """Return the ``<metadata>`` of a guest."""
    found = re.search(r"<metadata>.*</metadata>", host.virsh("dumpxml", name, *flags).out, re.DOTALL)
    return found[0] if found else ""


def refused(host: Host, *words: str, status: int = 1) -> str:
    """Run a command that must fail, and return what it says."""
    done = host.command(*words, check=False)
    assert (done.status, done.out) == (status, ""), done
    return done.err


def test_added_forward_answers_when_the_command_returns(empty: Host, web: Guest) -> None:
    before = [metadata(empty, "web", *flags) for flags in BOTH]
    said = empty.command("add", "web", "8090:80").out
    assert empty.fetch(8090) == web.page, empty.explain()
    assert re.search(r"^web +active +tcp/8090 +10.10.0.200, fd10:10::200 80 ", said, re.MULTILINE), said
    for flags in BOTH:
        assert '<range start="8090" to="80"/>' in metadata(empty, "web", *flags)
    assert empty.command("remove", "web", "8090").out == "web: removed 8090:80/tcp\n"
    assert empty.shows([None, web.page], [8090, 8080])
    # libvirt declares a prefix wherever it sets metadata; here it is not used.
    after = [metadata(empty, "web", *flags).replace(' xmlns:vf="urn:virt-forward:1"', "") for flags in BOTH]
    assert after == before


def test_added_forward_answers_with_the_service_running(service: Background, web: Guest, empty: Host) -> None:
    """The service sees the edit as well, and does the same at the same time."""
    empty.command("add", "web", "8091:80", "--live")
    assert empty.fetch(8091) == web.page, empty.explain()
    empty.command("remove", "web", "8091", "--live")
    assert empty.closed(8091)


def test_live_and_config_are_edited_each_on_its_own(empty: Host) -> None:
    empty.define(SHOP)
    empty.virsh("start", "shop", "--paused")
    empty.command("add", "shop", "8201:80", "--live")
    empty.command("add", "shop", "8202:80", "--config")
    assert ("8201" in metadata(empty, "shop"), "8202" in metadata(empty, "shop")) == (True, False)
    inactive = metadata(empty, "shop", "--inactive")
    assert ("8201" in inactive, "8202" in inactive) == (False, True)
    assert [row["start"] for row in empty.forwards()] == [8201]
    said = empty.command("add", "shop", "8201:80", "8202:80").out
    assert len(re.findall(r"^shop +active +tcp/820[12] ", said, re.MULTILINE)) == 2
    assert said == empty.command("add", "shop", "8201:80", "8202:80", check=True).out.replace(
        "shop: 8201:80/tcp is declared already\nshop: 8202:80/tcp is declared already\n", ""
    )
    empty.command("remove", "shop", "--all")
    for flags in BOTH:
        left = metadata(empty, "shop", *flags)
        assert "portForward" not in left
        assert "<!-- the till -->" in left
        assert '<vf:host ip="10.10.0.41"/>' in left
        assert "<o:version>13</o:version>" in left
    assert empty.forwards() == []


def test_guest_that_does_not_run_is_changed_for_its_next_start(empty: Host) -> None:
    empty.define(SHOP)
    said = json.loads(empty.command("add", "shop", "8203:80", "--json").out)
    assert (said["changed"], said["added"]) == (["config"], ["8203:80/tcp"])
    assert [row["state"] for row in said["forwards"]] == ["inactive"]
    empty.virsh("start", "shop", "--paused")
    assert [row["state"] for row in empty.forwards()] == ["active"]
    empty.virsh("managedsave", "shop")
    assert "managed save image" in empty.command("add", "shop", "8211:80").err
    empty.virsh("start", "shop")
    assert [row["start"] for row in empty.forwards()] == [8203]


def test_changes_at_the_same_time_are_all_made(empty: Host) -> None:
    empty.define(SHOP)
    empty.virsh("start", "shop", "--paused")
    ports = range(8220, 8226)
    each = " & ".join(f"{COMMAND} add shop {port}:80 >/run/lab/{port}" for port in ports)
    empty.run(["sh", "-c", f"{each} & wait"])
    for port in ports:
        assert f" active  tcp/{port} " in empty.read(f"/run/lab/{port}")
    assert [row["start"] for row in empty.forwards()] == [*ports]
    assert all(f'start="{port}"' in metadata(empty, "shop", "--inactive") for port in ports)


def test_transient_guest_has_no_configuration(empty: Host) -> None:
    empty.run(["virsh", "-q", "create", "--paused", "/dev/stdin"], stdin=empty.domain(SHOP))
    assert "is transient" in refused(empty, "add", "shop", "8204:80", "--config")
    empty.command("add", "shop", "8204:80")
    assert [row["state"] for row in empty.forwards()] == ["active"]
    number = empty.virsh("domid", "shop").out.strip()
    empty.command("remove", number, "8204")
    assert empty.forwards() == []


def test_forward_without_known_address_says_what_it_waits_for(empty: Host) -> None:
    lost = Guest("lost", mac="52:54:00:00:00:43")
    empty.define(lost)
    empty.virsh("start", "lost", "--paused")
    done = empty.command("add", "lost", "8205:80")
    assert re.search(
        r"^lost +waiting +tcp/8205 +\? 80 .*not known yet; searched: .*; it opens", done.out, re.M
    )


@pytest.fixture
def listener(empty: Host) -> Iterator[int]:
    """A program of the host that listens on a port."""
    enter = ["nsenter", f"--target={empty.init}", "--net"]
    program = "import socket, time; s = socket.create_server(('', 8206)); time.sleep(600)"
    with Background([*enter, "/usr/bin/python3", "-c", program], empty.dir / "listener.log") as running:
        running.wait_for(lambda: ":8206 " in empty.run(["ss", "-Hlnt"]).out, "listens")
        yield 8206


def test_refused_change_changes_nothing(empty: Host, listener: int) -> None:
    empty.define(SHOP)
    empty.define(RIVAL)
    empty.virsh("start", "shop", "--paused")
    everything = empty.virsh("dumpxml", "shop").out + empty.virsh("dumpxml", "shop", "--inactive").out
    table = empty.our_table()
    expected = {
        ("shop", "8207:80", "8443"): "tcp/8443 is declared by guest rival",
        ("shop", "8207:80", "22"): "tcp/22 is reserved by the configuration",
        ("shop", "8207:80", str(listener)): "tcp/8206 is taken by the host, which listens on 0.0.0.0",
        ("shop", "8207:80", "8207:81"): "8207:81/tcp overlaps 8207:80/tcp",
        ("shop", "8207", "--dev", "enp1s1"): "did you mean enp1s0?",
        ("shop", "8207", "--mac", "52:54:00:00:00:99"): "its NICs: 52:54:00:00:00:41",
        ("shoop", "8207"): "did you mean shop?",
        ("rival", "8207", "--live"): "rival is not running",
    }
    for words, reason in expected.items():
        assert reason in refused(empty, "add", *words)
    assert '"8207:x"' in refused(empty, "add", "shop", "8208", "8207:x", status=2)
    assert "tcp/8207 is not declared" in refused(empty, "remove", "shop", "8207")
    shown = empty.command("add", "shop", "8207:80", "--dry-run").out
    assert '<vf:range start="8207" to="80"/>' in shown
    assert "<!-- the till -->" in shown
    assert empty.virsh("dumpxml", "shop").out + empty.virsh("dumpxml", "shop", "--inactive").out == everything
    assert empty.our_table() == table


def virtinst(host: Host, *words: str) -> Done:
    return host.run([words[0], "--connect", "qemu:///system", *words[1:]])


def test_virt_xml_keeps_the_metadata_and_virt_clone_copies_it(empty: Host) -> None:
    empty.define(SHOP)
    empty.command("add", "shop", "8209:80")
    before = metadata(empty, "shop")
    virtinst(empty, "virt-xml", "shop", "--edit", "--memory", "128", "--define")
    assert "131072" in empty.virsh("dumpxml", "shop").out
    assert metadata(empty, "shop") == before
    virtinst(empty, "virt-clone", "--original", "shop", "--name", "copy", "--auto-clone")
    assert "8209" in metadata(empty, "copy")
    empty.virsh("start", "shop", "--paused")
    done = empty.virsh("start", "copy", "--paused", check=False)
    assert "address 10.10.0.41 on virbr0 is already that of guest shop" in done.err
    assert "virt-forward remove copy --all --config" in done.err
    empty.command("remove", "copy", "--all", "--config")
    empty.virsh("start", "copy", "--paused")
    assert {row["domain"] for row in empty.forwards()} == {"shop"}
