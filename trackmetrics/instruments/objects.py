"""The user's own objects and functions: which they are, and what they hold or name."""

from __future__ import annotations

import contextlib
import inspect
import sys
import types
from collections.abc import Iterable, Iterator
from typing import Any

_TRAINERS = {"lightning", "pytorch_lightning", "lightning_fabric"}  # a module of theirs holds the trainer, and so all
_LIBRARIES = {*sys.stdlib_module_names, "torch", "numpy", "trackmetrics", *_TRAINERS}


def is_users(item: Any) -> bool:
    """Whether a class or a function is the user's own, and not Python's, torch's, NumPy's or this package's."""
    return _root(getattr(item, "__module__", None)) not in _LIBRARIES


def _root(module: Any) -> str:
    return str(module).partition(".")[0]


def locals_of(frame: types.FrameType) -> dict[str, Any]:
    """A frame's names and their values.

    Before Python 3.13 a function's frame keeps what it is asked for, and with it everything alive until the function
    ends; so what nobody else holds is emptied again.
    """
    names = frame.f_locals
    values = dict(names)
    of_function = frame.f_code.co_flags & inspect.CO_OPTIMIZED  # else they are the very names of a module or class
    if of_function and type(names) is dict and sys.getrefcount(names) == _HELD_BY_THE_FRAME:
        names.clear()
    return values


_HELD_BY_THE_FRAME = 3  # references: the frame's, the reader's own, and that of who counts


def attributes_of(item: Any) -> dict[str, Any]:
    """An object's attributes by name, those in slots included."""
    slots = [name for kind in type(item).__mro__ for name in _listed(vars(kind).get("__slots__", ()))]
    own = getattr(item, "__dict__", None)
    found = {
        name: getattr(item, name) for name in slots if name not in ("__dict__", "__weakref__") and hasattr(item, name)
    }
    return found | own if isinstance(own, dict) else found


def _listed(slots: Any) -> Iterable[str]:
    return (slots,) if isinstance(slots, str) else slots


def named_by(function: types.FunctionType) -> Iterator[Any]:
    """A function's defaults, what it closes over, and, where it is the user's own, the globals that it names.

    Of a module of the user's that it names, the attributes that it may mean.
    """
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # not filled yet
            yield cell.cell_contents
    if is_users(function):
        names = set(_names(function.__code__))
        for name in names & function.__globals__.keys():
            value = function.__globals__[name]
            if isinstance(value, types.ModuleType):
                own = vars(value) if _root(value.__name__) not in _LIBRARIES else {}
                yield from (own[attribute] for attribute in names & own.keys())
            else:
                yield value


def _names(code: types.CodeType) -> Iterator[str]:
    """The names in a function's code, and in that of the functions inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
