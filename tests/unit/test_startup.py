"""What an event makes Python load: each module is time that a guest's start waits for."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.proc import REPO, run
from support.xml import Network, network_hook
from unit.build import UUID, domain_xml, forwards_xml

PYTHON = "/usr/bin/python3"
BARE = "import sys; print(*sys.modules)"
HOOK = """
import os, sys
del sys.argv[0]
def end(status):
    assert not status, status
    print(*sys.modules)
os._exit = end
program = compile(open(sys.argv[0]).read(), sys.argv[0], "exec")
exec(program, {"__name__": "__main__", "__file__": sys.argv[0]})
"""
OURS = forwards_xml('<vf:portForward proto="tcp"><vf:range start="80"/></vf:portForward>').decode()


def loaded(words: list[str], data: bytes, run_dir: Path) -> set[str]:
    """Run a hook as libvirt would, and return the modules that it loaded beyond a bare interpreter's."""
    env = {"PATH": "/usr/sbin:/usr/bin", "LC_ALL": "C", "VIRT_FORWARD_RUN_DIR": str(run_dir)}
    bare = run([PYTHON, "-I", "-c", BARE], env=env)
    argv = [PYTHON, "-I", "-c", HOOK, *words]
    return set(run(argv, stdin=data.decode(), env=env).out.split()) - set(bare.out.split())


def qemu(operation: str, sub: str, data: bytes, run_dir: Path) -> set[str]:
    return loaded([str(REPO / "hooks/qemu"), "web", operation, sub, "-"], data, run_dir)


@pytest.mark.parametrize(
    ("operation", "sub", "metadata"),
    [
        ("prepare", "begin", ""),
        ("start", "begin", OURS),
        ("started", "begin", ""),
        ("stopped", "end", OURS),
        ("release", "end", OURS),
        ("attach", "begin", OURS),
        ("migrate", "begin", OURS),
        ("reconnect", "begin", ""),
    ],
)
def test_an_event_that_is_not_about_us(operation: str, sub: str, metadata: str, tmp_path: Path) -> None:
    found = qemu(operation, sub, domain_xml(metadata), tmp_path / "run")
    assert found == {"virt_forward", "virt_forward.hooks", "virt_forward.hooks.prefilter"}
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("operation", ["port-created", "port-deleted", "frobnicate"])
def test_port_of_a_guest_that_is_not_ours(operation: str, tmp_path: Path) -> None:
    data = network_hook(Network(), port_of="stranger").encode()
    words = [str(REPO / "hooks/network"), "default", operation, "begin", "-"]
    found = loaded(words, data, tmp_path / "run")
    assert found == {"virt_forward", "virt_forward.hooks", "virt_forward.hooks.prefilter"}
    assert not (tmp_path / "run").exists()


SLOW = {
    "typing",
    *("dataclasses", "logging", "argparse", "asyncio", "pathlib", "libvirt", "urllib", "email"),
    *(
        "inspect",
        "socket",
        "subprocess",
        "tempfile",
        "shutil",
        "typing_extensions",
        "importlib.metadata",
        "decimal",
        "http",
        "unittest",
    ),
}


def test_the_start_of_a_guest_of_ours_loads_nothing_slow_for_nothing(tmp_path: Path) -> None:
    """With a broken document, it stops before it touches a kernel."""
    broken = domain_xml(OURS.replace("80", "0"))
    found = qemu("started", "begin", broken, tmp_path / "run")
    assert "lxml.etree" in found
    assert not found & SLOW


def test_lxml_is_imported_without_inspect_and_without_a_word() -> None:
    """A substitute takes its place meanwhile; whoever needs inspect later gets it."""
    program = (
        f"import sys; sys.path.insert(0, '{REPO}/lib'); import virt_forward.metadata.domain; "
        "print('inspect' in sys.modules); import inspect; print(inspect.isgenerator(x for x in ()))"
    )
    done = run([PYTHON, "-IS", "-c", program])
    assert (done.out.split(), done.err) == (["False", "True"], "")


def test_the_end_of_a_guest_needs_no_xml_parser(tmp_path: Path) -> None:
    """A marker without a guest makes nothing to end, so no kernel is touched here, either."""
    guests = tmp_path / "run" / "guests"
    guests.mkdir(parents=True)
    (guests / UUID).touch()
    empty = tmp_path / "bin"
    empty.mkdir()
    for tool in ("nft", "conntrack", "ip"):
        (empty / tool).symlink_to("/bin/true")
    env = {"PATH": str(empty), "LC_ALL": "C", "VIRT_FORWARD_RUN_DIR": str(tmp_path / "run")}
    hook = str(REPO / "hooks/qemu")
    done = run(
        [PYTHON, "-I", "-c", HOOK, hook, "web", "stopped", "end", "-"], stdin=domain_xml().decode(), env=env
    )
    found = set(done.out.split())
    assert not found & {"lxml", "lxml.etree", "tomllib", *SLOW}
    assert not list(guests.iterdir())
