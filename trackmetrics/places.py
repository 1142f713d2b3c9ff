"""A file's plain data by JSON pointer: what stands where, the arrays among it, and of which places a fault is known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .array_types import array_of
from .errors import MetricsFileError
from .json_pointer import escaped, place
from .sidecars import Beside

SIDECARS, DTYPES, NON_FINITE = "/extensions/sidecars", "/extensions/dtypes", "/extensions/non_finite"
Array: TypeAlias = npt.NDArray[Any]  # a null in it is NaN
_DEEPEST = 16  # no schema's place lies deeper; a hostile pointer may have a million parts


class File:
    """A file's plain data, and the folder that it stands in, where its sidecars are.

    `malformed` are the places of which a fault is known, `unread` says why which sidecar can't be read.
    """

    def __init__(self, plain: Any, folder: Path) -> None:
        self.plain = plain
        self.malformed: set[str] = set()
        self.unread: dict[str, str] = {}
        self._around: set[str] = set()
        self._arrays: dict[str, Array | None] = {}
        self._beside = Beside(folder)

    def note_malformed(self, pointer: str) -> None:
        """Remember that what stands at a place isn't what it should be."""
        self.malformed.add(pointer)
        self._around.update((pointer, *_above(pointer)))

    def is_malformed(self, pointer: str) -> bool:
        """Whether a fault is known of a place, of something in it, or of what it is in."""
        return pointer in self._around or any(place in self.malformed for place in _above(pointer))

    def find(self, pointer: str) -> Any:
        """What stands at a place. Raises `LookupError` where there is no such place."""
        if not pointer:
            return self.plain
        try:
            holder, key = place(self.plain, pointer)
            return holder[key]
        except (TypeError, ValueError) as error:
            raise LookupError(pointer) from error

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
            return _numbers(value)
        if value is not None or not isinstance(entry, dict):
            return None
        try:
            return self._beside.read(entry)
        except MetricsFileError as error:
            self.unread[pointer] = str(error)
            return None

    def shape(self, pointer: str, dimensions: int) -> tuple[int, ...] | None:
        """The shape of the array at a place; None where it hasn't as many dimensions."""
        array = self.array(pointer)
        if array is None or not array.size:  # `[]` stands for an empty one, whatever its shape was
            return None if array is None else (0,) * dimensions
        return array.shape if len(array.shape) == dimensions else None

    def width(self, pointer: str) -> str | None:
        """An array's type; None where the file doesn't say, for want of extensions."""
        if self.get("/extensions") is None:
            return None
        sidecar = self.mapping(f"{SIDECARS}/{escaped(pointer)}")
        return "float32" if "float32" in (self.mapping(DTYPES).get(pointer), sidecar.get("dtype")) else "float64"


def _above(pointer: str) -> Iterator[str]:
    """What a place is in, from the top level down."""
    parts = pointer.split("/", _DEEPEST)
    yield from ("/".join(parts[:length]) for length in range(1, len(parts)))


def _numbers(nested: list[Any]) -> Array | None:
    """The array that nested lists of numbers and nulls make; None where they make none."""
    try:
        return array_of(nested, np.float64)
    except (TypeError, ValueError):
        return None


def is_length(value: Any) -> bool:
    """Whether a value can be the length of a dimension."""
    return type(value) is int and value >= 0
