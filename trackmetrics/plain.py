"""Plain values: the numbers, strings, booleans, nulls, lists and dicts that a file can hold.

Everything a user hands in is made plain on entry, so that nothing later can fail on its type.
"""

from __future__ import annotations

import datetime
import enum
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeGuard

from .errors import shown

Plain: TypeAlias = Any
"""None, bool, int, float, str, or a list or dict (with string keys) of such values."""

MAX_DEPTH = 64
MAX_DIGITS = 308  # of an integer; readers take a longer one for infinity
_TOO_LARGE = 10**MAX_DIGITS


@dataclass(frozen=True)
class Growing(Sequence[Plain]):
    """A list that only grows from one save to the next: its items, made plain as they are read.

    An item that is still the same object is taken to hold the same.
    """

    items: Sequence[Any]
    to_plain: Callable[[Any], Plain]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Any) -> Plain:
        """Give one item; or, for a slice, the items of it."""
        found = self.items[index]
        return [self.to_plain(item) for item in found] if isinstance(index, slice) else self.to_plain(found)


def is_number(value: Any) -> TypeGuard[int | float]:
    """Say whether it is a number, which to Python a boolean is too.

    >>> is_number(1), is_number(float("nan")), is_number(True), is_number("1")
    (True, True, False, False)
    """
    return isinstance(value, (int, float)) and not isinstance(value, bool)


class NotPlainError(TypeError):
    """A value that has no plain form."""


def to_plain(value: Any) -> Plain:
    """Give `value` as plain data, or raise `NotPlainError`.

    Tensors and arrays become numbers or nested lists; paths, dates, enumeration members, `torch.dtype` and
    `torch.device` become the text a reader expects; tuples and sets become lists. A lone surrogate in a
    text, which UTF-8 can't hold, becomes its escape (`\\udc80`). Keys become text; two that become the same are
    refused, and so is an integer of more than `MAX_DIGITS` digits.

    >>> to_plain({"betas": (0.9, 0.999), "path": None})
    {'betas': [0.9, 0.999], 'path': None}
    """
    try:
        return _plain(value, 0)
    except NotPlainError:
        raise
    except Exception as error:  # a tensor without data, a mapping that fails when it is read
        raise NotPlainError(f"a value of type {_type_name(value)} that can't be read ({shown(error)})") from None


def _plain(value: Any, depth: int) -> Plain:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, enum.Enum):
        return _plain(value.name if value.name is not None else _flag_name(value), depth + 1)
    if isinstance(value, int):
        if abs(value) >= _TOO_LARGE:
            raise NotPlainError(f"an integer of more than {MAX_DIGITS} digits")
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if depth >= MAX_DEPTH:
        raise NotPlainError(f"nested deeper than {MAX_DEPTH} levels, or a cycle")
    if isinstance(value, Mapping):
        return _plain_mapping(value, depth)
    if isinstance(value, (list, tuple)):
        return [_plain(item, depth + 1) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((_plain(item, depth + 1) for item in value), key=repr)
    if isinstance(value, os.PathLike):
        return _plain(os.fspath(value), depth + 1)
    if isinstance(value, (datetime.date, datetime.time)):
        return _plain(value.isoformat(), depth + 1)
    return _plain_foreign(value, depth)


def _flag_name(flag: Any) -> str:
    """The names of a flag's bits; '0' for none, and the rest as a number where a bit has no name."""
    named = [bit for bit in type(flag) if bit.value > 0 and bit.value & (bit.value - 1) == 0 and bit.value & flag.value]
    rest = flag.value - sum(bit.value for bit in named)
    return "|".join([bit.name for bit in named] + [str(rest)] * (rest != 0 or not named))


def _plain_mapping(value: Mapping[Any, Any], depth: int) -> dict[str, Plain]:
    plain: dict[str, Plain] = {}
    for key, item in value.items():
        name = _plain_key(key)
        if name in plain:
            raise NotPlainError(f"two keys that both become {name!r}")
        plain[name] = _plain(item, depth + 1)
    return plain


def _plain_key(key: Any) -> str:
    plain = _plain(key, 0)
    if isinstance(plain, str):
        return plain
    if isinstance(plain, (bool, int, float)):
        return str(plain)
    raise NotPlainError(f"a key of type {type(key).__name__}")


def _plain_foreign(value: Any, depth: int) -> Plain:
    """Values of numpy and torch, known by their module's name so that neither need be imported."""
    library = type(value).__module__.partition(".")[0]
    if library == "torch" and type(value).__name__ in {"dtype", "device"}:
        return str(value)
    if library == "numpy" and hasattr(value, "tolist"):
        return _plain_numpy(value, depth)
    if (library == "torch" or hasattr(value, "__torch_function__")) and hasattr(value, "tolist"):
        return _plain(value.tolist(), depth + 1)
    raise NotPlainError(f"a value of type {_type_name(value)}")


def _plain_numpy(value: Any, depth: int) -> Plain:
    """An array or scalar; of those types that `tolist` gives back as they are, or as their bare bits, too."""
    if value.dtype.names is None and value.dtype.char not in "MmgG":
        return _plain(value.tolist(), depth + 1)
    if value.shape:
        return [_plain(item, depth + 1) for item in value]
    value = value[()]
    if value.dtype.names is not None:
        return [_plain(value[name], depth + 1) for name in value.dtype.names]
    if value.dtype.char == "M":
        text = str(value)
        return None if text == "NaT" else text
    if value.dtype.char == "g":
        nearest = float(value)
        if not math.isinf(nearest) or nearest == value:
            return nearest
        raise NotPlainError("a number larger than any double")
    raise NotPlainError(f"a value of type {_type_name(value)}")


def _type_name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
