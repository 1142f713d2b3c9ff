"""The file's text: strict JSON that people can read, and the numbers that JSON has no word for.

Objects are indented, an epoch stands on one line, a matrix row on one line. NaN and infinities are written as
null; `non_finite` says where each stood, and `restore_non_finite` puts them back.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from .errors import MetricsFileError, shown

_LINE_WIDTH = 100
_NAMES = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_LONG_INTEGER = re.compile(rb"[0-9]{19}")  # may be past 64 bits, where orjson reads a float


def encode(plain: dict[str, Any]) -> bytes:
    """Write plain data (dicts, lists, scalars, NumPy arrays) as one JSON text in UTF-8, with a last newline.

    Floats take the shortest decimal that gives back the same float of the same width.
    """
    text = bytearray()
    for piece in _pieces(plain, 0):
        text += piece
    text += b"\n"
    return bytes(text)


def decode(text: bytes) -> Any:
    """Parse strict JSON. Raises `MetricsFileError` with the place and the reason."""
    try:
        plain = orjson.loads(text)
        return json.loads(text) if _LONG_INTEGER.search(text) else plain
    except (orjson.JSONDecodeError, RecursionError) as error:
        raise MetricsFileError(f"not valid JSON: {error}") from None


def _pieces(value: Any, depth: int) -> Iterator[bytes]:
    if isinstance(value, np.ndarray) and value.ndim > 1:
        yield from _bracketed((_pieces(item, depth + 1) for item in value), b"[]", depth)
        return
    if isinstance(value, np.ndarray):
        yield _row(value)
        return
    if not _holds_arrays(value):
        line = _one_line(value)
        if len(line) + 2 * depth <= _LINE_WIDTH or _is_flat(value):
            yield line
            return
    if isinstance(value, dict):
        yield from _bracketed((_member(key, item, depth + 1) for key, item in value.items()), b"{}", depth)
    else:
        yield from _bracketed((_pieces(item, depth + 1) for item in value), b"[]", depth)


def _row(row: npt.NDArray[Any]) -> bytes:
    line = orjson.dumps(np.ascontiguousarray(row), option=orjson.OPT_SERIALIZE_NUMPY)
    if row.dtype == np.float32:
        # Readers parse decimals as doubles, and about one float32 in a billion (7.038531e-26) comes back as its
        # neighbour from there: then the row's decimals are those of the doubles.
        read = np.array(orjson.loads(line), dtype=np.float32)
        if np.any(np.isfinite(row) & (read != row)):
            return _row(row.astype(np.float64))
    return line


def _member(key: str, value: Any, depth: int) -> Iterator[bytes]:
    yield orjson.dumps(key) + b": "
    yield from _pieces(value, depth)


def _bracketed(items: Iterator[Iterator[bytes]], brackets: bytes, depth: int) -> Iterator[bytes]:
    margin = b"\n" + b"  " * (depth + 1)
    yield brackets[:1]
    separator = margin
    for item in items:
        yield separator
        yield from item
        separator = b"," + margin
    yield b"\n" + b"  " * depth
    yield brackets[1:]


def _one_line(value: Any) -> bytes:
    if isinstance(value, dict):
        members = (orjson.dumps(key) + b": " + _one_line(item) for key, item in value.items())
        return b"{" + b", ".join(members) + b"}"
    if isinstance(value, list):
        return b"[" + b", ".join(_one_line(item) for item in value) + b"]"
    if isinstance(value, int) and not isinstance(value, bool):
        return b"%d" % value  # JSON has no largest integer, orjson has
    return orjson.dumps(value)


def _is_flat(value: Any) -> bool:
    """A container of scalars alone, such as an epoch: one line, however long."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return not any(isinstance(item, (dict, list)) for item in items)


