"""What is set outside our table: its record, and the order of steps to what is desired."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.state import in_memory
from virt_forward.config import Config
from virt_forward.effects import EFFECTS, converge, record
from virt_forward.effects.item import NOTHING, Change, Item, Items, Search
from virt_forward.errors import StateError, VirtForwardError
from virt_forward.host import log
from virt_forward.reconcile import teardown
from virt_forward.state import database
from virt_forward.state.snapshot import Snapshot
from virt_forward.state.store import Store

if TYPE_CHECKING:
    from virt_forward.effects.item import Effect

GUARDED, FREE = "route_localnet", "hairpin_port"
A, B = Item(GUARDED, "a"), Item(GUARDED, "b")
C, D = Item(FREE, "c"), Item(FREE, "d")
ITEMS = [A, B, C, D]
SOME = st.frozensets(st.sampled_from(ITEMS))


class Killed(BaseException):
    """The end of the process before a step."""


class Host:
    """What is set on a host, and each step in its order; any step may fail or be the last."""

    def __init__(self) -> None:
        self.items: set[Item] = set()
        self.missing: set[str] = set()
        self.steps: list[str] = []
        self.failing: set[str] = set()
        self.last: int | None = None
        self.effects = (Faked(GUARDED, True, self), Faked(FREE, False, self))

    def step(self, words: str) -> bool:
        if len(self.steps) == self.last:
            raise Killed
        self.steps.append(words)
        return words not in self.failing


class Faked:
    """An effect whose items are in memory; what it desires is in the configuration's place."""

    CHAINS: tuple[str, ...] = ("",)

    def __init__(self, name: str, guarded: bool, host: Host) -> None:
        self.NAME, self.GUARDED, self.OTHERWISE, self.host = name, guarded, f"no {name}", host
        self.wanted: Items = NOTHING

    def observe(self, _state: Snapshot, _change: Change, /) -> Items:
        if "observe " + self.NAME in self.host.failing:
            raise VirtForwardError("it cannot be seen")
        return frozenset(item for item in self.wanted if item.effect == self.NAME)

    def desired(self, _change: Change, facts: Items, /) -> Items:
        return facts

    def recognized(self, _facts: Items, /) -> Items:
        return NOTHING

    def present(self, item: Item, _facts: Items, /) -> bool | None:
        return None if item.dev in self.host.missing else item in self.host.items

    def set_items(self, items: Items, _facts: Items, /) -> Items:
        return self._each(items, "set", self.host.items.add)

    def unset_items(self, items: Items, _facts: Items, /) -> Items:
        return self._each(items, "unset", self.host.items.discard)

    def _each(self, items: Items, verb: str, act: Callable[[Item], None]) -> Items:
        failed = set()
        for item in sorted(items):
            if self.host.step(f"{verb} {item.dev}"):
                act(item)
            else:
                failed.add(item)
        return frozenset(failed)


class Recorder(Snapshot):
    """A state whose records of effects are steps of the host's."""

    def __init__(self, host: Host) -> None:
        super().__init__(database.in_memory(), ":memory:")
        self.host = host

    def set_effects(self, effects: Iterable[tuple[str, str, str]]) -> None:
        effects = [*effects]
        names = " ".join(sorted(dev for _, dev, _ in effects))
        if not self.host.step(f"record {names}".strip()):
            raise StateError("no space left")
        super().set_effects(effects)


