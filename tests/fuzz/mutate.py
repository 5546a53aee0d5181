"""New inputs out of old ones: bytes, words and whole parts changed at random."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from random import Random

MAX_BYTES = 8192
"""The longest input. Longer ones find hardly anything that these do not, and cost more."""

WORD = re.compile(rb"[A-Za-z0-9_]+|\s+|.", re.DOTALL)
NUMBER = re.compile(rb"\d+")

# What parsers of text trip over: ends of ranges, other scripts' digits and line ends, control characters,
# a byte that is no UTF-8, half of a surrogate pair in JSON, numbers that int() and float() refuse.
ODD = (
    *(b"0", b"1", b"-1", b"65535", b"65536", b"4294967295", b"18446744073709551616", b"1e999", b"0x10"),
    *(b"9" * 20, b"9" * 4400, b"NaN", b"true", b"null", b"[]", b"{}", b'""', b'"', b"'", b"\\", b"\\ud800"),
    *("²".encode(), "٣".encode(), "\u2028".encode(), "\u00a0".encode(), "\u202e".encode(), b"\x85"),
    *(
        b"\0",
        b"\x0b",
        b"\x1b[2J",
        b"\r",
        b"\n",
        b"\n\n",
        b"\t",
        b" ",
        b"\xff",
        b"\xc3",
        b";",
        b"%n",
        b"{",
        b"}",
    ),
    *(b"0.0.0.0", b"255.255.255.255", b"::", b"::1", b"fe80::1", b"fe80::1%eth0", b"::ffff:192.0.2.1"),
    *(b"/0", b"/33", b"/129", b"..", b"../..", b"a" * 16, b"&#10;", b"&lt;", b"<!--", b"]]>"),
)

Change = Callable[[Random, bytes, Sequence[bytes], Sequence[bytes]], bytes]
"""Takes a source of chance, an input, all inputs of the target and its words; returns another input."""


def words_of(seeds: Sequence[bytes]) -> list[bytes]:
    """Return the words of some texts, each once."""
    return sorted({word for seed in seeds for word in WORD.findall(seed) if not word.isspace()})


def mutated(chance: Random, data: bytes, pool: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    """Return ``data`` after one to eight changes; ``pool`` are inputs that parts may come from."""
    for _ in range(1 << chance.randrange(4)):
        data = chance.choice(CHANGES)(chance, data, pool, words)[:MAX_BYTES]
    return data


def _part(chance: Random, data: bytes, longest: int = 64) -> slice:
    start = chance.randint(0, len(data))
    return slice(start, start + chance.randint(1, longest))


def _word(chance: Random, data: bytes) -> slice:
    """Return where a word near a place chosen at random stands."""
    if not data:
        return slice(0, 0)
    found = WORD.search(data, chance.randrange(len(data)))
    assert found is not None
    return slice(*found.span())


def _replace(data: bytes, part: slice, by: bytes) -> bytes:
    return data[: part.start] + by + data[part.stop :]


def _one_byte(chance: Random, data: bytes, _pool: Sequence[bytes], _words: Sequence[bytes]) -> bytes:
    at = chance.randint(0, len(data))
    return _replace(data, slice(at, at + chance.randrange(2)), bytes([chance.randrange(256)]))


def _one_bit(chance: Random, data: bytes, _pool: Sequence[bytes], _words: Sequence[bytes]) -> bytes:
    at = chance.randint(0, len(data))
    return data[:at] + bytes(byte ^ 1 << chance.randrange(8) for byte in data[at : at + 1]) + data[at + 1 :]


def _cut(chance: Random, data: bytes, _pool: Sequence[bytes], _words: Sequence[bytes]) -> bytes:
    return _replace(data, _part(chance, data), b"")


def _end(chance: Random, data: bytes, _pool: Sequence[bytes], _words: Sequence[bytes]) -> bytes:
    return data[: chance.randint(0, len(data))]


def _again(chance: Random, data: bytes, _pool: Sequence[bytes], _words: Sequence[bytes]) -> bytes:
    part = _part(chance, data)
    return _replace(
        data, slice(part.start, part.start), data[part] * chance.choice((1, 1, 1, 1, 2, 2, 50, 2000))
    )


def _move(chance: Random, data: bytes, _pool: Sequence[bytes], _words: Sequence[bytes]) -> bytes:
    part = _part(chance, data)
    at = chance.randint(0, len(data))
    return _replace(_replace(data, part, b""), slice(at, at), data[part])


def _other(chance: Random, data: bytes, pool: Sequence[bytes], _words: Sequence[bytes]) -> bytes:
    other = chance.choice(pool)
    return _replace(data, _part(chance, data), other[_part(chance, other, 200)])


def _cross(chance: Random, data: bytes, pool: Sequence[bytes], _words: Sequence[bytes]) -> bytes:
    other = chance.choice(pool)
    return data[: chance.randint(0, len(data))] + other[chance.randint(0, len(other)) :]


def _known_word(chance: Random, data: bytes, _pool: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    return _replace(data, _word(chance, data), chance.choice(words) if words else b"")


def _odd_word(chance: Random, data: bytes, _pool: Sequence[bytes], _words: Sequence[bytes]) -> bytes:
    part = _word(chance, data)
    return _replace(data, part if chance.randrange(2) else slice(part.stop, part.stop), chance.choice(ODD))


def _odd_number(chance: Random, data: bytes, _pool: Sequence[bytes], _words: Sequence[bytes]) -> bytes:
    found = list(NUMBER.finditer(data))
    return _replace(data, slice(*chance.choice(found).span()), chance.choice(ODD)) if found else data


def _drop_word(chance: Random, data: bytes, _pool: Sequence[bytes], _words: Sequence[bytes]) -> bytes:
    return _replace(data, _word(chance, data), b"")


def _line_again(chance: Random, data: bytes, _pool: Sequence[bytes], _words: Sequence[bytes]) -> bytes:
    lines = data.split(b"\n")
    line = chance.choice(lines)
    lines.insert(chance.randint(0, len(lines)), line)
    if chance.randrange(2):
        lines.remove(line)
    return b"\n".join(lines)


CHANGES: tuple[Change, ...] = (
    *(_one_byte, _one_bit, _cut, _end, _again, _move, _other, _cross),
    *(_known_word, _known_word, _odd_word, _odd_word, _odd_number, _drop_word, _line_again),
)
