"""Plain values: the numbers, strings, booleans, nulls, lists and dicts that a file can hold.

Everything a user hands in is made plain on entry, so that nothing later can fail on its type.
"""

from __future__ import annotations

import datetime
import enum
import math
import os
from collections.abc import Mapping
from typing import Any, TypeAlias

Plain: TypeAlias = Any
"""None, bool, int, float, str, or a list or dict (with string keys) of such values."""

MAX_DEPTH = 64


class NotPlainError(TypeError):
    """A value that has no plain form."""


def to_plain(value: Any) -> Plain:
    """Give `value` as plain data, or raise `NotPlainError`.

    Tensors and arrays become numbers or nested lists; paths, dates, enumeration members, `torch.dtype` and
    `torch.device` become the text a reader expects; tuples and sets become lists. A lone surrogate in a
    text, which UTF-8 can't hold, becomes its escape (`\\udc80`).

    >>> to_plain({"betas": (0.9, 0.999), "path": None})
    {'betas': [0.9, 0.999], 'path': None}
    """
    return _plain(value, 0)


def _plain(value: Any, depth: int) -> Plain:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if depth >= MAX_DEPTH:
        raise NotPlainError(f"nested deeper than {MAX_DEPTH} levels, or a cycle")
    if isinstance(value, Mapping):
        return {_plain_key(key): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, depth + 1) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((_plain(item, depth + 1) for item in value), key=repr)
    if isinstance(value, os.PathLike):
        return _plain(os.fspath(value), depth + 1)
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    return _plain_foreign(value, depth)


def _plain_key(key: Any) -> str:
    plain = _plain(key, 0)
    if isinstance(plain, str):
        return plain
    if isinstance(plain, (bool, int, float)):
        return str(plain)
    raise NotPlainError(f"a key of type {type(key).__name__}")


def _plain_foreign(value: Any, depth: int) -> Plain:
    """Values of numpy and torch, known by their module's name so that neither need be imported."""
    kind = type(value)
    library = kind.__module__.partition(".")[0]
    if library == "torch" and kind.__name__ in {"dtype", "device", "Size"}:
        return str(value)
    if library in {"numpy", "torch"} or hasattr(value, "__torch_function__"):
        if hasattr(value, "detach"):
            value = value.detach()
        if hasattr(value, "tolist"):
            return _plain(value.tolist(), depth + 1)
    raise NotPlainError(f"a value of type {kind.__module__}.{kind.__qualname__}")


def is_finite(value: Any) -> bool:
    """Whether JSON has a word for this number; anything but a float counts as having one."""
    return not isinstance(value, float) or math.isfinite(value)