class Lab:
    """A host, its record, and changes of what is desired."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.host = Host()
        self.state = Recorder(self.host)
        monkeypatch.setattr(converge, "EFFECTS", self.host.effects)

    def change(self, *wanted: Item, search: Search = "recorded") -> list[str]:
        """Make a change, and return its steps; "kernel" is the transaction."""
        self.host.steps = []
        for effect in self.host.effects:
            effect.wanted = frozenset(wanted)
        made = converge.withdraw(self.state, Change(Config(), search=search))
        self.host.step("kernel")
        converge.establish(self.state, made)
        return self.host.steps

    @property
    def recorded(self) -> set[Item]:
        return set(record.load(self.state))


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Lab:
    return Lab(monkeypatch)


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(log, "error", found.append)
    return found


def test_item_is_recorded_before_it_is_set_and_taken_back_before_its_record_goes(lab: Lab) -> None:
    assert lab.change(A, C) == ["kernel", "record a", "set a", "record a c", "set c"]
    assert lab.change() == ["unset a", "record c", "kernel", "unset c", "record"]


def test_guarded_item_is_set_after_the_kernels_transaction_and_taken_back_before_it(lab: Lab) -> None:
    lab.change(A)
    assert lab.change(B) == ["unset a", "record", "kernel", "record b", "set b"]


def test_change_to_what_is_set_already_takes_no_step(lab: Lab) -> None:
    lab.change(A, C)
    assert lab.change(A, C) == ["kernel"]


def test_item_that_somebody_else_has_set_is_not_ours(lab: Lab) -> None:
    lab.host.items = {A, C}
    assert lab.change(A, C) == ["kernel"]
    assert lab.change() == ["kernel"]
    assert lab.host.items == {A, C}


def test_item_that_somebody_has_undone_is_set_again(lab: Lab) -> None:
    lab.change(A, C)
    lab.host.items = set()
    assert lab.change(A, C) == ["kernel", "set c"], "the guard of a may be missing"
    assert lab.change(A, C, search="known") == ["kernel", "set a"], "the table was rebuilt"
    lab.host.items, lab.host.steps = set(), []
    converge.follow(lab.state, Change(Config()))
    assert lab.host.steps == ["set c"]


def test_item_whose_device_is_not_found_is_not_recorded(lab: Lab) -> None:
    lab.change(A, C)
    lab.host.missing = {"a", "c", "d"}
    lab.change(A, C, D)
    assert lab.recorded == {A}
    lab.change()
    assert lab.recorded == set()


@pytest.mark.parametrize("item", ITEMS)
def test_item_that_cannot_be_set_is_not_recorded_as_ours(lab: Lab, item: Item) -> None:
    lab.host.failing = {f"set {item.dev}"}
    lab.change(*ITEMS)
    assert lab.recorded == lab.host.items == {*ITEMS} - {item}


@pytest.mark.parametrize("item", ITEMS)
def test_item_that_cannot_be_taken_back_stays_recorded(lab: Lab, item: Item) -> None:
    lab.change(*ITEMS)
    lab.host.failing = {f"unset {item.dev}"}
    lab.change()
    assert lab.recorded == lab.host.items == {item}
    assert not converge.release(lab.state)
    lab.host.failing = set()
    assert converge.release(lab.state)
    assert lab.host.items == set()


def test_item_that_cannot_be_recorded_is_not_set(lab: Lab, messages: list[str]) -> None:
    lab.host.failing = {"record a"}
    lab.change(A, C)
    assert lab.recorded == lab.host.items == {C}
    assert messages == ["no space left; no route_localnet"]


def test_effect_that_fails_does_not_keep_others_from_being_set(lab: Lab, messages: list[str]) -> None:
    lab.host.failing = {"observe route_localnet"}
    lab.change(A, C)
    assert lab.host.items == {C}
    assert messages == ["it cannot be seen; no route_localnet"] * 2


@given(SOME, SOME, SOME)
def test_converging_twice_is_converging_once_and_to_nothing_leaves_nothing(
    theirs: Items, first: Items, second: Items
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        lab = Lab(monkeypatch)
        lab.host.items = set(theirs)
        lab.change(*first)
        lab.change(*second)
        assert lab.host.items == theirs | second
        assert lab.recorded == second - theirs
        assert lab.change(*second) == ["kernel"]
        assert converge.release(lab.state)
        assert lab.host.items == theirs
        assert lab.recorded == set()


def killed_anywhere(monkeypatch: pytest.MonkeyPatch, first: Items, second: Items) -> Iterator[Lab]:
    for last in count():
        lab = Lab(monkeypatch)
        lab.change(*first)
        lab.host.last = last
        try:
            lab.change(*second)
        except Killed:
            lab.host.last = None
            yield lab
        else:
            return


@given(SOME, SOME)
def test_all_that_is_set_is_recorded_whichever_step_is_the_last(first: Items, second: Items) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        for lab in killed_anywhere(monkeypatch, first, second):
            assert lab.host.items <= lab.recorded
            lab.change(*second, search="known")
            assert lab.host.items == lab.recorded == second
            assert converge.release(lab.state)
            assert lab.host.items == set()


# The record


NAMES = st.text("abc019.-_", min_size=1, max_size=15).filter(lambda name: name not in (".", ".."))
RECORDED = st.sampled_from(EFFECTS).flatmap(
    lambda effect: st.builds(Item, st.just(effect.NAME), NAMES, st.sampled_from(effect.CHAINS))
)


@given(st.frozensets(RECORDED))
def test_record_is_read_as_it_was_written(items: Items) -> None:
    state = in_memory()
    record.save(state, items)
    assert record.load(state) == items


@pytest.mark.parametrize(
    "row",
    [
        *(("route_localnet", "../x", ""), ("route_localnet", "vir/br", ""), ("firewalld", "virbr0", "")),
        *(("route_localnet", "b", "a"), ("libvirt_accept", "virbr0", "")),
        *(("libvirt_accept", "virbr0", "nftables ip4"), ("libvirt_accept", "virbr0", "pf ip")),
    ],
)
def test_damaged_row_of_a_record_counts_as_absent(row: tuple[str, str, str]) -> None:
    state = in_memory()
    state.set_effects([row, ("hairpin_port", "vnet0", "")])
    assert record.load(state) == {Item("hairpin_port", "vnet0")}


def test_effects_have_names_and_chains_that_a_record_can_hold() -> None:
    assert len({effect.NAME for effect in EFFECTS}) == len(EFFECTS)
    for effect in EFFECTS:
        state = in_memory()
        items = frozenset(Item(effect.NAME, "virbr0", chain) for chain in effect.CHAINS)
        record.save(state, items)
        assert record.load(state) == items


# The uninstaller


class Opened(Store):
    """A run directory whose state is the lab's."""

    state: Snapshot

    @contextlib.contextmanager
    def open(self, *_: object, **__: object) -> Iterator[Snapshot]:
        yield self.state


