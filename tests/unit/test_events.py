"""The policy of the hooks, row by row."""

from __future__ import annotations

import pytest

from virt_forward.hooks import prefilter
from virt_forward.hooks.events import NETWORK, QEMU, Action, Event, Policy, parse_event

# What libvirt may call a hook with (docs/hooks.rst), and what is to come of it.
QEMU_CALLS = [
    ("prepare", "begin", Action.CLAIM, True),
    ("start", "begin", Action.NOTHING, False),
    ("started", "begin", Action.OPEN, False),
    ("stopped", "end", Action.CLOSE, False),
    ("release", "end", Action.CLOSE, False),
    ("migrate", "begin", Action.NOTHING, False),
    ("restore", "begin", Action.RESTORE, False),
    ("reconnect", "begin", Action.OPEN, False),
    ("attach", "begin", Action.NOTHING, False),
    ("frobnicate", "begin", Action.NOTHING, False),
    # the right word with another sub-operation is another event
    ("prepare", "end", Action.NOTHING, False),
    ("started", "end", Action.NOTHING, False),
    ("stopped", "begin", Action.NOTHING, False),
    ("release", "begin", Action.NOTHING, False),
]

NETWORK_CALLS = [
    ("start", "begin", Action.NOTHING),
    ("started", "begin", Action.NETWORK_SEEN),
    ("updated", "begin", Action.NETWORK_SEEN),
    ("port-created", "begin", Action.NETWORK_SEEN),
    ("port-deleted", "begin", Action.PORT_GONE),
    ("stopped", "end", Action.NETWORK_GONE),
    ("plugged", "begin", Action.NOTHING),
    ("stopped", "begin", Action.NOTHING),
]


@pytest.mark.parametrize(("operation", "sub", "action", "may_refuse"), QEMU_CALLS)
def test_qemu(operation: str, sub: str, action: Action, may_refuse: bool) -> None:
    event = parse_event("qemu", ["web", operation, sub, "-"])
    assert event == Event("qemu", "web", operation, sub, Policy(action, may_refuse))


@pytest.mark.parametrize(("operation", "sub", "action"), NETWORK_CALLS)
def test_network(operation: str, sub: str, action: Action) -> None:
    event = parse_event("network", ["default", operation, sub, "-"])
    assert event == Event("network", "default", operation, sub, Policy(action))


def test_no_policy_is_untested() -> None:
    assert {
        (operation, sub) for operation, sub, action, _ in QEMU_CALLS if action is not Action.NOTHING
    } == set(QEMU)
    known = {(operation, sub) for operation, sub, action in NETWORK_CALLS if action is not Action.NOTHING}
    assert known == set(NETWORK)


def test_only_a_guest_that_does_not_run_yet_can_be_refused() -> None:
    assert {key for key, policy in QEMU.items() if policy.may_refuse} == {("prepare", "begin")}
    assert not any(policy.may_refuse for policy in NETWORK.values())


@pytest.mark.parametrize("arguments", [[], ["web"], ["web", "started"], ["web", "started", ""]])
def test_missing_arguments_count_as_empty(arguments: list[str]) -> None:
    assert parse_event("qemu", arguments).policy == Policy(Action.NOTHING)


def test_quick_look_knows_the_same_operations() -> None:
    assert set(prefilter.OPERATIONS) == {operation for operation, _ in QEMU}
    known = (*prefilter.NETWORK_OPERATIONS, *prefilter.PORT_OPERATIONS)
    assert set(known) == {operation for operation, _ in NETWORK}
