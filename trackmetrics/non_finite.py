"""Numbers that JSON has no word for: where each stood, and how each comes back to its place."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import MetricsFileError, shown
from .json_pointer import members, place

_NAMES = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def non_finite(value: Any, pointer: str = "") -> dict[str, Any]:
    """Say at which JSON pointer stands which number that JSON has no word for.

    A number's entry is its name; an array's, and that of a list that holds no other list or object, is
    `{name: [[start, length], ...]}`, runs over its flat order.

    >>> import numpy as np
    >>> non_finite({"loss": float("nan"), "row": np.array([0.0, -np.inf, -np.inf])})
    {'/loss': 'NaN', '/row': {'-Infinity': [[1, 2]]}}
    """
    if isinstance(value, np.ndarray):
        return _entry(pointer, _runs_of_array(value))
    if isinstance(value, float):
        return {} if math.isfinite(value) else {pointer: _name(value)}
    if isinstance(value, list) and not any(isinstance(item, (dict, list, np.ndarray)) for item in value):
        return _entry(pointer, _runs_of_list(value))
    entries: dict[str, Any] = {}
    for where, item in members(value, pointer):
        entries |= non_finite(item, where)
    return entries


def _entry(pointer: str, runs: dict[str, list[list[int]]]) -> dict[str, Any]:
    found = {name: runs[name] for name in _NAMES if runs.get(name)}
    return {pointer: found} if found else {}


def _name(number: float) -> str:
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def _runs_of_list(items: list[Any]) -> dict[str, list[list[int]]]:
    runs: dict[str, list[list[int]]] = {}
    for index, item in enumerate(items):
        if isinstance(item, float) and not math.isfinite(item):
            _extend(runs.setdefault(_name(item), []), index, 1)
    return runs


def _runs_of_array(array: npt.NDArray[Any]) -> dict[str, list[list[int]]]:
    """Row by row of the first dimension: the flags of a large array would take a good part of its memory."""
    runs: dict[str, list[list[int]]] = {}
    offset = 0
    for part in array if array.ndim > 1 else [array]:
        if not np.isfinite(part).all():
            flags = {"NaN": np.isnan(part), "Infinity": np.isposinf(part), "-Infinity": np.isneginf(part)}
            for name, flagged in flags.items():
                for start, length in _runs(flagged):
                    _extend(runs.setdefault(name, []), offset + start, length)
        offset += part.size
    return runs


def _extend(runs: list[list[int]], start: int, length: int) -> None:
    """Add a run, or lengthen the last one if it ends where this one starts."""
    if runs and sum(runs[-1]) == start:
        runs[-1][1] += length
    else:
        runs.append([start, length])


def _runs(flags: npt.NDArray[Any]) -> Iterator[tuple[int, int]]:
    """Runs of true values over the flat order, each its start and length."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags.ravel(), [False])).astype(np.int8)))
    yield from ((int(start), int(stop - start)) for start, stop in edges.reshape(-1, 2))


def restore_non_finite(plain: Any, entries: Any) -> None:
    """Put the values that `non_finite` describes back into plain data, in place.

    Raises `MetricsFileError` where an entry names no place of the file, or one where no null stands.
    """
    if not isinstance(entries, dict):
        raise MetricsFileError(f"/extensions/non_finite is {shown(entries)}; expected an object")
    for pointer, entry in entries.items():
        try:
            _restore(plain, pointer, entry)
        except (KeyError, IndexError, TypeError, ValueError):
            raise MetricsFileError(
                f"/extensions/non_finite says {shown(entry)} stands at {shown(pointer)}, where no such null is"
            ) from None


def _restore(plain: Any, pointer: str, entry: Any) -> None:
    holder, last = place(plain, pointer)
    if isinstance(entry, str):
        if holder[last] is not None:
            raise ValueError(pointer)
        holder[last] = _NAMES[entry]
        return
    if not isinstance(entry, dict):
        raise TypeError(entry)
    rows = _innermost_rows(holder[last])
    for name, runs in entry.items():
        for start, length in runs:
            _fill(rows, start, length, _NAMES[name])


def _fill(rows: list[list[Any]], start: int, length: int, number: float) -> None:
    """Put a number into a run of the flat order, where only nulls may stand."""
    width = len(rows[0])
    if not isinstance(start, int) or not isinstance(length, int):
        raise TypeError(start, length)
    if start < 0 or length < 0 or start + length > width * len(rows):
        raise IndexError(start)
    while length:
        row, column = rows[start // width], start % width
        part = row[column : column + length]
        if part.count(None) < len(part):
            raise ValueError(start)
        row[column : column + length] = [number] * len(part)
        start, length = start + len(part), length - len(part)


def _innermost_rows(array: Any) -> list[list[Any]]:
    """The rows of a nested list, in order; all as long as the first."""
    rows = [array]
    while isinstance(rows[0][0], list):
        rows = [row for outer in rows for row in outer]
    if any(not isinstance(row, list) or len(row) != len(rows[0]) for row in rows):
        raise ValueError("rows of different lengths")
    return rows