@pytest.fixture
def taken_back(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    lab.change(A, C)
    store = Opened(str(tmp_path))
    store.state = lab.state
    monkeypatch.setattr(teardown, "Store", lambda: store)
    return lab


def test_uninstaller_takes_back_what_is_recorded_where_the_change_fails(
    taken_back: Lab, monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    def fail(*_: object) -> None:
        raise VirtForwardError("nft is broken")

    monkeypatch.setattr(teardown, "reconcile", fail)
    assert teardown.main() == 1
    assert (taken_back.host.items, taken_back.recorded) == (set(), set())
    assert messages == ["uninstall: nft is broken"]


def test_uninstaller_takes_back_what_is_recognized_where_the_lock_cannot_be_had(
    taken_back: Lab, monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise StateError(f"lock: errno {errno.EIO}")

    monkeypatch.setattr(Opened, "open", refuse)
    monkeypatch.setattr(Faked, "recognized", lambda self, _: frozenset(self.host.items))
    assert teardown.main() == 1
    assert taken_back.host.items == set()
    assert len(messages) == 1


def test_uninstaller_makes_no_run_directory(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teardown, "Store", lambda: Store(str(tmp_path / "run")))
    assert teardown.main() == 0
    assert lab.host.items == set()
    assert not (tmp_path / "run").exists()


def test_faked_effects_have_the_shape_of_real_ones() -> None:
    effects: tuple[Effect, ...] = Host().effects
    assert [effect.GUARDED for effect in effects] == [
        next(real.GUARDED for real in EFFECTS if real.NAME == effect.NAME) for effect in effects
    ]
