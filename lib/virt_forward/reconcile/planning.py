"""From wants to a plan: the host and the state are asked what the pure modules need (located.py, plan.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache

from virt_forward import text
from virt_forward.config import Config
from virt_forward.errors import VirtForwardError
from virt_forward.host import log, starter
from virt_forward.model import Guest
from virt_forward.namedtuple import TYPE_CHECKING, NamedTuple
from virt_forward.reconcile import plan as plans
from virt_forward.reconcile.plan import Located, Plan
from virt_forward.reconcile.wants import ON_HOST, Absent, Lasting, Readdressed, Want
from virt_forward.state.snapshot import Snapshot
from virt_forward.state.store import Store

if TYPE_CHECKING:
    from typing import Any

    from virt_forward.host.collect import Reader


class Context(NamedTuple):
    """What every step works with: the open state, the configuration, and the host.

    The host is read, and what reads it loaded, only for guests that need something of it.
    """

    store: Store
    state: Snapshot
    config: Config
    host: Callable[[], Reader]


def context(store: Store, state: Snapshot, config: Config, **about_host: Any) -> Context:
    """Return the context of one change; ``about_host`` are arguments of Reader."""

    @cache
    def host() -> Reader:
        from virt_forward.host.collect import Reader

        return Reader(config, state.networks, **about_host)

    return Context(store, state, config, host)


def make_plan(context: Context, wants: Sequence[Want]) -> Plan:
    """Return the plan for some wants. Guests whose start ended with libvirt's daemon are absent by it."""
    about = {want.uuid for want in wants}
    # Whoever only goes claims nothing that such a guest could have.
    starts = _lost_starts(context.state) if not all(isinstance(want, Absent) for want in wants) else ()
    lost = [Absent(uuid) for uuid in starts if uuid not in about]
    wanted = located(context, [*wants, *lost])
    plan = plans.make(context.state, wanted)
    if not plan.waiting:
        return plan
    waiting = located(context, map(Readdressed, plan.waiting))
    for item in waiting.values():
        if item.error:
            log.error(str(item.error))
    return plans.make(context.state, wanted, waiting)


def located(context: Context, wants: Iterable[Want]) -> dict[str, Located]:
    """Return the guests of some wants as the host has them; whoever only goes needs nothing of the host."""
    wants = tuple(wants)
    found = _located_as_known(context, wants)
    if any(isinstance(want, ON_HOST) for want in wants):
        host = context.host()
        if host.may_ask and host.must_ask:
            host.ask()
            return _located_as_known(context, wants)
    return found


def _located_as_known(context: Context, wants: Iterable[Want]) -> dict[str, Located]:
    found = {}
    for want in wants:
        before = context.state.guest(want.uuid)
        found[want.uuid] = Located(before) if isinstance(want, Absent) else _located(context, want, before)
    return found


def _located(context: Context, want: Lasting, before: Guest | None) -> Located:
    from virt_forward.reconcile import located

    nics = located.nics(want, before)
    if nics is None:
        return located.without_host(want, before)
    try:
        return context.host().complete(
            lambda facts: located.locate(want, before, facts, context.config), nics
        )
    except VirtForwardError as error:
        return Located(before, error=error)


def _lost_starts(state: Snapshot) -> Iterator[str]:
    for gone in filter(starter.is_gone, state.starters()):
        for uuid, name in state.prepared_by(gone).items():
            if not starter.has_status(name):
                log.warning(f"guest {text.quote(name)}: its start ended with libvirt's daemon; its claims go")
                yield uuid
