"""The code blocks of the documentation, and the comments that tell the tests what to do with them.

A block of commands is fenced as ``sh``. It is run on a host that the tests have booted, as root. An HTML
comment directly above it, which no reader of the page sees, changes that:

    <!-- not run: REASON -->    it is only parsed
    <!-- until it succeeds -->  it is run again and again, as what the commands above began takes a moment
    <!-- on another machine --> it is run on a machine outside, until it succeeds
    <!-- exit status: N -->     it is run, and ends with that status
    <!-- output -->             for a ``text`` block: what the commands above print, with … for any text

A block in another language whose first line is a comment with a path (``# /etc/nftables.conf``) is that file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from support.proc import REPO

COMMANDS = "sh"
DOCUMENTS = (REPO / "README.md", REPO / "CONTRIBUTING.md", *sorted((REPO / "docs").glob("*.md")))
FENCED = r"^```(?P<language>[a-z ]*)\n(?P<fenced>.*?)^```$"
INDENTED = r"(?<=\n\n)(?P<indented>(?:    [^\n]*\n|\n(?=    ))+)"
COMMENT = r"^<!-- (?P<comment>[^\n]*) -->\n"
HEADING = r"^#+ (?P<heading>[^\n]*)\n"
PIECES = re.compile("|".join((FENCED, COMMENT, HEADING, INDENTED)), re.MULTILINE | re.DOTALL)


KNOWN = r"|output|until it succeeds|on another machine|not run: .+|exit status: \d+"


class Block(NamedTuple):
    """A code block: where it stands, its language (none where it is indented), the comment above it."""

    document: str
    line: int
    section: str
    language: str
    text: str
    comment: str

    @property
    def place(self) -> str:
        return f"{self.document}:{self.line}"

    @property
    def is_run(self) -> bool:
        return self.language == COMMANDS and not self.not_run

    @property
    def is_output(self) -> bool:
        return self.comment == "output"

    @property
    def elsewhere(self) -> bool:
        return self.comment == "on another machine"

    @property
    def repeated(self) -> bool:
        return self.elsewhere or self.comment == "until it succeeds"

    @property
    def not_run(self) -> str:
        """Why it is not run; empty where it is."""
        return self._told("not run")

    @property
    def status(self) -> int:
        return int(self._told("exit status") or 0)

    @property
    def path(self) -> str:
        """The file that the block is, if it is one."""
        named = re.match(r"# (/\S+)\n", self.text)
        return named[1] if named and self.language != COMMANDS else ""

    @property
    def known_comment(self) -> bool:
        return bool(re.fullmatch(KNOWN, self.comment))

    def _told(self, key: str) -> str:
        return self.comment.partition(f"{key}: ")[2]


def blocks(document: Path, root: Path = REPO) -> Iterator[Block]:
    """Yield the blocks of a document in their order; they are named by their path below ``root``."""
    text = document.read_text()
    section, comment, end_of_comment = "", "", 0
    for found in PIECES.finditer(text):
        if found["comment"]:
            comment, end_of_comment = found["comment"], found.end()
        elif found["heading"]:
            section = found["heading"]
        else:
            above = comment if not text[end_of_comment : found.start()].strip("\n") else ""
            language, body = found["language"], found["fenced"]
            if found["indented"]:
                language, body = "", re.sub(r"^    ", "", found["indented"], flags=re.MULTILINE)
            line = text.count("\n", 0, found.start()) + 1
            yield Block(str(document.relative_to(root)), line, section, language, body, above)


def shows(output: str, pattern: str) -> bool:
    """Tell whether an output has the lines of a block, in order; ``…`` stands for any text."""
    words = (r"\s+".join(map(re.escape, line.split())) for line in pattern.splitlines())
    lines = (rf"^\s*{line.replace('…', '.*')}\s*$" for line in words if line)
    return bool(re.search(r"\n(?:.*\n)*?".join(lines), output, re.MULTILINE))
