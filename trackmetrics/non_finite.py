"""Numbers that JSON has no word for: where each stood, and how each comes back to its place."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import MetricsFileError, shown
from .json_pointer import inside_another, members, place

_NAMES = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_FEW_RUNS = 64  # more stay an array, which is written at once
_MAX_NESTING = 64  # of an array, as in NumPy


def non_finite(value: Any, pointer: str = "") -> dict[str, Any]:
    """Say at which JSON pointer stands which number that JSON has no word for.

    A number's entry is its name. An array, or a list that holds no other list or object, has one entry: the name alone
    where each of its nulls stands for that number, as after a mask; else `{name: [[start, length], ...]}`, runs over
    its flat order.

    >>> import numpy as np
    >>> non_finite({"loss": float("nan"), "masked": np.array([0.0, -np.inf]), "row": np.array([np.nan, np.inf])})
    {'/loss': 'NaN', '/masked': '-Infinity', '/row': {'NaN': [[0, 1]], 'Infinity': [[1, 1]]}}
    """
    if isinstance(value, np.ndarray):
        return _entry_of_array(pointer, value)
    if isinstance(value, float):
        return {} if math.isfinite(value) else {pointer: _name(value)}
    if isinstance(value, list) and not any(isinstance(item, (dict, list, np.ndarray)) for item in value):
        return _entry_of_list(pointer, value)
    entries: dict[str, Any] = {}
    for where, item in members(value, pointer):
        entries |= non_finite(item, where)
    return entries


def _name(number: float) -> str:
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def _entry_of_list(pointer: str, items: list[Any]) -> dict[str, Any]:
    runs: dict[str, list[list[int]]] = {}
    for index, item in enumerate(items):
        if isinstance(item, float) and not math.isfinite(item):
            of_name = runs.setdefault(_name(item), [])
            if of_name and sum(of_name[-1]) == index:
                of_name[-1][1] += 1
            else:
                of_name.append([index, 1])
    if len(runs) == 1 and None not in items:
        return {pointer: next(iter(runs))}
    return {pointer: {name: runs[name] for name in _NAMES if name in runs}} if runs else {}


def _entry_of_array(pointer: str, array: npt.NDArray[Any]) -> dict[str, Any]:
    """Row by row of the first dimension: the flags of a large array would take a good part of its memory."""
    rows = [row.ravel() for row in array] if array.ndim > 1 else [array.ravel()]
    tainted = [(index, row) for index, row in enumerate(rows) if not np.isfinite(row).all()]
    found = [name for name in _NAMES if any(_flags(row, name).any() for _, row in tainted)]
    if not found:
        return {}
    if len(found) == 1:
        return {pointer: found[0]}
    entry: dict[str, Any] = {}
    for name in found:
        runs = np.concatenate([_runs(_flags(row, name), index * row.size) for index, row in tainted])
        continued = runs[1:, 0] == runs[:-1].sum(axis=1)  # over the end of a row
        starts = runs[np.concatenate(([True], ~continued)), 0]
        ends = runs[np.concatenate((~continued, [True]))].sum(axis=1)
        joined = np.stack((starts, ends - starts), axis=1)
        entry[name] = joined.tolist() if len(joined) <= _FEW_RUNS else joined
    return {pointer: entry}


def _flags(row: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
    flags: npt.NDArray[Any] = np.isnan(row) if name == "NaN" else row == _NAMES[name]
    return flags


def _runs(flags: npt.NDArray[Any], offset: int) -> npt.NDArray[np.int64]:
    """Runs of true values, each its start and length, as rows."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).astype(np.int8))).reshape(-1, 2)
    return np.stack((edges[:, 0] + offset, edges[:, 1] - edges[:, 0]), axis=1)


def restore_non_finite(plain: Any, entries: Any) -> None:
    """Put the values that `non_finite` describes back into plain data, in place.

    Raises `MetricsFileError` where an entry names no place of the file, or one where no null stands.
    """
    if not isinstance(entries, dict):
        raise MetricsFileError(f"/extensions/non_finite is {shown(entries)}; expected an object")
    nested = inside_another(entries)
    if nested is not None:
        raise MetricsFileError(f"/extensions/non_finite names {shown(nested)}, inside another of its places")
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
        number = _NAMES[entry]
        if isinstance(holder[last], list):
            _fill_all(_innermost_rows(holder[last]), number)
        elif holder[last] is None:
            holder[last] = number
        else:
            raise ValueError(pointer)
        return
    if not isinstance(entry, dict):
        raise TypeError(entry)
    rows = _innermost_rows(holder[last])
    for name, runs in entry.items():
        for start, length in runs:
            _fill(rows, start, length, _NAMES[name])


def _fill_all(rows: list[list[Any]], number: float) -> None:
    """Put a number in the place of each null; there must be one."""
    holding = [row for row in rows if None in row]
    if not holding:
        raise ValueError(number)
    for row in holding:
        row[:] = [number if item is None else item for item in row]


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
    for _ in range(_MAX_NESTING):
        if not isinstance(rows[0][0], list):
            break
        rows = [row for outer in rows for row in outer]
    if any(not isinstance(row, list) or len(row) != len(rows[0]) for row in rows):
        raise ValueError("rows of different lengths")
    return rows
