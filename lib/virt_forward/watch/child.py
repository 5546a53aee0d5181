"""Child processes of the service: a module of this package in an interpreter of its own."""

import os
import sys

_PACKAGE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def argv(module: str, *words: str) -> list[str]:
    """Return the command that calls ``main`` of a module with some words, and exits with what it returns."""
    program = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); "
        f"from {module} import main; sys.exit(main(*sys.argv[1:]))"
    )
    return [sys.executable, "-I", "-c", program, _PACKAGE, *words]
