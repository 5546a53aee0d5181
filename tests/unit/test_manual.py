"""The manual pages say what the command and the configuration have, no less and no more."""

from __future__ import annotations

import argparse
import re
import shutil

import pytest

from support.proc import REPO, run
from virt_forward import cli
from virt_forward.config import SECTIONS

DATA = REPO / "lib/virt_forward/data"
PAGES = sorted(DATA.glob("*.[1-8]"))
COMMAND, CONFIGURATION = DATA / "virt-forward.1", DATA / "virt-forward-config.toml.5"
# Either reads a page as a person would; which of them a machine has is chance.
LINTERS = (["mandoc", "-T", "lint", "-W", "warning"], ["man", "--warnings", "-E", "UTF-8", "-l"])


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Return the parser of each command."""
    (commands,) = (
        action for action in cli._parser()._actions if isinstance(action, argparse._SubParsersAction)
    )
    return dict(commands.choices)


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    words = {word for action in parser._actions for word in action.option_strings}
    return words - {"-h", "--help"}


def documented() -> dict[str, set[str]]:
    """Return the options in the manual page by command: what stands between one and the next."""
    page = COMMAND.read_text()
    body = page[page.index("The commands are:") : page.index(".Sh METADATA")]
    parts = re.split(r"^\.It Cm (\w+)", body, flags=re.MULTILINE)[1:]
    return {
        name: {f"-{word}" for word in re.findall(r"(?:^\.It|,) Fl (-?[\w-]+)", text, re.MULTILINE)}
        for name, text in zip(parts[::2], parts[1::2], strict=True)
    }


def test_manual_pages_exist() -> None:
    assert [page.name for page in PAGES] == [CONFIGURATION.name, COMMAND.name]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_linters_find_nothing_in_a_page(page: object) -> None:
    there = [linter for linter in LINTERS if shutil.which(linter[0])]
    assert there, "neither mandoc nor man is installed: tests/run should have"
    for linter in there:
        done = run([*linter, str(page)], check=False)
        said = done.out if linter[0] == "mandoc" else done.err
        assert (done.status, said) == (0, "")


def test_every_command_is_in_the_synopsis_and_in_the_description() -> None:
    synopsis = COMMAND.read_text().partition(".Sh DESCRIPTION")[0]
    assert re.findall(r"^\.Cm (\w+)", synopsis, re.MULTILINE) == list(parsers())
    assert list(documented()) == list(parsers())


@pytest.mark.parametrize("name", parsers())
def test_options_of_a_command_are_those_of_its_help(name: str) -> None:
    assert documented()[name] == options_of(parsers()[name])


@pytest.mark.parametrize("name", parsers())
def test_help_of_a_command_has_examples(name: str) -> None:
    examples = (parsers()[name].epilog or "").splitlines()
    assert examples[0] == "examples:"
    assert all(re.match(rf"  (\w+=\S+ )?virt-forward {name}\b", line) for line in examples[1:])


def test_examples_of_help_are_parsed() -> None:
    import shlex

    found = [line for parser in parsers().values() for line in (parser.epilog or "").splitlines()[1:]]
    for line in found:
        words = shlex.split(re.split(r"\s\s+(?=\w)|\s\|", line.strip())[0])
        cli._parser().parse_args(words[words.index("virt-forward") + 1 :])


def test_examples_of_the_page_are_parsed() -> None:
    found = re.findall(r"^\.Dl virt-forward (.*)", COMMAND.read_text(), re.MULTILINE)
    assert found
    for line in found:
        cli._parser().parse_args(line.split())


def test_every_key_of_the_configuration_is_on_its_page() -> None:
    page = CONFIGURATION.read_text()
    parts = re.split(r"^\.Ss \[(\w+)\]", page.partition(".Sh ENVIRONMENT")[0], flags=re.MULTILINE)[1:]
    found = {
        section: re.findall(r"^\.It Ic (\w+) No =", text, re.MULTILINE)
        for section, text in zip(parts[::2], parts[1::2], strict=True)
    }
    assert found == {section: list(keys) for section, keys in SECTIONS.items()}
