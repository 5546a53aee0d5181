"""Comparing two listings of a table; the order of chains and the revision do not count."""

import re
from collections.abc import Iterator

_PART = re.compile(r"^\t(\w+) (\S+) \{\n(.*?)^\t\}$", re.MULTILINE | re.DOTALL)
_ELEMENTS = re.compile(r"elements = \{(.*?)\}\s*$", re.MULTILINE | re.DOTALL)

Listing = dict[str, tuple[str, ...]]
"""The lines of each chain, set and map by its kind and name; elements are sorted."""


def parse(text: str) -> Listing:
    """Return the parts in the output of ``nft -s list table``."""
    found = {f"{kind} {name}": tuple(_lines(body)) for kind, name, body in _PART.findall(text)}
    found["table"] = tuple(
        line.strip() for line in text.splitlines() if re.match(r"\t(comment|flags) ", line)
    )
    if "set revision" in found:
        found["set revision"] = tuple(line for line in found["set revision"] if line.startswith("type "))
    return found


def _lines(body: str) -> Iterator[str]:
    elements = _ELEMENTS.search(body)
    rest = body[: elements.start()] if elements else body
    yield from (line.strip() for line in rest.splitlines() if line.strip())
    if elements:
        yield from sorted(re.split(r",\s+", elements[1].strip()))


def differences(actual: Listing, expected: Listing) -> list[str]:
    """Return a message for each part that is missing, not ours, or different from the expected one."""
    missing = [f"{name} is missing" for name in sorted(expected.keys() - actual.keys())]
    foreign = [f"{name} is not ours" for name in sorted(actual.keys() - expected.keys())]
    both = sorted(actual.keys() & expected.keys())
    return missing + foreign + [f"{name} differs" for name in both if actual[name] != expected[name]]
