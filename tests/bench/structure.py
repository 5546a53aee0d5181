#!/usr/bin/python3
"""What the code looks like, in figures, for checkouts or commits side by side.

    tests/bench/structure.py [--json] [FOLDER or COMMIT]...     default: this checkout

library, tests       Python modules, and their lines
functions            of the library, methods included; "one caller": those whose name is defined once and used
                     once in the library
started              one qemu hook "started" of a guest with a forward beside another running guest: our own
                     functions on the stack at its deepest, how many calls of them, how many different ones in
                     how many modules; files and directories of the run directory that are read, the most for
                     one file, files opened to write; programs run

The hook runs in a network namespace (of a user namespace where the caller is not root) with a run directory
of its own. Time is not measured here: see hooks.py.
"""

from __future__ import annotations

import argparse
import ast
import collections
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
PYTHON = "/usr/bin/python3"
LONGEST = 5
XML = """<domain type='kvm' id='1'><name>{name}</name><uuid>be9c0000-0000-4000-8000-00000000000{n}</uuid>
<metadata><vf:forwards xmlns:vf="urn:virt-forward:1"><vf:host ip="10.10.0.{n}"/>
<vf:portForward proto="tcp"><vf:range start="808{n}" to="80"/></vf:portForward></vf:forwards></metadata>
<devices><interface type='bridge'><mac address='52:54:00:00:00:0{n}'/><source bridge='virbr0'/>
<target dev='vnet{n}'/></interface></devices></domain>"""
BRIDGE = (
    "link set lo up\nlink add virbr0 type bridge\naddress add 10.10.0.254/24 dev virbr0\nlink set virbr0 up\n"
)
EVENTS = (("other", "prepare"), ("other", "started"), ("web", "prepare"))
"""What happens before the ``started`` that is measured."""

Figures = dict[str, Any]


def python_files(folder: Path) -> list[Path]:
    """Return the Python modules below a folder."""
    return sorted(path for path in folder.rglob("*.py") if ".venv" not in path.parts)


def lines(path: Path) -> int:
    """Return how many lines a file has."""
    return len(path.read_bytes().splitlines())


def trees(folder: Path) -> Iterator[ast.Module]:
    """Yield the syntax tree of each module below a folder."""
    yield from (ast.parse(path.read_bytes()) for path in python_files(folder))