def _holds_arrays(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return True
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(_holds_arrays(item) for item in items)


def non_finite(value: Any, pointer: str = "") -> dict[str, Any]:
    """Say at which JSON pointer stands which number that JSON has no word for.

    A scalar's entry is its name; an array's is `{name: [[start, length], ...]}`, runs over its flat order.

    >>> import numpy as np
    >>> non_finite({"loss": float("nan"), "row": np.array([0.0, -np.inf, -np.inf])})
    {'/loss': 'NaN', '/row': {'-Infinity': [[1, 2]]}}
    """
    if isinstance(value, np.ndarray):
        runs = {name: _runs(flags) for name, flags in _flags(value)}
        found = {name: run for name, run in runs.items() if run}
        return {pointer: found} if found else {}
    if isinstance(value, float) and not math.isfinite(value):
        return {pointer: "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"}
    entries: dict[str, Any] = {}
    for place, item in _members(value, pointer):
        entries |= non_finite(item, place)
    return entries


def _members(value: Any, pointer: str) -> Iterator[tuple[str, Any]]:
    """What an object or a list holds, each with the JSON pointer at which it stands."""
    if isinstance(value, dict):
        yield from ((f"{pointer}/{key.replace('~', '~0').replace('/', '~1')}", item) for key, item in value.items())
    elif isinstance(value, list):
        yield from ((f"{pointer}/{index}", item) for index, item in enumerate(value))


def array_types(value: Any, pointer: str = "") -> Iterator[tuple[str, str]]:
    """Say at which JSON pointer an array stands, and of which type.

    >>> import numpy as np
    >>> list(array_types({"maps": [np.zeros((2, 2), np.float32)]}))
    [('/maps/0', 'float32')]
    """
    if isinstance(value, np.ndarray):
        yield pointer, str(value.dtype)
    for place, item in _members(value, pointer):
        yield from array_types(item, place)


def restore_arrays(plain: Any, types: dict[str, Any]) -> None:
    """Make arrays of the lists that `array_types` describes, in place.

    Raises `MetricsFileError` where one names no such list.
    """
    for pointer, kind in types.items():
        try:
            holder, key = _place(plain, pointer)
            holder[key] = np.array(holder[key], dtype={"float32": np.float32, "float64": np.float64}[kind])
        except (KeyError, IndexError, TypeError, ValueError):
            raise MetricsFileError(
                f"/extensions/dtypes says that {shown(pointer)} is an array of {shown(kind)}; no such array is there"
            ) from None


def _flags(array: npt.NDArray[Any]) -> list[tuple[str, npt.NDArray[Any]]]:
    return [("NaN", np.isnan(array)), ("Infinity", np.isposinf(array)), ("-Infinity", np.isneginf(array))]


def _runs(flags: npt.NDArray[Any]) -> list[list[int]]:
    """Runs of true values over the flat order, as [start, length] pairs."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags.ravel(), [False])).astype(np.int8)))
    return [[int(start), int(stop - start)] for start, stop in edges.reshape(-1, 2)]


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
    holder, last = _place(plain, pointer)
    if isinstance(entry, str):
        _put(holder, last, _NAMES[entry])
        return
    if not isinstance(entry, dict):
        raise TypeError(entry)
    rows = _innermost_rows(holder[last])
    width = len(rows[0])
    for name, runs in entry.items():
        for start, length in runs:
            if start < 0 or length < 0 or start + length > width * len(rows):
                raise IndexError(start)
            for index in range(start, start + length):
                _put(rows[index // width], index % width, _NAMES[name])


def _place(plain: Any, pointer: str) -> tuple[Any, Any]:
    """What holds the place that a JSON pointer names, and its key in there."""
    root, *parents, last = [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")]
    if root:
        raise ValueError(pointer)
    holder = plain
    for part in parents:
        holder = holder[_key(holder, part)]
    return holder, _key(holder, last)


def _put(holder: Any, key: Any, number: float) -> None:
    if holder[key] is not None:
        raise ValueError(key)
    holder[key] = number


def _key(holder: Any, part: str) -> Any:
    if not isinstance(holder, list):
        return part
    if not part.isdecimal() or str(int(part)) != part:
        raise ValueError(part)
    return int(part)


def _innermost_rows(array: Any) -> list[list[Any]]:
    """The rows of a nested list, in order; all as long as the first."""
    rows = [array]
    while isinstance(rows[0][0], list):
        rows = [row for outer in rows for row in outer]
    if any(len(row) != len(rows[0]) for row in rows):
        raise ValueError("rows of different lengths")
    return rows
