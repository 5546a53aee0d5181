"""The examples of the documentation are true: wrong ones say what is written below them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest
from lxml import etree

from support import documents
from support.documents import DOCUMENTS, Block, shows
from support.proc import REPO, run
from unit.test_schema import BEYOND_GRAMMAR, RNG, accepts
from virt_forward.config import SECTIONS, Config, parse_config
from virt_forward.errors import VirtForwardError
from virt_forward.hooks import dispatch, handover
from virt_forward.metadata import xml
from virt_forward.metadata.forwards import NAMESPACE, ROOT, parse_forwards
from virt_forward.model import Declaration
from virt_forward.state import edit_lock, store


class Fence(NamedTuple):
    """A fenced block: the words after its fence, its text, and the text of the block after it."""

    info: str
    text: str
    after: str


def fences(name: str) -> list[Fence]:
    text = (REPO / "docs" / name).read_text()
    found = re.findall(r"^```([a-z ]+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    following = [*(body for _, body in found[1:]), ""]
    return [Fence(info, body, after) for (info, body), after in zip(found, following, strict=True)]


def blocks(name: str, info: str) -> list[Fence]:
    return [fence for fence in fences(name) if fence.info == info]


METADATA, CONFIGURATION = "metadata.md", "configuration.md"


def parsed(document: bytes) -> tuple[Declaration, tuple[str, ...]]:
    root = xml.parse(document, "example")
    element = root if root.tag == ROOT else root.find(ROOT)
    assert element is not None
    return parse_forwards(element)


@pytest.mark.parametrize("fence", blocks(METADATA, "xml"), ids=lambda fence: fence.text[:30])
def test_right_documents(fence: Fence) -> None:
    declaration, errors = parsed(fence.text.encode())
    assert errors == ()
    assert declaration.port_forwards
    element = etree.fromstring(fence.text)
    (inner,) = element.iter(ROOT)
    assert accepts(etree.tostring(inner))


@pytest.mark.parametrize("fence", blocks(METADATA, "xml wrong"), ids=lambda fence: fence.text[:30])
def test_wrong_documents(fence: Fence) -> None:
    document = f'<forwards xmlns="{NAMESPACE}">{fence.text}</forwards>'.encode()
    assert parsed(document)[1] == tuple(fence.after.splitlines())


def test_schema_lets_pass_what_the_page_says_it_does() -> None:
    text = (REPO / "docs" / METADATA).read_text()
    known, unknown = text.split("### What the schema cannot say")
    for part, verdict in ((known, False), (unknown, True)):
        wrong = re.findall(r"^```xml wrong\n(.*?)^```$", part, re.MULTILINE | re.DOTALL)
        assert wrong
        assert {accepts(f'<forwards xmlns="{NAMESPACE}">{x}</forwards>'.encode()) for x in wrong} == {verdict}


@pytest.mark.parametrize("reason", BEYOND_GRAMMAR)
def test_all_that_the_schema_cannot_say_is_on_the_page(reason: str) -> None:
    page = (REPO / "docs" / METADATA).read_text().partition("### What the schema cannot say")[2]
    assert reason in page


def test_every_word_of_the_vocabulary_is_on_the_page() -> None:
    page = (REPO / "docs" / METADATA).read_text()
    words = {node.get("name", "") for node in etree.parse(RNG).iter("{*}attribute")}
    assert {word for word in words if f"| `{word}` |" not in page} == set()


def test_commands_set_what_is_right() -> None:
    page = (REPO / "docs" / METADATA).read_text()
    found = re.findall(r"--set '([^']*)'", page)
    assert found
    for text in found:
        # virsh puts what has no namespace into ours.
        assert parsed(text.replace("<forwards", f'<forwards xmlns="{NAMESPACE}"').encode())[1] == ()


def test_defaults() -> None:
    first, *others = blocks(CONFIGURATION, "toml")
    assert parse_config(first.text) == Config()
    for section, keys in SECTIONS.items():
        assert f"[{section}]" in first.text
        assert all(re.search(rf"^{key} = ", first.text, re.MULTILINE) for key in keys)
    for fence in others:
        assert parse_config(fence.text) != Config()


@pytest.mark.parametrize("fence", blocks(CONFIGURATION, "toml wrong"), ids=lambda fence: fence.text[:30])
def test_wrong_configurations(fence: Fence) -> None:
    with pytest.raises(VirtForwardError) as caught:
        parse_config(fence.text)
    assert caught.value.messages == tuple(fence.after.splitlines())


def test_every_key_is_on_the_page() -> None:
    page = (REPO / "docs" / CONFIGURATION).read_text()
    assert all(f"\n`{key}`\n: " in page for keys in SECTIONS.values() for key in keys)


def test_times_on_the_page_on_reliability() -> None:
    page = (REPO / "docs/reliability.md").read_text()
    assert f"to a hook within {store.LOCK_SECONDS:g} seconds" in page
    assert f"to the command within {store.LOCK_SECONDS:g} seconds" in page
    assert f"wait up to {edit_lock.SECONDS:g} seconds for each other" in page
    assert f"first waits {handover.SECONDS:g} seconds" in page
    assert f"the {dispatch.SECONDS:g} seconds of a hook" in page


def test_every_page_is_in_the_index() -> None:
    index = (REPO / "docs/README.md").read_text()
    assert [path.name for path in (REPO / "docs").glob("*.md") if f"]({path.name})" not in index] == [
        "README.md"
    ]


def anchors(document: Path) -> set[str]:
    """Return the anchors of the headings of a page, as they are on GitHub."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPO)))