def functions(package: Path) -> Figures:
    """Return how many functions a package has, how many have one caller, how many are long."""
    defined: collections.Counter[str] = collections.Counter()
    used: collections.Counter[str] = collections.Counter()
    long = 0
    for node in (node for tree in trees(package) for node in ast.walk(tree)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            defined[node.name] += 1
            long += (node.end_lineno or 0) - node.lineno >= 20
        elif isinstance(node, ast.Name):
            used[node.id] += 1
        elif isinstance(node, ast.Attribute):
            used[node.attr] += 1
    single = [name for name, count in defined.items() if count == 1 and used[name] == 1]
    total = sum(defined.values())
    return {
        "functions": total,
        "functions, one caller": len(single),
        "functions, one caller, %": round(100 * len(single) / total),
        "functions over 20 lines": long,
    }


def static(checkout: Path) -> Figures:
    """Return what can be told from the text alone."""
    root = checkout / "lib/virt_forward"
    package, tests = python_files(root), python_files(checkout / "tests")
    longest = sorted(package, key=lines, reverse=True)[:LONGEST]
    return {
        "library modules": len(package),
        "library lines": sum(map(lines, package)),
        "test modules": len(tests),
        "test lines": sum(map(lines, tests)),
        **functions(root),
        "longest files": [f"{path.relative_to(root)} {lines(path)}" for path in longest],
    }


def started(checkout: Path) -> Figures:
    """Return what one ``started`` does; run in a namespace of its own by :func:`apart`."""
    subprocess.run(["ip", "-batch", "-"], input=BRIDGE, text=True, check=True)
    with tempfile.TemporaryDirectory(prefix="vf-structure-") as run_dir:
        env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
        env |= {"VIRT_FORWARD_RUN_DIR": f"{run_dir}/run", "VIRT_FORWARD_CONFIG": f"{run_dir}/none"}
        program, report = str(checkout / "hooks/qemu"), f"{run_dir}/report"
        for name, operation in EVENTS:
            hook([PYTHON, "-IS", program], name, operation, env)
        hook([PYTHON, "-IS", __file__, "--measured", report, program], "web", "started", env)
        return dict(json.loads(Path(report).read_text()))


def hook(program: list[str], name: str, operation: str, env: dict[str, str]) -> None:
    """Run a hook program for one event of a guest; raises CalledProcessError where it fails."""
    text = XML.format(name=name, n=1 if name == "web" else 2)
    subprocess.run([*program, name, operation, "begin", "-"], input=text, text=True, env=env, check=True)


class Watch:
    """Counts what this interpreter does from now on; ``package`` and ``run_dir`` are what counts."""

    def __init__(self, package: str, run_dir: str) -> None:
        self.package, self.run_dir = package, run_dir
        self.calls: collections.Counter[str] = collections.Counter()
        self.reads: collections.Counter[str] = collections.Counter()
        self.writes = self.programs = self.depth = self.deepest = 0

    def profile(self, frame: Any, event: str, _argument: object) -> None:
        """Count our functions; for sys.setprofile()."""
        code = frame.f_code
        if event not in ("call", "return") or not code.co_filename.startswith(self.package):
            return
        if code.co_name.startswith("<"):  # a module's own text, a comprehension, a lambda
            return
        self.depth += 1 if event == "call" else -1
        self.deepest = max(self.deepest, self.depth)
        if event == "call":
            self.calls[f"{code.co_filename}:{code.co_firstlineno}"] += 1

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Count files of the run directory and programs; for sys.addaudithook()."""
        if event in ("subprocess.Popen", "os.posix_spawn"):
            self.programs += 1
        elif event in ("open", "os.listdir", "os.scandir", "sqlite3.connect"):
            if not str(arguments[0]).startswith(self.run_dir):
                return
            if event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR):
                self.writes += 1
            else:
                self.reads[str(arguments[0])] += 1

    def figures(self) -> Figures:
        """Return what was counted."""
        return {
            "started: deepest stack": self.deepest,
            "started: calls": self.calls.total(),
            "started: different functions": len(self.calls),
            "started: modules": len({place.rpartition(":")[0] for place in self.calls}),
            "started: reads of the run directory": self.reads.total(),
            "started: reads of one file": max(self.reads.values(), default=0),
            "started: writes of the run directory": self.writes,
            "started: programs": self.programs,
        }


def measured(report: str, program: str, *words: str) -> int:
    """Run a hook program in this interpreter, write the figures to a file, and return its status."""
    watch = Watch(f"{Path(program).parents[1] / 'lib'}{os.sep}", os.environ["VIRT_FORWARD_RUN_DIR"])
    code = compile(Path(program).read_bytes(), program, "exec")
    sys.argv = [program, *words]
    # A hook ends itself without what an interpreter does at its end.
    os._exit = sys.exit  # type: ignore[assignment]
    status: object = 0
    sys.addaudithook(watch.audit)
    sys.setprofile(watch.profile)
    try:
        exec(code, {"__name__": "__main__", "__file__": program})
    except SystemExit as end:
        status = end.code
    finally:
        sys.setprofile(None)
    Path(report).write_text(json.dumps(watch.figures()))
    return int(bool(status))


def apart(checkout: Path) -> Figures:
    """Return what one ``started`` does, seen in a namespace."""
    words = ["unshare", "--net", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    words += [PYTHON, __file__, "--started", str(checkout)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the hook of {checkout} cannot be run here:\n{done.stderr}")
    return dict(json.loads(done.stdout))


def figures(what: str, scratch: Path) -> Figures:
    """Return all figures of a folder, or of a commit, which is unpacked to ``scratch``."""
    checkout = Path(what).resolve()
    if not checkout.is_dir():
        checkout = scratch / what.replace("/", "-")
        done = subprocess.run(["git", "-C", REPO, "archive", what], capture_output=True, check=True)
        checkout.mkdir()
        subprocess.run(["tar", "-x", "-C", checkout], input=done.stdout, check=True)
    return static(checkout) | apart(checkout)


def show(columns: dict[str, Figures]) -> None:
    """Print a table, a column a checkout."""
    print(f"{'':38}" + "".join(f"{name[-24:]:>30}" for name in columns))
    for key in next(iter(columns.values())):
        cells = [
            column[key] if isinstance(column[key], list) else [column[key]] for column in columns.values()
        ]
        for index, row in enumerate(zip(*cells, strict=True)):
            print(f"{'' if index else key:38}" + "".join(f"{cell!s:>30}" for cell in row))


def main() -> int:
    """Do what the words of the command line say."""
    if sys.argv[1:2] == ["--measured"]:
        return measured(*sys.argv[2:])
    if sys.argv[1:2] == ["--started"]:
        print(json.dumps(started(Path(sys.argv[2]))))
        return 0
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("checkouts", nargs="*", default=[str(REPO)], metavar="FOLDER or COMMIT")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vf-structure-") as scratch:
        columns = {what: figures(what, Path(scratch)) for what in options.checkouts}
    if options.json:
        print(json.dumps(columns, indent=1))
    else:
        show(columns)
    return 0


if __name__ == "__main__":
    sys.exit(main())
