"""What an effect is: something outside our table that is set for forwards, and taken back after them."""

from __future__ import annotations

from virt_forward.config import Config
from virt_forward.model import Guest
from virt_forward.namedtuple import TYPE_CHECKING, NamedTuple
from virt_forward.state.index import Side
from virt_forward.state.snapshot import Snapshot

if TYPE_CHECKING:
    from typing import Any, Literal, Protocol

    Search = Literal["recorded", "known", "all"]
    """Where to look for items of ours that no record names: nowhere, in an ordinary change; where a
    network that we know may have made us set one, after a crash and with ``sync``, which both rebuild
    the table; wherever there may be one, as the uninstaller does."""
else:
    Search = str


class Item(NamedTuple):
    """One thing that is set: by which effect, for which interface of the host.

    ``chain`` is one of the effect's CHAINS: where it is set, if an interface alone does not tell.
    """

    effect: str
    dev: str
    chain: str = ""


Items = frozenset[Item]
NOTHING: Items = frozenset()


class Change(NamedTuple):
    """What the items follow from.

    ``bridges`` have running guests with forwards after the change, ``sides`` open forwards; ``before``
    and ``after`` are the guests that it changes; ``recorded`` is what is set by the record.
    """

    config: Config
    bridges: frozenset[str] = frozenset()
    sides: frozenset[Side] = frozenset()
    before: tuple[Guest, ...] = ()
    after: tuple[Guest, ...] = ()
    search: Search = "recorded"
    recorded: Items = NOTHING

    @classmethod
    def of(cls, state: Snapshot, config: Config, **more: Any) -> Change:
        """Return the change after which the guests are as ``state`` has them."""
        return cls(config, state.bridges(), state.sides(), **more)

    def ours(self, effect: str) -> Items:
        """Return the recorded items of one effect."""
        return frozenset(item for item in self.recorded if item.effect == effect)


if TYPE_CHECKING:
    # A protocol takes long to make, and is nothing to a program that runs.
    class Effect(Protocol):
        """A module of this package. ``facts`` is what its own observe() has returned."""

        NAME: str
        """The value of Item.effect."""
        CHAINS: tuple[str, ...]
        """The values of Item.chain, ``("",)`` for an effect without."""
        GUARDED: bool
        """Whether it needs the guard in our table: set after the kernel has it, and taken back before."""
        OTHERWISE: str
        """What follows where it cannot be set, as the end of a message."""

        def observe(self, state: Snapshot, change: Change, /) -> Any:
            """Return what desired() and the others need of the host; the only reader of it but present()."""

        def desired(self, change: Change, facts: Any, /) -> Items:
            """Return what is to be set after the change; pure."""

        def recognized(self, facts: Any, /) -> Items:
            """Return the items on the host that are ours by their looks, recorded or not; pure."""

        def present(self, item: Item, facts: Any, /) -> bool | None:
            """Tell whether an item is set as it should be; None where there is nothing to set it on."""

        def set_items(self, items: Items, facts: Any, /) -> Items:
            """Set items, and return those that are not set.

            Raises VirtForwardError where that is not known: they stay recorded.
            """

        def unset_items(self, items: Items, facts: Any, /) -> Items:
            """Take items back, and return those that are still set; raises VirtForwardError likewise."""
