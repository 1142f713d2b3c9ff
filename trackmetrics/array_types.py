"""The arrays in the file's data: where they stand, and of which of the two widths they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import MetricsFileError, shown
from .json_pointer import inside_another, members, place

_TYPES = {"float32": np.float32, "float64": np.float64}


def single_or_double(array: Any) -> npt.NDArray[Any]:
    """Give an array in one of the two widths that the file knows: half types as float32, whatever else as float64."""
    array = np.asarray(array)
    single = array.dtype.kind == "f" and array.dtype.itemsize <= 4
    widened: npt.NDArray[Any] = array.astype(np.float32 if single else np.float64, copy=False)
    return widened


def arrays_in(value: Any, pointer: str = "") -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Give each array with the JSON pointer at which it stands.

    >>> [(pointer, array.shape) for pointer, array in arrays_in({"maps": [np.zeros((2, 3))]})]
    [('/maps/0', (2, 3))]
    """
    if isinstance(value, np.ndarray):
        yield pointer, value
    for where, item in members(value, pointer):
        yield from arrays_in(item, where)


def only_numbers(row: list[Any]) -> bool:
    """Say whether all items are numbers or null: NumPy would take texts and booleans for numbers."""
    return set(map(type, row)) <= {float, int, type(None)}


def array_of(nested: Any, dtype: Any) -> npt.NDArray[Any]:
    """Make an array of nested lists of numbers; null becomes NaN.

    Raises `TypeError` or `ValueError` where anything else stands in them, rows differ, or a number is too large.
    """
    if not isinstance(nested, list):
        raise TypeError(nested)
    array: npt.NDArray[Any] = np.asarray(nested, dtype=np.float64)
    rows = [nested]
    for _ in array.shape[1:]:
        rows = [row for outer in rows for row in outer]
    if not all(map(only_numbers, rows)):
        raise TypeError(nested)
    with np.errstate(over="ignore"):
        narrowed = array.astype(dtype, copy=False)
    if narrowed is not array and not np.array_equal(np.isinf(narrowed), np.isinf(array)):
        raise ValueError("a number is too large")
    return narrowed


def restore_arrays(plain: Any, types: dict[str, Any]) -> None:
    """Make arrays of the lists that `types` names by pointer, in place.

    Raises `MetricsFileError` where one names no such list.
    """
    nested = inside_another(types)
    if nested is not None:
        raise MetricsFileError(f"/extensions/dtypes names {shown(nested)}, inside another of its places")
    for pointer, kind in types.items():
        try:
            holder, key = place(plain, pointer)
            holder[key] = array_of(holder[key], _TYPES[kind])
        except (KeyError, IndexError, TypeError, ValueError):
            raise MetricsFileError(
                f"/extensions/dtypes says that {shown(pointer)} is an array of {shown(kind)}; no such array is there"
            ) from None