def test_links_lead_somewhere(document: Path) -> None:
    for page, anchor in re.findall(r"\]\(([^)#:]*)#?([^)#:]*)\)", document.read_text()):
        target = Path(document.parent, page) if page else document
        assert target.exists()
        assert not anchor or anchor in anchors(target)


def test_tests_that_the_page_on_security_names_exist() -> None:
    named = set(re.findall(r"`(test_\w+)`", (REPO / "docs" / "security.md").read_text()))
    files = (REPO / "tests").glob("*/test_*.py")
    written = {
        name for path in files for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    assert named
    assert named - written == set()


FOLDERS = ("tests", "docs", "lib", "hooks", "demo", "installer")
PATH = re.compile(rf"(?:\./)?((?:{'|'.join(FOLDERS)})/[a-z_./-]*|[a-z_]+/[a-z_]+\.py)")
BLOCKS = [block for document in DOCUMENTS for block in documents.blocks(document)]


def named_paths(document: Path) -> set[str]:
    """Return the paths of the repository that a document names in code spans, commands and links."""
    text = document.read_text()
    spans = [word for span in re.findall(r"`([^`\n]+)`", text) for word in span.split()]
    spans += [word for block in documents.blocks(document) for word in block.text.split()]
    found = {match[1] for word in spans if (match := PATH.fullmatch(word))}
    return found | {link for link in re.findall(r"\]\(([^)#:]+)", text) if "/" in link}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_named_paths_exist(document: Path) -> None:
    roots = (REPO, REPO / "lib/virt_forward", document.parent)
    missing = {
        path
        for path in named_paths(document)
        if not any((root / path).exists() for root in roots) and path != "tests/fuzz/found/"
    }
    assert not missing


def test_blocks_have_a_language() -> None:
    """An indented block has none: whether it is a command would be a guess."""
    bare = [block.place for block in BLOCKS if not block.language]
    assert not bare, "fence them, with ```sh for commands; see tests/support/documents.py"


def test_comments_above_blocks_are_known() -> None:
    assert {block.place: block.comment for block in BLOCKS if not block.known_comment} == {}


@pytest.mark.parametrize(
    "block",
    [block for block in BLOCKS if block.language == documents.COMMANDS],
    ids=lambda block: block.place,
)
def test_commands_are_shell(block: Block) -> None:
    run(["bash", "-n"], stdin=block.text)


def test_output_stands_below_commands_that_are_run() -> None:
    above = dict(zip(BLOCKS[1:], BLOCKS, strict=False))
    orphans = [block.place for block in BLOCKS if block.is_output and not above[block].is_run]
    assert not orphans


def test_lines_of_an_output_are_found_in_their_order() -> None:
    printed = "one  1\ntwo 2\n  three 3 of 4\n"
    assert shows(printed, "one 1\nthree 3 …\n")
    assert shows(printed, "two …\n")
    assert not shows(printed, "two\n")
    assert not shows(printed, "two 2\none 1\n")


PAGE = """\
# One

<!-- exit status: 1 -->
```sh
false
```

```nft
# /etc/x
add
```

    true

text
"""


def test_comment_counts_for_the_block_below_it_alone(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(PAGE)
    one, two, three = documents.blocks(tmp_path / "page.md", tmp_path)
    assert (one.text, one.status, one.section, one.line) == ("false\n", 1, "One", 4)
    assert (two.path, two.status, two.comment) == ("/etc/x", 0, "")
    assert (three.language, three.text) == ("", "true\n")
