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
        ("attach", "begin", OURS),
        ("migrate", "begin", OURS),
        ("reconnect", "begin", ""),
    ],
)
def test_event_that_is_not_about_us(operation: str, sub: str, metadata: str, tmp_path: Path) -> None:
    found = qemu(operation, sub, domain_xml(metadata), tmp_path / "run")
    assert found == {"virt_forward", "virt_forward.hooks", "virt_forward.hooks.prefilter"}
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("operation", ["stopped", "release"])
def test_stop_of_a_guest_that_the_state_does_not_know(operation: str, tmp_path: Path) -> None:
    (tmp_path / "state.db").touch()
    (tmp_path / "guests").mkdir()
    found = qemu(operation, "end", domain_xml(OURS), tmp_path)
    assert found == {"virt_forward", "virt_forward.hooks", "virt_forward.hooks.prefilter"}


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


def test_start_of_a_guest_of_ours_loads_nothing_slow_for_nothing(tmp_path: Path) -> None:
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


def loaded_without_kernel(operation: str, sub: str, data: bytes, directory: Path) -> set[str]:
    """Run the hook where all programs do nothing and succeed, and return all modules that it has loaded."""
    programs = directory / "bin"
    programs.mkdir()
    for tool in ("nft", "conntrack", "ip"):
        (programs / tool).symlink_to("/bin/true")
    env = {"PATH": str(programs), "LC_ALL": "C", "VIRT_FORWARD_RUN_DIR": str(directory / "run")}
    argv = [PYTHON, "-I", "-c", HOOK, str(REPO / "hooks/qemu"), "web", operation, sub, "-"]
    return set(run(argv, stdin=data.decode(), env=env).out.split())


@pytest.mark.parametrize("operation", ["started", "reconnect"])
def test_guest_that_has_started_needs_no_lxml(operation: str, tmp_path: Path) -> None:
    """Its metadata are plain, and nothing has to be said about them: metadata/plain.py."""
    found = loaded_without_kernel(operation, "begin", domain_xml(OURS), tmp_path)
    assert {"pyexpat", "virt_forward.reconcile.located"} <= found
    assert not found & {"lxml", "lxml.etree", "tomllib", "shlex", *SLOW}
    assert (tmp_path / "run" / "guests" / UUID).exists()


def test_start_of_a_guest_is_decided_by_lxml(tmp_path: Path) -> None:
    found = loaded_without_kernel("prepare", "begin", domain_xml(OURS), tmp_path)
    assert {"lxml.etree", "virt_forward.reconcile.located"} <= found
    assert not found & {"tomllib", *SLOW}


def test_end_of_a_guest_needs_no_xml_parser(tmp_path: Path) -> None:
    """A marker without a guest makes nothing to end, so no kernel is touched here, either."""
    guests = tmp_path / "run" / "guests"
    guests.mkdir(parents=True)
    (guests / UUID).touch()
    found = loaded_without_kernel("stopped", "end", domain_xml(), tmp_path)
    assert not found & {"lxml", "lxml.etree", "tomllib", *SLOW}
    assert not list(guests.iterdir())
