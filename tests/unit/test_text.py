"""Foreign text in messages: nothing that an exit prints can steer a terminal or a log."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virt_forward import text

NASTY = [
    "\x1b]0;owned\x07",
    "a\nvirt-forward: error: all is lost",
    "\u202eevil\u2066",
    "\u2028\u2029",
    "\ud800",
    "\x9b31m",
    "\0",
    "x" * 5000,
]
ANYTHING = st.text(st.characters(), max_size=200) | st.sampled_from(NASTY)
"""Surrogates, controls and all."""

FORBIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def assert_harmless(printed: str, limit: int = text.MAX_LINE) -> None:
    assert not {unicodedata.category(c) for c in printed} & FORBIDDEN
    assert len(printed) <= limit
    printed.encode()


@given(ANYTHING)
def test_every_function_returns_harmless_text(value: str) -> None:
    assert_harmless(text.plain(value), text.MAX_VALUE)
    assert_harmless(text.quote(value), text.MAX_VALUE + 2)
    assert_harmless(text.word(value), text.MAX_VALUE + 2)
    assert_harmless(text.output(value), text.MAX_OUTPUT)
    assert_harmless(text.line(value))


@given(ANYTHING)
def test_quote_ends_where_the_value_ends(value: str) -> None:
    quoted = text.quote(value)
    assert quoted[0] == quoted[-1] == '"'
    assert '"' not in quoted[1:-1]


@given(ANYTHING)
def test_line_leaves_what_was_made_harmless_alone(value: str) -> None:
    assert text.line(text.line(value)) == text.line(value)


@pytest.mark.parametrize("value", ["web", "sshd", "systemd-resolve", "a.b_c@d+e", "52:54:00:a0:8f:2c", "0"])
def test_word_leaves_a_plain_word_as_it_stands(value: str) -> None:
    assert text.word(value) == value


@pytest.mark.parametrize("value", ["", "-rf", ".", "a b", "$(id)", "a;b", "(sd-pam)", "ünï", "a" * 61, "a'b"])
def test_word_quotes_everything_else(value: str) -> None:
    assert text.word(value) == text.quote(value)


def test_output_is_one_line() -> None:
    assert text.output("Error: syntax\n  add rule \x1b[1m\n\t^^^\n") == "Error: syntax add rule ?[1m ^^^"


def test_lines_tells_how_many_it_left_out() -> None:
    told = list(text.lines(f"wrong {number}" for number in range(130)))
    assert told[0] == "wrong 0"
    assert told[-1] == "... and 30 more"
    assert len(told) == text.MAX_LINES + 1
    assert list(text.lines(["one", "two"])) == ["one", "two"]
