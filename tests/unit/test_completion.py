"""Completion in real shells: commands and options by --help, guests by virsh, forwards by list."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support.proc import REPO, Done, run
from unit.test_manual import options_of, parsers

DATA = REPO / "lib/virt_forward/data"

COMMAND = """\
#!/bin/sh
case "$*" in
    "list --specs -- web") printf '8080:80/tcp\\n5000-5020/udp\\n203.0.113.7:25/tcp\\n' ;;
    "list --specs -- db 1") echo 5432/tcp ;;
    *--help) PYTHONPATH={lib} exec {python} -m virt_forward.cli "$@" ;;
    *) echo "unexpected: $*" >&2; exit 1 ;;
esac
"""
# It must not read what is typed after TAB.
VIRSH = """\
#!/bin/sh
[ "$(readlink /proc/self/fd/0)" = /dev/null ] || exit 1
case "$*" in
    "--connect qemu:///system --readonly --quiet list --all --name") printf 'web\\ndb 1\\nweb2\\n\\n' ;;
    "--connect xen:///system --readonly --quiet list --all --name") echo dom ;;
esac
"""

BASH = """\
set -u
. {data}/virt-forward.bash
COMP_LINE=$1 COMP_POINT=${{#1}} COMP_CWORD=$2
shift 2
COMP_WORDS=("$@")
_virt_forward
[[ ${{#COMPREPLY[@]}} == 0 ]] || printf '%s\\n' "${{COMPREPLY[@]}}"
"""
ZSH = """\
compadd() {{
  [[ $1 == -- ]] && shift
  local word
  for word in "$@"; do [[ $word != $PREFIX* ]] || print -r -- $word; done
}}
words=("${{@[3,-1]}}") CURRENT=$#words PREFIX=$words[-1]
. {data}/_virt-forward
"""
FISH = """\
source {data}/virt-forward.fish
complete -C $LINE | string replace -r '\\t.*' ''; true
"""


def in_bash(environment: dict[str, str], line: str, words: list[str]) -> Done:
    # readline ends words at colons, too.
    parts = [part for word in words for part in word.replace(":", "\0:\0").split("\0")]
    script = BASH.format(data=DATA)
    return run(
        ["bash", "--norc", "-c", script, "bash", line, str(len(parts) - 1), *parts],
        env=environment,
        timeout=20,
    )


def in_zsh(environment: dict[str, str], line: str, words: list[str]) -> Done:
    return run(
        ["zsh", "-f", "-c", ZSH.format(data=DATA), "zsh", line, "", *words],
        env=environment,
        timeout=20,
        check=False,
    )


def in_fish(environment: dict[str, str], line: str, words: list[str]) -> Done:
    return run(
        ["fish", "--no-config", "-c", FISH.format(data=DATA)], env={**environment, "LINE": line}, timeout=20
    )


SHELLS: dict[str, Callable[[dict[str, str], str, list[str]], Done]] = {
    "bash": in_bash, "zsh": in_zsh, "fish": in_fish,
}  # fmt: skip
Complete = Callable[[str], list[str]]


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if not shutil.which(name):
        pytest.skip(f"not installed: {name} (tests/run installs it)")
    return name


@pytest.fixture
def complete(shell: str, tmp_path: Path) -> Complete:
    """Return a function that completes the last word of a command line."""
    command = COMMAND.format(lib=REPO / "lib", python=sys.executable)
    for name, text in (("virt-forward", command), ("virsh", VIRSH)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "HOME": str(tmp_path),
        "TERM": "dumb",
        "LC_ALL": "C.UTF-8",
        "VIRT_FORWARD_CONFIG": str(tmp_path / "config.toml"),
    }

    def offered(line: str) -> list[str]:
        words = [word.replace("\0", "\\ ") for word in line.replace("\\ ", "\0").split(" ")]
        done = SHELLS[shell](environment, line, words)
        assert done.err == ""
        return sorted(word.replace("\\", "") for word in done.out.splitlines())

    return offered


def test_commands_and_their_options_are_offered(complete: Complete) -> None:
    assert complete("virt-forward ") == sorted(parsers())
    assert complete("virt-forward --") == ["--help", "--version"]
    for name, parser in parsers().items():
        wanted = {word for word in options_of(parser) if word.startswith("--")} | {"--help"}
        assert complete(f"virt-forward {name} --") == sorted(wanted)


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("virt-forward s", ["sync"]),
        ("virt-forward add we", ["web", "web2"]),
        ("virt-forward add --live ", ["db 1", "web", "web2"]),
        ("virt-forward add web ", []),
        ("virt-forward list web d", ["db 1"]),
        ("virt-forward check ", ["db 1", "web", "web2"]),
        ("virt-forward sync ", []),
        ("virt-forward remove web 5", ["5000-5020/udp"]),
        ("virt-forward remove --config web 2", ["203.0.113.7:25/tcp"]),
        ("virt-forward remove --dev lo web 8080:80/tcp 5", ["5000-5020/udp"]),
        ("virt-forward remove db\\ 1 ", ["5432/tcp"]),
        ("virt-forward add --dev l", ["lo"]),
        ("virt-forward add --mac ", []),
    ],
)
def test_words_that_are_offered(complete: Complete, line: str, offered: list[str]) -> None:
    assert complete(line) == offered


@pytest.mark.parametrize(
    ("config", "offered"),
    [
        ('[libvirt]\nadmit = true\nuri = "xen:///system"  # of this host\n', ["dom"]),
        ("[libvirt]\n  uri='xen:///system'\n", ["dom"]),
        ('[libvirt]\n# uri = "xen:///system"\n', ["db 1", "web", "web2"]),
        ('[libvirt]\nuri = "qemu+ssh://other/system"\n', ["db 1", "web", "web2"]),
    ],
)
def test_guests_are_those_of_the_configured_libvirt_of_this_host(
    complete: Complete, tmp_path: Path, config: str, offered: list[str]
) -> None:
    (tmp_path / "config.toml").write_text(config)
    assert complete("virt-forward check ") == offered


def test_spec_is_completed_after_a_colon(complete: Complete, shell: str) -> None:
    # readline replaces only what comes after the colon.
    expected = "80/tcp" if shell == "bash" else "8080:80/tcp"
    assert complete("virt-forward remove web 8080:") == [expected]


def test_completion_runs_nothing_of_what_was_typed(complete: Complete, tmp_path: Path) -> None:
    complete(f"virt-forward remove $(touch${{IFS}}{tmp_path}/run) 8")
    complete(f"virt-forward remove `touch${{IFS}}{tmp_path}/run` 8")
    assert not (tmp_path / "run").exists()
