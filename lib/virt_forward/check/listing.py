"""Two listings of a table compared: the order in which chains came, and the revision, mean nothing."""

import re
from collections.abc import Iterator

_PART = re.compile(r"^\t(\w+) (\S+) \{\n(.*?)^\t\}$", re.MULTILINE | re.DOTALL)
_ELEMENTS = re.compile(r"elements = \{(.*?)\}\s*$", re.MULTILINE | re.DOTALL)

Listing = dict[str, tuple[str, ...]]
"""The lines of each chain, set, map … by its kind and name; the elements of a set are sorted."""


def parse(text: str) -> Listing:
    """Return what ``nft -s list table`` printed, part by part."""
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


def differences(is_: Listing, should: Listing) -> list[str]:
    """Return in words what is missing, what is too much and what is otherwise than it should be."""
    missing = [f"{name} is missing" for name in sorted(should.keys() - is_.keys())]
    strange = [f"{name} is not ours" for name in sorted(is_.keys() - should.keys())]
    both = sorted(is_.keys() & should.keys())
    return missing + strange + [f"{name} differs" for name in both if is_[name] != should[name]]
