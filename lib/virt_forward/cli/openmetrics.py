"""The OpenMetrics text format (version 1.0.0), as far as gauges and counters need it.

node_exporter's textfile collector reads the older Prometheus text format. What is written here is both:
that one takes UNIT and EOF for comments, and knows no other types than these two that we would need.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

from virt_forward import text

MAX_LABEL = 256
"""The most characters of a label value."""

Labels = tuple[tuple[str, str], ...]


class Family(NamedTuple):
    """A metric family: a name, which ends with its unit if it has one, and a value for each set of labels."""

    name: str
    kind: Literal["gauge", "counter"]
    help: str
    samples: Mapping[Labels, int | float]
    unit: str = ""


def render(families: Iterable[Family]) -> str:
    """Return the families as one exposition, with the end mark."""
    return "".join(line for family in families for line in _lines(family)) + "# EOF\n"


def _lines(family: Family) -> Iterator[str]:
    yield f"# TYPE {family.name} {family.kind}\n"
    if family.unit:
        yield f"# UNIT {family.name} {family.unit}\n"
    yield f"# HELP {family.name} {_escape(family.help)}\n"
    name = f"{family.name}_total" if family.kind == "counter" else family.name
    for labels, value in family.samples.items():
        written = ",".join(f'{key}="{_escape(text.plain(word, MAX_LABEL))}"' for key, word in labels)
        yield f"{name}{{{written}}} {value}\n" if written else f"{name} {value}\n"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
