"""lxml.etree, imported in a way that suits a hook.

Hooks run with -S, as hardly anything else needs the distribution's packages, so these are not in the
path yet. And lxml imports inspect, which takes nearly as long as lxml itself, for parser targets and
generators alone; a substitute takes its place as long as lxml is imported.
"""

import contextlib
import sys
from collections.abc import Iterator
from types import ModuleType

__all__ = ["etree"]


@contextlib.contextmanager
def _without_inspect() -> Iterator[None]:
    if "inspect" in sys.modules:
        yield
        return
    substitute = ModuleType("inspect")
    # lxml asks for the one, and Cython, in which it is written, replaces the other.
    vars(substitute).update(getfullargspec=None, isgenerator=None)
    sys.modules["inspect"] = substitute
    try:
        yield
    finally:
        del sys.modules["inspect"]


if "site" not in sys.modules:
    import site

    sys.path.extend(site.getsitepackages())

with _without_inspect():
    from lxml import etree
