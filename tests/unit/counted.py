"""Values that count how often they are looked at: what costs what, without a clock."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from virt_forward.claims.rows import Index, PortRow, Row
from virt_forward.claims.sockets import Listener
from virt_forward.model import Forward


class Looks:
    """How many looks there were."""

    def __init__(self) -> None:
        self.number = 0

    def forwards(self, plain: Iterable[Forward]) -> list[Forward]:
        """Return forwards that count looks at their ports, and comparisons with others."""
        looks = self

        class Counted(Forward):
            def __getattribute__(self, name: str) -> Any:
                looks.number += name in ("start", "end")
                return super().__getattribute__(name)

            def __eq__(self, other: object) -> bool:
                looks.number += 1
                return tuple.__eq__(self, other)

            __hash__ = tuple.__hash__

        return [Counted(*forward) for forward in plain]

    def rows(self, plain: Iterable[Row]) -> Index:
        """Return rows of which those of ports count looks at their ports, and comparisons with others."""
        looks = self

        class Counted(PortRow):
            def __getattribute__(self, name: str) -> Any:
                looks.number += name == "span"
                return super().__getattribute__(name)

            def __eq__(self, other: object) -> bool:
                looks.number += 1
                return tuple.__eq__(self, other)

            __hash__ = tuple.__hash__

        return tuple(Counted(*row) if isinstance(row, PortRow) else row for row in plain)

    def listeners(self, plain: Iterable[Listener]) -> list[Listener]:
        """Return listeners that count looks at their ports and addresses."""
        looks = self

        class Counted(Listener):
            def __getattribute__(self, name: str) -> Any:
                looks.number += name in ("port", "address")
                return super().__getattribute__(name)

        return [Counted(*listener) for listener in plain]
