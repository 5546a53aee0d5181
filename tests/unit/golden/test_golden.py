"""XML, configuration and facts in, nft text out, as files that a person can read and compare.

``--update-golden`` writes what is missing or different; look at the difference before you keep it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lxml import etree

import virt_forward
from support.proc import run
from unit.golden.case import CASES, HERE, Case, static_file
from virt_forward.config import Config
from virt_forward.ruleset import static

every_case = pytest.mark.parametrize("case", CASES, ids=[case.path.name for case in CASES])


def compare(path: Path, text: str | None, update: bool) -> None:
    if update:
        path.write_text(text) if text is not None else path.unlink(missing_ok=True)
    if text is None:
        assert not path.exists(), f"{path}: nothing makes this file any more"
        return
    assert path.exists(), f"{path} is missing: look at what --update-golden writes there"
    assert text == path.read_text()


@every_case
def test_golden(case: Case, pytestconfig: pytest.Config) -> None:
    update = bool(pytestconfig.getoption("--update-golden"))
    outcome = case.run()
    if outcome.static:
        compare(static_file(case.config), outcome.static, update)
    compare(case.path / "ruleset.nft", outcome.ruleset, update)
    compare(case.path / "transaction.nft", outcome.transaction, update)


def test_static_parts_are_those_of_the_cases() -> None:
    assert set(HERE.glob("static*.nft")) == {static_file(case.config) for case in CASES}


@every_case
def test_case_has_no_unused_files(case: Case) -> None:
    started = {name for _, name in case.events()}
    assert {path.stem for path in case.path.glob("*.xml")} == started
    known = {"config.toml", "facts.json", "events", "ruleset.nft", "transaction.nft"}
    assert {path.name for path in case.path.iterdir()} <= known | {f"{name}.xml" for name in started}


@every_case
@pytest.mark.root
def test_nft_accepts_case(case: Case, tmp_path: Path) -> None:
    """``nft -c`` first, as somebody's own check of the include file would be; then for real, and twice."""
    rules = tmp_path / "ruleset.nft"
    rules.write_text(case.saved())
    run(["unshare", "--net", "nft", "-c", "-f", rules])
    run(["unshare", "--net", "nft", "-f", rules, "-f", rules])
    if (case.path / "transaction.nft").exists():
        assert_same_table(case, rules)


def assert_same_table(case: Case, rules: Path) -> None:
    """Load the include file before the last event and the transaction; compare with the one after it."""
    before = rules.with_name("before.nft")
    before.write_text(case.run().before)
    changed = listing(f"nft -f {before} && nft -f {case.path}/transaction.nft")
    assert changed == listing(f"nft -f {rules}")


def listing(commands: str) -> list[str]:
    script = f"set -e; {commands}; nft -s -j list ruleset"
    return normal(json.loads(run(["unshare", "--net", "sh", "-c", script], timeout=60).out)["nftables"])


def normal(items: list[dict[str, Any]]) -> list[str]:
    """Return a listing less what differs between two ways to the same table: handles and order."""
    found: dict[str, list[str]] = {}
    for kind, value in (pair for item in items for pair in item.items() if pair[0] != "metainfo"):
        fields = {key: part for key, part in value.items() if key not in ("handle", "elem")}
        where = value.get("chain") or value.get("name")
        found.setdefault(where, []).append(json.dumps([kind, fields], sort_keys=True))
        if where != "revision":
            found[where] += sorted(json.dumps(element, sort_keys=True) for element in value.get("elem", ()))
    return [f"{where}: {line}" for where in sorted(found) for line in found[where]]


def test_cases_use_every_map_and_set() -> None:
    text = "".join(case.saved() for case in CASES)
    unseen = {name for name in static.containers() if f"add element inet virt-forward {name} " not in text}
    assert unseen == set()


def test_cases_have_every_base_chain() -> None:
    text = "".join(case.saved() for case in CASES)
    config = Config(localhost=True, uplinks=("enp1s0",))
    assert {name for name in static.base_chains(config) if f"\tchain {name} {{" not in text} == set()


def test_cases_use_every_word_of_the_vocabulary() -> None:
    """What stands in the schema is in some case, but for the attribute that needs two NICs."""
    schema = etree.parse(Path(virt_forward.__file__).parent / "data" / "forwards.rng")
    words = {node.get("name") for node in schema.iter("{*}attribute", "{*}element")}
    seen: set[str | None] = set()
    for path in HERE.glob("*/*.xml"):
        for element in etree.parse(path).iter("{urn:virt-forward:1}*"):
            seen |= {etree.QName(element).localname, *map(str, element.attrib)}
    assert words - seen == set()
