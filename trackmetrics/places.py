"""A file's plain data by JSON pointer: what stands where, the arrays among it, and of which places a fault is known."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .errors import MetricsFileError

SIDECARS, DTYPES, NON_FINITE = "/extensions/sidecars", "/extensions/dtypes", "/extensions/non_finite"
_DEEPEST = 16  # no schema's place lies deeper; a hostile pointer may have a million parts


class Array(NamedTuple):
    """An array of the file; a null in `values` is NaN. `values` is None where the shape alone is known."""

    shape: tuple[int, ...]
    values: npt.NDArray[Any] | None

    @property
    def empty(self) -> bool:
        """Whether it has no numbers: then `[]` stands for it, whatever its shape was."""
        return 0 in self.shape


class File:
    """A file's plain data, and the folder that it stands in, where its sidecars are.

    `malformed` are the places of which a fault is known, `unread` says why which sidecar can't be read.
    """

    def __init__(self, plain: Any, folder: Path) -> None:
        self.plain = plain
        self.folder = folder
        self.malformed: set[str] = set()
        self.unread: dict[str, str] = {}
        self._around: set[str] = set()
        self._arrays: dict[str, Array | None] = {}

    def note_malformed(self, pointer: str) -> None:
        """Remember that what stands at a place isn't what it should be."""
        self.malformed.add(pointer)
        self._around.update((pointer, *_above(pointer)))

    def is_malformed(self, pointer: str) -> bool:
        """Whether a fault is known of a place, of something in it, or of what it is in."""
        return pointer in self._around or any(place in self.malformed for place in _above(pointer))

    def find(self, pointer: str) -> Any:
        """What stands at a place. Raises `LookupError` where there is no such place."""
        root, *parts = pointer.split("/")
        if root:
            raise LookupError(pointer)
        value = self.plain
        for part in parts:
            value = value[_key(value, part)]
        return value

    def get(self, pointer: str) -> Any:
        """The same, but None where there is no such place."""
        try:
            return self.find(pointer)
        except LookupError:
            return None

    def is_null(self, pointer: str) -> bool:
        """Whether there is such a place, and null stands there."""
        try:
            return self.find(pointer) is None
        except LookupError:
            return False

    def mapping(self, pointer: str) -> Mapping[str, Any]:
        """The object at a place, an empty one where there is none."""
        value = self.get(pointer)
        return value if isinstance(value, dict) else {}

    def objects(self, pointer: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """The objects in the list at a place, each with its own pointer; an empty one for what is none."""
        value = self.get(pointer)
        for index, item in enumerate(value if isinstance(value, list) else ()):
            yield f"{pointer}/{index}", item if isinstance(item, dict) else {}

    def array(self, pointer: str) -> Array | None:
        """The array at a place, in this file or beside it; None where there is none."""
        if pointer not in self._arrays:
            self._arrays[pointer] = self._read(pointer)
        return self._arrays[pointer]

    def _read(self, pointer: str) -> Array | None:
        value, entry = self.get(pointer), self.mapping(SIDECARS).get(pointer)
        if isinstance(value, list):
            values = _numbers(value)
            return None if values is None else Array(values.shape, values)
        if value is not None or not isinstance(entry, dict):
            return None
        try:
            return _sidecar(self.folder, pointer, entry)
        except MetricsFileError as error:
            self.unread[pointer] = str(error)
            return None

    def shape(self, pointer: str, dimensions: int) -> tuple[int, ...] | None:
        """The shape of the array at a place; None where it hasn't as many dimensions."""
        array = self.array(pointer)
        if array is None or array.empty:
            return None if array is None else (0,) * dimensions
        return array.shape if len(array.shape) == dimensions else None

    def width(self, pointer: str) -> str | None:
        """An array's type; None where the file doesn't say, for want of extensions."""
        if self.get("/extensions") is None:
            return None
        sidecar = self.mapping(f"{SIDECARS}/{escaped(pointer)}")
        return "float32" if "float32" in (self.mapping(DTYPES).get(pointer), sidecar.get("dtype")) else "float64"


def escaped(key: str | int) -> str:
    """A key as it stands in a JSON pointer."""
    return str(key).replace("~", "~0").replace("/", "~1")


def _key(holder: Any, part: str) -> Any:
    if isinstance(holder, dict) and not re.search("~(?![01])", part):
        return part.replace("~1", "/").replace("~0", "~")
    if isinstance(holder, list) and re.fullmatch("0|[1-9][0-9]{0,17}", part):
        return int(part)
    raise LookupError(part)


def _above(pointer: str) -> Iterator[str]:
    """What a place is in, from the top level down."""
    parts = pointer.split("/", _DEEPEST)
    yield from ("/".join(parts[:length]) for length in range(1, len(parts)))


def _numbers(nested: list[Any]) -> npt.NDArray[Any] | None:
    """The array that nested lists of numbers and nulls make; None where they make none."""
    try:
        array: npt.NDArray[Any] = np.asarray(nested, dtype=np.float64)
    except (TypeError, ValueError):
        return None
    rows = [nested]
    for _ in range(array.ndim - 1):
        rows = [row for outer in rows for row in outer]
    return array if all(map(only_numbers, rows)) else None


def only_numbers(row: list[Any]) -> bool:
    """Whether all items are numbers or null: NumPy would take texts and booleans for numbers."""
    return set(map(type, row)) <= {float, int, type(None)}


def _sidecar(folder: Path, pointer: str, entry: Mapping[str, Any]) -> Array:
    """The array that stands in a file of its own. Raises `MetricsFileError` where it isn't the one of the entry."""
    shape = entry.get("shape")
    if not isinstance(shape, list) or not all(map(is_length, shape)):
        raise MetricsFileError("expected a shape")
    return Array(tuple(shape), None)


def is_length(value: Any) -> bool:
    """Whether a value can be the length of a dimension."""
    return type(value) is int and value >= 0
