"""Text before nft: no name that a person can give a guest ever means anything to it."""

from __future__ import annotations

import re
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unit.build import UUID, uuid_of
from virt_forward import names

ODD = [
    "",
    "web",
    'a"b',
    "a\\b",
    "x\ny",
    "{}",
    "; drop",
    "ünï",
    "☃" * 100,
    "a" * 500,
    "\ud800",
    "-a",
    "$x",
    "@s",
]


@pytest.mark.parametrize("name", ODD)
def test_odd_names(name: str) -> None:
    check(name)


@given(st.text(max_size=300))
def test_any_name(name: str) -> None:
    check(name)


def check(name: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,80}", names.suffix(name, UUID))
    quoted = names.quoted(name)
    assert quoted[0] == quoted[-1] == '"'
    assert not set(quoted[1:-1]) & set('"\\\n\r\t\0')
    assert quoted.isprintable()
    assert len(quoted[1:-1].encode()) <= 127
    assert UUID in names.guest_comment(name, UUID)


def test_plain_name_can_be_read_in_the_chains_name() -> None:
    assert names.suffix("web-1_a", UUID) == f"web-1_a-{UUID[:8]}"
    assert names.suffix("a b", UUID) == "a_b-" + UUID.replace("-", "")


@pytest.mark.parametrize(
    ("one", "other"), list(combinations(["a b", "a_b", "a\tb", "a" * 41, "a" * 40, "a" * 42, "", "_"], 2))
)
def test_names_that_look_alike_make_different_chains(one: str, other: str) -> None:
    assert names.suffix(one, uuid_of(one)) != names.suffix(other, uuid_of(other))


@given(st.text(alphabet="a_ -0", max_size=45), st.text(alphabet="a_ -0", max_size=45))
def test_two_guests_never_share_a_chain(one: str, other: str) -> None:
    # libvirt keeps names unique; parts of two UUIDs may well be the same.
    if one != other:
        twin = UUID[:8] + uuid_of(other)[8:]
        assert names.suffix(one, UUID) != names.suffix(other, twin)
