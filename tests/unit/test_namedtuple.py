"""Our NamedTuple against the one of typing, for every class of the package."""

from __future__ import annotations

import ast
import copy
import importlib
import inspect
import pickle
import typing
from collections.abc import Iterator
from typing import Any

import pytest

from unit.test_imports import MODULES
from virt_forward import namedtuple


def ours() -> Iterator[type]:
    """Yield the classes of the package that are made with our NamedTuple."""
    for name, path in MODULES.items():
        tree = ast.parse(path.read_text())
        if not any(
            isinstance(node, ast.ImportFrom) and node.module == "virt_forward.namedtuple"
            for node in tree.body
        ):
            continue
        module = importlib.import_module(f"virt_forward.{name}")
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and "NamedTuple" in map(ast.unparse, node.bases):
                yield getattr(module, node.name)


CLASSES = {f"{found.__module__}.{found.__qualname__}": found for found in ours()}


def twin(cls: Any) -> Any:
    """Return the class that typing makes of the same fields."""
    fields = [(name, Any) for name in cls._fields]
    make: Any = typing.NamedTuple
    made = make(cls.__name__, fields)
    made.__new__.__defaults__ = tuple(cls._field_defaults.values()) or None
    made._field_defaults = cls._field_defaults
    return made


def parameters(cls: Any) -> list[tuple[Any, ...]]:
    found = inspect.signature(cls.__new__).parameters.values()
    return [(item.name, item.kind, item.default) for item in found]


def outcome(function: Any, *values: Any, **named: Any) -> str:
    """Return what the error says; of _replace, its type depends on the version of Python."""
    with pytest.raises((TypeError, ValueError)) as error:
        function(*values, **named)
    return str(error.value)


def test_package_has_classes() -> None:
    assert len(CLASSES) > 60


@pytest.mark.parametrize("name", CLASSES)
def test_class_is_as_typing_makes_it(name: str) -> None:
    cls: Any = CLASSES[name]
    other = twin(cls)
    count = len(cls._fields)
    assert (cls._fields, cls.__match_args__) == (other._fields, other.__match_args__)
    assert (type(cls), cls.__bases__, cls.__slots__) == (type(other), other.__bases__, other.__slots__)
    assert [cls.__dict__[field].__doc__ for field in cls._fields] == [
        other.__dict__[field].__doc__ for field in cls._fields
    ]
    assert parameters(cls) == parameters(other)
    assert set(vars(other)) - set(vars(cls)) <= {"__orig_bases__", "__firstlineno__", "__static_attributes__"}
    assert outcome(cls, *range(count + 1)) == outcome(other, *range(count + 1))
    if count > len(cls._field_defaults):
        assert outcome(cls) == outcome(other)
    assert outcome(cls, *range(count), unknown=1) == outcome(other, *range(count), unknown=1)


@pytest.mark.parametrize("name", CLASSES)
def test_value_is_as_that_of_typing(name: str) -> None:
    cls: Any = CLASSES[name]
    other = twin(cls)
    values = tuple(range(1, len(cls._fields) + 1))
    value, same = cls(*values), other(*values)
    assert value == same == values
    assert hash(value) == hash(same)
    assert cls(**dict(zip(cls._fields, values, strict=True))) == value
    assert cls._make(iter(values)) == value
    assert type(cls._make(values)) is cls
    assert value._asdict() == same._asdict()
    assert [getattr(value, field) for field in cls._fields] == list(values)
    assert repr(value) == repr(same)
    first = cls._fields[0]
    changed = value._replace(**{first: "changed"})
    assert (type(changed), changed) == (cls, ("changed", *values[1:]))
    assert value == values
    assert outcome(value._replace, unknown=1) == outcome(same._replace, unknown=1)
    assert outcome(cls._make, [*values, 0]) == outcome(other._make, [*values, 0])
    for copied in (pickle.loads(pickle.dumps(value)), copy.copy(value), copy.deepcopy(value)):
        assert (type(copied), copied) == (cls, values)
    with pytest.raises(AttributeError):
        setattr(value, first, 0)
    with pytest.raises(AttributeError):
        value.unknown = 0
    required = len(cls._fields) - len(cls._field_defaults)
    assert cls(*values[:required])[required:] == tuple(cls._field_defaults.values())


Base: Any = namedtuple.NamedTuple


def test_more_fields_than_there_are_constructors_is_refused() -> None:
    fields = {f"field{number}": "int" for number in range(30)}
    with pytest.raises(TypeError, match="Wide has more fields than there are constructors for"):
        type(Base)("Wide", (Base,), {"__annotations__": fields})


def test_class_without_fields() -> None:
    Nothing: Any = type(Base)("Nothing", (Base,), {"__annotations__": {}})  # noqa: N806
    assert Nothing() == ()
    assert repr(Nothing()) == "Nothing()"


def test_default_before_a_field_without_one_is_refused() -> None:
    with pytest.raises(TypeError, match="fields of Wrong with defaults must follow those without"):

        class Wrong(Base):  # type: ignore[misc]
            first: int = 1
            second: int


def test_second_base_is_refused() -> None:
    with pytest.raises(TypeError, match="a named tuple has no other base"):

        class Wrong(Base, dict):  # type: ignore[misc,type-arg]
            first: int


def test_classes_methods_see_their_class() -> None:
    class Value(Base):  # type: ignore[misc]
        first: int

        def own(self) -> type:
            return __class__  # type: ignore[name-defined,no-any-return]

    assert Value(1).own() is Value
