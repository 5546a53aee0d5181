"""NamedTuple as typing has it, quicker to import and to make classes with, for hooks.

Most of what ``typing.NamedTuple`` takes for a class is to check annotations and to compile a
constructor from text. Here the constructor is a function of as many arguments, with the names of the
fields put in, and annotations are not looked at; so modules can import what only they need under
``TYPE_CHECKING``. For a type checker it is ``typing.NamedTuple`` itself. It cannot be called, and its
classes are not generic. tests/unit/test_namedtuple.py compares the two.
"""

from __future__ import annotations

TYPE_CHECKING = False
"""As ``typing.TYPE_CHECKING``: type checkers go by the name."""

if TYPE_CHECKING:
    from typing import NamedTuple as NamedTuple  # noqa: PLC0414
else:
    import sys
    from _collections import _tuplegetter

    _new = tuple.__new__
    _function = type(lambda: None)
    _CONSTRUCTORS = (
        lambda _cls: _new(_cls, ()),
        lambda _cls, a: _new(_cls, (a,)),
        lambda _cls, a, b: _new(_cls, (a, b)),
        lambda _cls, a, b, c: _new(_cls, (a, b, c)),
        lambda _cls, a, b, c, d: _new(_cls, (a, b, c, d)),
        lambda _cls, a, b, c, d, e: _new(_cls, (a, b, c, d, e)),
        lambda _cls, a, b, c, d, e, f: _new(_cls, (a, b, c, d, e, f)),
        lambda _cls, a, b, c, d, e, f, g: _new(_cls, (a, b, c, d, e, f, g)),
        lambda _cls, a, b, c, d, e, f, g, h: _new(_cls, (a, b, c, d, e, f, g, h)),
        lambda _cls, a, b, c, d, e, f, g, h, i: _new(_cls, (a, b, c, d, e, f, g, h, i)),
        lambda _cls, a, b, c, d, e, f, g, h, i, j: _new(_cls, (a, b, c, d, e, f, g, h, i, j)),
        lambda _cls, a, b, c, d, e, f, g, h, i, j, k: _new(_cls, (a, b, c, d, e, f, g, h, i, j, k)),
        lambda _cls, a, b, c, d, e, f, g, h, i, j, k, m: _new(_cls, (a, b, c, d, e, f, g, h, i, j, k, m)),
    )

    def _constructor(name, fields, defaults):
        if len(fields) >= len(_CONSTRUCTORS):
            raise TypeError(f"{name} has more fields than there are constructors for; add one")
        code = _CONSTRUCTORS[len(fields)].__code__.replace(
            co_varnames=("_cls", *fields), co_name="__new__", co_qualname=f"{name}.__new__"
        )
        return _function(code, globals(), "__new__", defaults or None)

    @classmethod
    def _make(cls, iterable):
        """Make a new object from a sequence or iterable."""
        made = _new(cls, iterable)
        if len(made) != len(cls._fields):
            raise TypeError(f"Expected {len(cls._fields)} arguments, got {len(made)}")
        return made

    def _replace(self, /, **changes):
        """Return a new object that has other values in some fields."""
        result = self._make(map(changes.pop, self._fields, self))
        if changes:
            raise ValueError(f"Got unexpected field names: {list(changes)!r}")
        return result

    def _asdict(self):
        """Return a new dict of field names and values."""
        return dict(zip(self._fields, self, strict=True))

    def _repr(self):
        values = ", ".join([f"{field}={value!r}" for field, value in zip(self._fields, self, strict=True)])
        return f"{type(self).__name__}({values})"

    def _getnewargs(self):
        return tuple(self)

    _SHARED = {
        "__slots__": (),
        "_make": _make,
        "_replace": _replace,
        "__replace__": _replace,
        "_asdict": _asdict,
        "__repr__": _repr,
        "__getnewargs__": _getnewargs,
    }

    class _Maker(type):
        """Makes a plain class of tuples out of what is written as a subclass of NamedTuple."""

        def __new__(cls, name, bases, body):
            if not bases:
                return super().__new__(cls, name, bases, body)
            if bases != (NamedTuple,):
                raise TypeError("a named tuple has no other base")
            fields = tuple(body["__annotations__"])
            defaults = {field: body[field] for field in fields if field in body}
            if tuple(defaults) != fields[len(fields) - len(defaults) :]:
                raise TypeError(f"fields of {name} with defaults must follow those without")
            return type(
                name,
                (tuple,),
                {
                    **_SHARED,
                    "__doc__": f"{name}({', '.join(fields)})",
                    **body,
                    "_fields": fields,
                    "__match_args__": fields,
                    "_field_defaults": defaults,
                    "__new__": _constructor(name, fields, tuple(defaults.values())),
                    **{
                        field: _tuplegetter(index, sys.intern(f"Alias for field number {index}"))
                        for index, field in enumerate(fields)
                    },
                },
            )

    class NamedTuple(metaclass=_Maker):
        """The base of what becomes a class of tuples with named fields."""
