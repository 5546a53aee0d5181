"""The architecture, read off the source: imports go downward, and the core does no I/O."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import virt_forward

PACKAGE = Path(virt_forward.__file__).parent
LAYERS = (
    ("namedtuple",),
    ("errors", "text", "model"),
    ("names", "ports", "portspec"),
    ("metadata",),
    ("config",),
    ("claims",),
    ("addresses",),
    ("ruleset",),
    ("setup",),
    # ---- pure above: bytes to values to text, and nothing else ----
    ("host",),
    ("state",),
    ("effects",),
    ("libvirtd",),
    ("check",),
    ("reconcile",),
    ("hooks",),
    ("watch",),
    ("cli",),
)
"""The folders and modules at the top of the package, from the bottom up: each imports only what is below
it, or inside its own folder."""

PURE = {name for layer in LAYERS[: LAYERS.index(("host",))] for name in layer}
PURE_ABOVE = {"reconcile.wants", "reconcile.located", "reconcile.plan"}
"""What is pure among modules that are not: the plan of a change, beside what reads and applies."""

EDGES = {
    # The service also listens to what never ends, and asks libvirt by a process that it can end.
    "subprocess": {"watch.hook_process", "watch.kernel_events", "watch.child"},
    "libvirt": {"libvirtd.api", "watch.libvirt_events"},
}
"""What only these modules of ours may import."""

FORBIDDEN_IN_PURE = {
    *(
        "os",
        "io",
        "pathlib",
        "shutil",
        "tempfile",
        "glob",
        "subprocess",
        "socket",
        "select",
        "signal",
        "fcntl",
    ),
    *("time", "threading", "multiprocessing", "asyncio", "urllib", "http", "syslog", "logging", "libvirt"),
}
NOT_FOR_HOOKS = {"libvirt", "libvirtd", "argparse", "logging", "dataclasses", "asyncio", "cli"}


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


MODULES = modules()


def type_checking_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def walk(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if not type_checking_only(child):
            yield child
            yield from walk(child)


def imported(name: str) -> set[str]:
    """Return what a module imports anywhere in its text; our own modules without the package's name."""
    found: set[str] = set()
    for node in walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            base = node.module or ""
            inner = {f"{base}.{alias.name}" for alias in node.names}
            ours = {item for item in inner if item.removeprefix("virt_forward.") in MODULES}
            found |= ours or {base}
            if base == "virt_forward" and inner - ours:
                found.add("virt_forward")
    return {item.removeprefix("virt_forward.") for item in found}


# A module is inside its package, not below it: what it shares with its siblings stands there.
IMPORTS = {name: imported(name) - {name.rpartition(".")[0]} for name in MODULES}


def is_pure(name: str) -> bool:
    return name.partition(".")[0] in PURE or name in PURE_ABOVE


def closure(start: str) -> set[str]:
    """Return a module and all of ours that it may come to import."""
    found: set[str] = set()
    todo = {start}
    while todo:
        name = todo.pop()
        found.add(name)
        todo |= {item for item in IMPORTS.get(name, ()) if item in MODULES} - found
    return found


PURE_MODULES = sorted(filter(is_pure, MODULES))


LEVELS = {name: level for level, layer in enumerate(LAYERS) for name in layer}


def test_every_folder_and_module_has_its_layer() -> None:
    assert {name.partition(".")[0] for name in MODULES} - {""} == set(LEVELS)


def top(name: str) -> str:
    return name.partition(".")[0]


@pytest.mark.parametrize("name", sorted(set(MODULES) - {""}))
def test_module_imports_only_from_the_layers_below(name: str) -> None:
    ours = {top(item) for item in IMPORTS[name] if item in MODULES} - {top(name), ""}
    assert {item for item in ours if LEVELS[item] >= LEVELS[top(name)]} == set()


@pytest.mark.parametrize("name", PURE_MODULES)
def test_pure_module_does_no_input_or_output(name: str) -> None:
    roots = {item.partition(".")[0] for item in IMPORTS[name]}
    assert not roots & FORBIDDEN_IN_PURE


@pytest.mark.parametrize("name", PURE_MODULES)
def test_pure_module_opens_and_prints_nothing(name: str) -> None:
    tree = ast.parse(MODULES[name].read_text())
    called = {
        node.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not called & {"open", "print", "input", "exec", "eval", "compile", "__import__"}


@pytest.mark.parametrize("name", PURE_MODULES)
def test_pure_module_never_imports_an_edge(name: str) -> None:
    assert {item for item in IMPORTS[name] if item in MODULES and not is_pure(item)} <= {""}


@pytest.mark.parametrize(("what", "allowed"), EDGES.items())
def test_each_edge_is_the_only_one_of_its_kind(what: str, allowed: set[str]) -> None:
    users = {name for name, items in IMPORTS.items() if what in {item.partition(".")[0] for item in items}}
    assert users <= allowed


@pytest.mark.parametrize("entry", ["hooks.prefilter", "hooks.dispatch"])
def test_hook_never_comes_to_import_what_hangs_or_slows_it(entry: str) -> None:
    reached = closure(entry)
    assert "reconcile.apply" in reached or entry == "hooks.prefilter"
    names = {item for name in reached for item in IMPORTS[name]} | reached
    assert not {item.partition(".")[0] for item in names} & NOT_FOR_HOOKS


HOOK_FOLDERS = {*PURE, "host", "state", "effects", "reconcile", "hooks"} - {"setup"}


@pytest.mark.parametrize("name", [name for name in MODULES if top(name) in HOOK_FOLDERS])
def test_modules_for_hooks_do_not_import_typing(name: str) -> None:
    """Of what a hook imports from elsewhere, nothing needs it; it takes longer than most of our own."""
    assert not {item for item in IMPORTS[name] if item.partition(".")[0] == "typing"}


def test_quick_look_imports_nothing_but_os() -> None:
    assert IMPORTS["hooks.prefilter"] == {"os"}


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_downward_only(name: str) -> None:
    """Nothing comes back to where it started."""
    above = {other for other in closure(name) - {name} if name in closure(other)}
    assert not above - {""}


@pytest.mark.parametrize("name", sorted(set(MODULES) - {item for item in MODULES if item.startswith("cli")}))
def test_only_the_command_knows_the_command(name: str) -> None:
    allowed = name == "__main__" or name.startswith("cli")
    assert allowed or not {item for item in IMPORTS[name] if item.partition(".")[0] == "cli"}
